# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Minimal model cards: what a model is, how to load it, and the licence of the weights."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .configuration_eupe import WEIGHTS_LICENSE
from .sharing_eupe import HUB_IDS


LICENSE_TEXT = """\
The weights of EUPE are under the FAIR Noncommercial Research License. It covers derivatives and outputs, and asks
that the agreement be passed on and the use be acknowledged."""
_WITHOUT_REMOTE_CODE = "With the package installed (`import eupe_hf`) `trust_remote_code` is not needed."
# What markdown could read as markup: all but letters, digits and these signs; any sign, or a number of a list, that
# begins the line; "_" at the edge of a word; and what makes a link of a bare address.
_MARKUP = re.compile(
    r"[^\w ,.;()/%+=:'-]|^\W|^\d+(?=[.)](?: |$))|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE
)


def as_text(value: Any) -> str:
    """A value from outside for the text of a card: one line that markdown shows as it is, in tables and links too."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in str(value)).split())
    return _MARKUP.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found[0]), line)


def in_code(value: str) -> str:
    """A value from outside for the code in a card: a literal on one line."""
    return json.dumps(value)


def hub_id(name: str | None) -> str | None:
    """The Hub repository that a name stands for; `None` for a local folder, an unknown name, or what can't be one."""
    name = HUB_IDS.get(str(name or "").lower(), str(name or ""))
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name.count("/") == 1 and not Path(name).exists() else None


def new_card(title: str, about: str, snippet: str, after: str = "", **data: Any) -> ModelCard:
    """A card with the licence of the weights: heading, a sentence, code that loads it from "PATH", text, metadata.

    The heading may hold names from outside. Sentence, code and text are markdown: see `as_text` and `in_code`.
    """
    metadata = ModelCardData(**data, **WEIGHTS_LICENSE)
    parts = [f"# {as_text(title)}", about, f"```python\n{snippet}\n```", after, LICENSE_TEXT]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def model_card(model: Any, tags: Sequence[str] = ()) -> ModelCard:
    """Card of an encoder or a task model, with further tags beside "eupe"."""
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
    """Card of a head without its encoder: the class and configuration of its single-task model, and its name."""
    base = config.name_or_path or ""
    encoder = base if base.lower() in HUB_IDS else hub_id(base) or "ENCODER"
    return new_card(
        f"{name}: head of {task_class.__name__} for {encoder_in_words(config)}",
        "A head for an Efficient Universal Perception Encoder (EUPE, arXiv 2603.22387), saved by eupe-hf without its "
        "encoder.",
        f"""from eupe_hf import EupeForMultiTask

model = EupeForMultiTask.from_pretrained({in_code(encoder)})
model.load_head({in_code(name)}, "PATH")""",
        library_name="eupe-hf",  # transformers cannot load a head alone
        pipeline_tag=task_class._pipeline_tag,
        tags=["eupe"],
        base_model=hub_id(base),
    )


def llava_card(model: Any, tags: Sequence[str] = ()) -> ModelCard:
    """Card of a VLM, with further tags beside "eupe" and "llava"."""
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
        _WITHOUT_REMOTE_CODE + "\n\nThe language model has a licence of its own.",
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["eupe", "llava", *(tag for tag in tags if tag not in ("eupe", "llava"))],
        base_model=bases or None,
    )


def encoder_in_words(config: Any) -> str:
    """Family and width of an encoder, for a title."""
    family = "ViT" if config.backbone_type == "vit" else "ConvNeXt"
    return f"EUPE {family}, width {config.hidden_size}"
