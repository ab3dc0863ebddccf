# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a saved model's folder, and its repository on the Hub, hold beside weights and configuration."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, file_exists
from transformers.utils import IMAGE_PROCESSOR_NAME

from .configuration_eupe import WEIGHTS_LICENSE
from .image_processing_eupe import EupeImageProcessorPil
from .modeling_eupe_adapter import save_model_config
from .modeling_eupe_cards import model_card
from .sharing_eupe import EupeCodeMixin


class EupeSavingMixin(EupeCodeMixin):
    """Saving that is complete: code for `trust_remote_code`, image processor, licence. Stands before the model."""

    config: Any
    base_model: Any
    _fresh_files = rf"README\.md|{re.escape(IMAGE_PROCESSOR_NAME)}|{EupeCodeMixin._fresh_files}"

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        """What the Auto classes make of a folder that this class saves."""
        raise NotImplementedError

    def _default_processor(self) -> Any:
        """Image processor that is saved where there is none; `None` for none."""
        side = self.base_model.config.image_size
        # label maps are padded with what the loss ignores
        ignored = getattr(self.config, "semantic_loss_ignore_index", EupeImageProcessorPil.semantic_loss_ignore_index)
        return EupeImageProcessorPil(size={"height": side, "width": side}, semantic_loss_ignore_index=ignored)

    def _new_card(self, tags: Sequence[str] = ()) -> ModelCard:
        """Card that is saved where there is none."""
        return model_card(self, tags)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs: Any) -> None:
        """Save weights, configuration, and what a process without this package needs to load them.

        Arguments as in `transformers.PreTrainedModel.save_pretrained`. The folder also gets the source files (for
        `trust_remote_code=True`) and, where they are missing, the configuration of the default image processor (of a
        vision model) and a model card with the licence of the weights.
        """
        folder = Path(save_directory)
        if is_main_process and not folder.is_file():
            self._save_code(folder)
            if getattr(self, "_hf_peft_config_loaded", False):  # then transformers saves the adapter alone
                save_model_config(self.config, type(self).__name__, folder)
            known = self._published_class()._auto_classes()
            auto_map = {auto: f"{c.__module__.split('.')[-1]}.{c.__name__}" for auto, c in known.items()}
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **auto_map}
            processor = self._default_processor()
            if processor is not None and not (folder / IMAGE_PROCESSOR_NAME).exists():
                processor.save_pretrained(folder)
            if not (folder / "README.md").exists():
                self._new_card().save(folder / "README.md")
        parent: Any = super()
        parent.save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # transformers writes a card of its own just before the upload. A card that you wrote stays, but the weights
        # never go out without their licence.
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
        saved = path.read_text(encoding="utf-8") if path.exists() else None
        where = {key: kwargs.get(key) for key in ("revision", "token")}
        is_default = processor is not None and saved == processor.to_json_string()
        if is_default and file_exists(repo_id, IMAGE_PROCESSOR_NAME, **where):
            files_timestamps = {**files_timestamps, IMAGE_PROCESSOR_NAME: math.inf}
        parent: Any = super()
        return parent._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)
