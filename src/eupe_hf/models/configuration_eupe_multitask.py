# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of one EUPE encoder with several named task heads."""

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .configuration_eupe import FOLDER_FIELDS, EupeConfig, EupeEncoderConfigMixin


# What a head of each task reads from its `EupeConfig` beside the encoder's architecture.
HEAD_FIELDS = {
    "classification": ("out_indices", "id2label", "problem_type", "classify_patch_mean"),
    "segmentation": ("out_indices", "id2label", "head_dropout", "semantic_loss_ignore_index"),
    "depth": ("out_indices", "head_dropout", "num_depth_bins", "min_depth", "max_depth"),
    "detection": ("out_indices", "id2label", "detection_hidden_size", "detection_strides"),
}


_NOT_OF_THE_ENCODER = (*FOLDER_FIELDS, "id2label", "label2id")  # each head has labels of its own


@strict
class EupeMultiTaskConfig(EupeEncoderConfigMixin, PreTrainedConfig):
    """One encoder and any set of named heads.

    Args:
        encoder_config: The encoder: an `EupeConfig`, or its fields as a dictionary. Its `out_indices` follow from the
            heads: all stages that one of them reads.
        heads: One entry per head, by name. Each is a dictionary with the `task` ("classification", "segmentation",
            "depth" or "detection"), the fields of `EupeConfig` that such a head reads (`num_labels` or `id2label`,
            `out_indices`, ...; what is left out has its default there), and a `loss_weight`, 1 by default: the factor
            of the head's loss in the sum that is trained. Names are letters, digits, "-" and "_".

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

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    heads: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, PreTrainedConfig):
            self.encoder_config = self.encoder_config.to_dict()
        given: dict[str, Any] = self.encoder_config or {}
        fields = {key: value for key, value in given.items() if key not in _NOT_OF_THE_ENCODER}
        self.encoder_config = EupeConfig(**fields)
        heads, self.heads = self.heads or {}, {}
        for name, head in heads.items():
            self.set_head(name, head)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but heads that are overridden take part in the checks and in what follows from them."""
        overrides: dict[str, Any] = {key: kwargs.pop(key) for key in ("encoder_config", "heads") if key in kwargs}
        return super().from_dict({**config_dict, **overrides}, **kwargs)

    def set_head(self, name: str, head: Mapping[str, Any]) -> None:
        """Add the entry of a head, or replace it; all its fields are written out.

        Args:
            name: Name of the head.
            head: Its entry, as `heads` takes them.

        Raises:
            ValueError: An unknown task or field, or an impossible name.
        """
        if not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"The name of a head must be letters, digits, '-' and '_', got {name!r}.")
        if not isinstance(head, Mapping):
            raise ValueError(f"heads[{name!r}] must be a dictionary such as {{'task': 'depth'}}, got {head!r}.")
        task = head.get("task")
        if task not in HEAD_FIELDS:
            raise ValueError(f"heads[{name!r}]['task'] must be one of {', '.join(HEAD_FIELDS)}, got {task!r}.")
        fields = {key: value for key, value in head.items() if key not in ("task", "loss_weight")}
        allowed = [*HEAD_FIELDS[task], *(["num_labels"] if "id2label" in HEAD_FIELDS[task] else [])]
        if unknown := sorted(fields.keys() - {*allowed}):
            takes = ", ".join([*allowed, "loss_weight"])
            raise ValueError(f"heads[{name!r}] has {', '.join(unknown)}; a {task} head takes {takes}.")
        weight = head.get("loss_weight", 1.0)
        if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
            raise ValueError(f"heads[{name!r}]['loss_weight'] must be a number of at least 0, got {weight!r}.")
        config = self._with_encoder(fields)
        config = config.with_detection_stages() if task == "detection" else config
        stages = len(config.stage_names)
        entry = {key: getattr(config, key) for key in HEAD_FIELDS[task]}
        entry["out_indices"] = [index % stages for index in config.out_indices]
        # in the order of a saved configuration, which sorts keys
        self.heads = dict(sorted({**self.heads, name: {"task": task, "loss_weight": weight, **entry}}.items()))
        self._select_stages()

    def remove_head(self, name: str) -> None:
        """Drop the entry of a head."""
        self.heads = {other: head for other, head in self.heads.items() if other != name}
        self._select_stages()

    def head_config(self, name: str) -> EupeConfig:
        """Configuration of the single-task model that has this head."""
        fields = {key: value for key, value in self.heads[name].items() if key not in ("task", "loss_weight")}
        return self._with_encoder(fields)

    def _with_encoder(self, fields: dict[str, Any]) -> EupeConfig:
        encoder = self.encoder.to_dict()
        for key in ("out_features", "out_indices", *_NOT_OF_THE_ENCODER):
            encoder.pop(key, None)
        return EupeConfig(**{**encoder, **fields})

    def _select_stages(self) -> None:
        chosen = sorted({index for head in self.heads.values() for index in head["out_indices"]})
        self.encoder.out_indices = chosen or None
