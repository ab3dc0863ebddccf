# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of an EUPE encoder with a feature pyramid."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_eupe import FOLDER_FIELDS, EupeConfig, EupeEncoderConfigMixin


@strict
class EupePyramidConfig(EupeEncoderConfigMixin, BackboneConfigMixin, PreTrainedConfig):
    """An EUPE encoder with a feature pyramid: the `backbone_config` of decoders that read maps of several strides.

    Args:
        encoder_config: The encoder, by default EUPE ViT-S. The pyramid is made from the maps in its `out_indices`, by
            default a ViT's last block. A ConvNeXt with a single stage chosen gets all of them.
        strides: Strides in pixels of the maps, powers of 2 in ascending order. The sides of images should be multiples
            of the largest: decoders rely on each map being twice as large as the next.
        hidden_size: Width of every map.
        initializer_range: Standard deviation of the normal that initialises the weights of the pyramid.
        out_features: Names of the maps to return, "stride8", "stride16", ... Default: all of them.
        out_indices: The same by number, counted from 0.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A field has the wrong type or an impossible value.
        ValueError: Maps that do not exist.

    Example:

    ```python
    >>> from eupe_hf import EupePyramidConfig, variant_config

    >>> config = EupePyramidConfig(encoder_config=variant_config("eupe-convnext-t"), strides=[8, 16, 32])
    >>> config.out_features, config.encoder_config.out_indices
    (['stride8', 'stride16', 'stride32'], [1, 2, 3, 4])

    ```
    """

    model_type = "eupe_pyramid"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=EupeConfig)}

    encoder_config: dict | PreTrainedConfig | None = None
    strides: list[int] | tuple[int, ...] = (8, 16, 32)
    hidden_size: int = 256
    initializer_range: float = 0.02
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        chosen = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        kwargs.pop("stage_names", None)  # they follow from the strides
        super().__post_init__(**kwargs)
        self.strides = list(self.strides)
        self.validate_architecture()  # before names are made of impossible strides
        encoder = self.encoder
        # a copy, since the caller's may be in use elsewhere, and without what belongs to a folder that it came from
        values = {key: value for key, value in encoder.to_dict().items() if key not in FOLDER_FIELDS}
        values["reshape_hidden_states"] = True
        if encoder.backbone_type == "convnext" and len(encoder.out_indices) == 1:
            values |= {"out_features": None, "out_indices": list(range(1, encoder.num_stages + 1))}
        self.encoder_config = EupeConfig(**values)
        self.stage_names = [f"stride{stride}" for stride in self.strides]
        if chosen == {"out_features": None, "out_indices": None}:
            chosen["out_features"] = list(self.stage_names)
        self.set_output_features_output_indices(**chosen)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but overrides are checked, and other fields follow from them."""
        own = ("encoder_config", "strides", "hidden_size", "initializer_range", "out_features", "out_indices")
        overrides = {name: kwargs.pop(name) for name in own if name in kwargs}
        # levels chosen by the old strides, or by the other one of name and number
        stale = {"out_features", "out_indices"} if overrides.keys() & {"strides", *own[-2:]} else set()
        kept = {name: value for name, value in config_dict.items() if name not in stale}
        return super().from_dict({**kept, **overrides}, **kwargs)

    def validate_architecture(self) -> None:
        """Part of `@strict`. Raises `ValueError` naming the field."""
        strides = list(self.strides)
        if not strides or strides != sorted(set(strides)) or any(s < 1 or s & (s - 1) for s in strides):
            raise ValueError(f"strides must be powers of 2 in ascending order, got {strides}.")
        if self.hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1, got {self.hidden_size}.")
        if not isinstance(self.encoder_config, EupeConfig):
            raise ValueError(f"encoder_config must be an EupeConfig, got {type(self.encoder_config).__name__}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary, without those that follow from others."""
        output = super().to_dict()
        output.pop("stage_names", None)
        return output
