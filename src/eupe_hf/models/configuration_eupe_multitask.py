# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of one EUPE encoder with several named task heads."""

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_eupe import DEFAULT, FOLDER_FIELDS, EupeConfig, EupeEncoderConfigMixin, Filled
from .modeling_eupe_tasks import TASK_MODELS


_NOT_OF_THE_ENCODER = (*FOLDER_FIELDS, "id2label", "label2id")  # each head has labels of its own


@strict
class EupeMultiTaskConfig(EupeEncoderConfigMixin, PreTrainedConfig):
    """One encoder and any set of named heads.

    Args:
        encoder_config: The encoder: an `EupeConfig`, or its fields as a dictionary. Its `out_indices` follow from the
            heads: all stages that one of them reads.
        heads: One entry per head, by name; letters, digits, "-" and "_". An entry is a dictionary with the `task`
            ("classification", "segmentation", "depth" or "detection"), fields of `EupeConfig` that a head of this
            task reads (`num_labels` or `id2label`, `out_indices`, ...; default as there), and a `loss_weight`, the
            factor of the head's loss in the sum that is trained, 1 by default.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A field has the wrong type.
        ValueError: A head with an unknown task or field, or an impossible name.

    Example:

    ```python
    >>> from eupe_hf import EupeForMultiTask, EupeMultiTaskConfig, variant_config

    >>> heads = {
    ...     "scene": {"task": "classification", "num_labels": 5},
    ...     "parts": {"task": "segmentation", "num_labels": 3, "out_indices": [6, 12], "loss_weight": 0.5},
    ... }
    >>> config = EupeMultiTaskConfig(encoder_config=variant_config("eupe-t"), heads=heads)
    >>> config.head_config("parts").num_labels, config.encoder_config.out_indices
    (3, [6, 12])
    >>> model = EupeForMultiTask(config)  # random weights

    ```
    """

    model_type = "eupe_multitask"
    sub_configs = {"encoder_config": EupeConfig}

    encoder_config: Filled[dict[str, Any] | PreTrainedConfig] = DEFAULT
    heads: Filled[dict[str, Any]] = DEFAULT

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, PreTrainedConfig):
            self.encoder_config = self.encoder_config.to_dict()
        given: dict[str, Any] = self.encoder_config or {}
        self.encoder_config = EupeConfig(**{k: v for k, v in given.items() if k not in _NOT_OF_THE_ENCODER})
        heads, self.heads = self.heads or {}, {}
        for name, head in heads.items():
            self.set_head(name, head)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but overridden heads are checked, and the encoder's stages follow from them."""
        overrides: dict[str, Any] = {key: kwargs.pop(key) for key in ("encoder_config", "heads") if key in kwargs}
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    def set_head(self, name: str, head: Mapping[str, Any]) -> None:
        """Add or replace the entry of a head, with all its fields written out.

        Raises:
            ValueError: An unknown task or field, or an impossible name.
        """
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"The name of a head must be letters, digits, '-' and '_', got {name!r}.")
        if not isinstance(head, Mapping):
            raise ValueError(f"heads[{name!r}] must be a dictionary such as {{'task': 'depth'}}, got {head!r}.")
        fields = dict(head)
        task, weight = fields.pop("task", None), fields.pop("loss_weight", 1.0)
        if task not in TASK_MODELS:
            raise ValueError(f"heads[{name!r}]['task'] must be one of {', '.join(TASK_MODELS)}, got {task!r}.")
        read = TASK_MODELS[task].head_fields
        allowed = [*read, "num_labels"] if "id2label" in read else [*read]
        if unknown := sorted(fields.keys() - {*allowed}):
            takes = ", ".join([*allowed, "loss_weight"])
            raise ValueError(f"heads[{name!r}] has {', '.join(unknown)}; a {task} head takes {takes}.")
        if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
            raise ValueError(f"heads[{name!r}]['loss_weight'] must be a number of at least 0, got {weight!r}.")
        config = TASK_MODELS[task].complete_config(self._with_encoder(fields))
        entry = {key: getattr(config, key) for key in read}
        entry["out_indices"] = [index % len(config.stage_names) for index in config.out_indices]
        # in the order of a saved configuration, which sorts keys
        self.heads = dict(sorted({**self.heads, name: {"task": task, "loss_weight": weight, **entry}}.items()))
        self._select_stages()

    def remove_head(self, name: str) -> None:
        """Drop the entry of a head."""
        self.heads = {other: head for other, head in self.heads.items() if other != name}
        self._select_stages()

    @property
    def semantic_loss_ignore_index(self) -> int:
        """The label that segmentation heads ignore; `EupeConfig`'s default if there are none, or if they differ."""
        ignored = {head.get("semantic_loss_ignore_index") for head in self.heads.values()} - {None}
        return ignored.pop() if len(ignored) == 1 else EupeConfig.semantic_loss_ignore_index

    def head_config(self, name: str) -> EupeConfig:
        """Configuration of the single-task model that has this head."""
        return self._with_encoder({k: v for k, v in self.heads[name].items() if k not in ("task", "loss_weight")})

    def _with_encoder(self, fields: dict[str, Any]) -> EupeConfig:
        encoder = self.encoder.to_dict()
        for key in ("out_features", "out_indices", *_NOT_OF_THE_ENCODER):
            encoder.pop(key, None)
        return EupeConfig(**{**encoder, **fields})

    def _select_stages(self) -> None:
        chosen = sorted({index for head in self.heads.values() for index in head["out_indices"]})
        self.encoder.out_indices = chosen or None
