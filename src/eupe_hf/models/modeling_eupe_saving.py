# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a saved model's folder, and its repository on the Hub, hold beside weights and configuration."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, file_exists
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import IMAGE_PROCESSOR_NAME

from .configuration_eupe import WEIGHTS_LICENSE
from .modeling_eupe_adapter import save_model_config


# What `save_pretrained` writes beside weights and config.
_ADDED_FILES = rf"README\.md|{re.escape(IMAGE_PROCESSOR_NAME)}|\w+_eupe\w*\.py"


LICENSE_TEXT = """\
The weights of EUPE are under the FAIR Noncommercial Research License. It covers derivatives and outputs, and asks
that the agreement be passed on and the use be acknowledged."""


_WITHOUT_REMOTE_CODE = "With the package installed (`import eupe_hf`) `trust_remote_code` is not needed."


# Short names and what they stand for on the Hub, in lower case. The package fills it in: remote code knows no names.
HUB_IDS: dict[str, str] = {}


class EupeSavingMixin:
    """Saving that is complete: code for `trust_remote_code`, image processor, licence. Stands before the model."""

    config: Any

    @classmethod
    def _plain_class(cls) -> type:
        """Class of the package whose files are saved for a subclass that somebody else wrote."""
        raise NotImplementedError

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        """What the Auto classes make of a folder that this class saves."""
        raise NotImplementedError

    def _default_processor(self) -> Any:
        """Image processor that is saved where there is none; `None` where a processor is saved by itself."""
        return None

    def _new_card(self, tags: Sequence[str] = ()) -> ModelCard:
        """Card that is saved where there is none."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save weights, config, and what a process without this package needs to load them.

        Arguments as in `transformers.PreTrainedModel.save_pretrained`. Beside weights and config the folder gets the
        modelling files (for `trust_remote_code=True`) and, where they are not there yet, the configuration of the
        default image processor (of a vision model) and a model card with the licence of the weights.
        """
        folder = Path(save_directory)
        if is_main_process and not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if getattr(self, "_hf_peft_config_loaded", False):  # then transformers saves the adapter alone
                save_model_config(self.config, type(self).__name__, folder)
            # a subclass of somebody else stays where it is: his script is not for publishing
            is_ours = type(self).__module__.rpartition(".")[0] == __name__.rpartition(".")[0]
            published: Any = type(self) if is_ours else self._plain_class()
            custom_object_save(published, folder)
            known = published._auto_classes()
            auto_map = {auto: f"{c.__module__.split('.')[-1]}.{c.__name__}" for auto, c in known.items()}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map}
            processor = self._default_processor()
            if processor is not None and not (folder / IMAGE_PROCESSOR_NAME).exists():
                processor.save_pretrained(folder)
            if not (folder / "README.md").exists():
                self._new_card().save(folder / "README.md")
        parent: Any = super()
        parent.save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def _get_files_timestamps(self, working_dir: str | os.PathLike) -> dict[str, float]:
        # transformers uploads what is newer than these; what `save_pretrained` adds was written just before
        parent: Any = super()
        timestamps = parent._get_files_timestamps(working_dir)
        return {name: t for name, t in timestamps.items() if not re.fullmatch(_ADDED_FILES, name)}

    def _upload_modified_files(
        self,
        working_dir: str | os.PathLike,
        repo_id: str,
        files_timestamps: dict[str, float],
        token: bool | str | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        # transformers writes its own card last, just before the upload: keep one that somebody wrote, but never let
        # the weights go out without their licence.
        path = Path(working_dir) / "README.md"
        card = ModelCard.load(path) if path.exists() else None
        if card is None or "has been automatically generated" in card.text:
            tags = (card.data.tags or []) if card is not None else []
            self._new_card(tags).save(path)
        elif not card.data.license:
            for name, value in WEIGHTS_LICENSE.items():
                setattr(card.data, name, value)
            card.save(path)
        # Nor does the default image processor replace one that was pushed before.
        path, processor = Path(working_dir) / IMAGE_PROCESSOR_NAME, self._default_processor()
        is_default = (
            processor is not None and path.exists() and path.read_text(encoding="utf-8") == processor.to_json_string()
        )
        if is_default and file_exists(repo_id, IMAGE_PROCESSOR_NAME, revision=revision, token=token):
            files_timestamps = {**files_timestamps, IMAGE_PROCESSOR_NAME: math.inf}
        parent: Any = super()
        return parent._upload_modified_files(
            working_dir, repo_id, files_timestamps, token=token, revision=revision, **kwargs
        )


def hub_id(name: str | None) -> str | None:
    """The Hub repository that a name stands for; `None` for a folder of this machine, or where nothing is known."""
    name = HUB_IDS.get(str(name or "").lower(), name or "")
    is_id = bool(name) and name.count("/") == 1 and " " not in name and name[0] not in "./~" and name[-1] != "/"
    return name if is_id and not Path(name).exists() else None


def new_card(title: str, about: str, snippet: str, after: str = "", **data: Any) -> ModelCard:
    """A card in the package's wording: what it is, how to load it, and the licence that comes with the weights.

    Args:
        title: Its heading.
        about: What it is, in a sentence.
        snippet: Python code that loads it, from "PATH".
        after: What to say below the code.
        **data: Metadata beside the licence; a missing value is left out.

    Returns:
        The card, ready to `save`.
    """
    metadata = ModelCardData(**data, **WEIGHTS_LICENSE)
    parts = [f"# {title}", about, f"```python\n{snippet}\n```", after, LICENSE_TEXT]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def model_card(model: Any, tags: Sequence[str] = ()) -> ModelCard:
    """A minimal model card: what it is, how to load it, and the licence that comes with the weights.

    Args:
        model: The model that the card goes with.
        tags: Tags to list beside "eupe".

    Returns:
        The card, ready to `save`.
    """
    auto_class = model._task_auto_class or "AutoModel"
    return new_card(
        f"{type(model).__name__}, {encoder_in_words(model.base_model.config)}",
        "An Efficient Universal Perception Encoder (EUPE, arXiv 2603.22387) saved by eupe-hf.",
        f"""from transformers import AutoImageProcessor, {auto_class}

processor = AutoImageProcessor.from_pretrained("PATH", trust_remote_code=True)
model = {auto_class}.from_pretrained("PATH", trust_remote_code=True)""",
        _WITHOUT_REMOTE_CODE,
        library_name="transformers",
        pipeline_tag=model._pipeline_tag,
        tags=["eupe", *(tag for tag in tags if tag != "eupe")],
        base_model=hub_id(model.config.name_or_path),
    )


def head_card(task_class: Any, config: Any, name: str) -> ModelCard:
    """A minimal card of a head that is saved without its encoder.

    Args:
        task_class: The single-task class that has such a head.
        config: Its configuration.
        name: Name of the head in the multi-task model.

    Returns:
        The card, ready to `save`.
    """
    base = config.name_or_path or ""
    encoder = base if base.lower() in HUB_IDS else hub_id(base) or "ENCODER"
    return new_card(
        f"{name}: head of {task_class.__name__} for {encoder_in_words(config)}",
        "A head for an Efficient Universal Perception Encoder (EUPE, arXiv 2603.22387), saved by eupe-hf without the "
        "encoder\nthat it was trained on.",
        f"""from eupe_hf import EupeForMultiTask

model = EupeForMultiTask.from_pretrained("{encoder}")
model.load_head("{name}", "PATH")""",
        library_name="eupe-hf",  # transformers cannot load a head alone
        pipeline_tag=task_class._pipeline_tag,
        tags=["eupe"],
        base_model=hub_id(base),
    )


def llava_card(model: Any, tags: Sequence[str] = ()) -> ModelCard:
    """A minimal card of a VLM: its parts, how to load it, and the licence that comes with EUPE's weights.

    Args:
        model: The model that the card goes with.
        tags: Tags to list beside "eupe" and "llava".

    Returns:
        The card, ready to `save`.
    """
    vision, text = model.config.vision_config, model.config.text_config
    bases = [name for name in (hub_id(vision.name_or_path), hub_id(text.name_or_path)) if name]
    return new_card(
        f"{encoder_in_words(vision)}, with {text.model_type}",
        "A vision-language model on an Efficient Universal Perception Encoder (EUPE, arXiv 2603.22387), saved by "
        "eupe-hf.",
        """from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("PATH", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("PATH", trust_remote_code=True)
content = [{"type": "image", "path": "photo.jpg"}, {"type": "text", "text": "What is on the table?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
print(processor.decode(model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1] :]))""",
        _WITHOUT_REMOTE_CODE + "\n\nThe language model comes with a licence of its own.",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["eupe", "llava", *(tag for tag in tags if tag not in ("eupe", "llava"))],
        base_model=bases or None,
    )


def encoder_in_words(config: Any) -> str:
    """Family and width of an encoder, for a title."""
    family = "ViT" if config.backbone_type == "vit" else "ConvNeXt"
    return f"EUPE {family}, width {config.hidden_size}"
