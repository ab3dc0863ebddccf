# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a vision-language model: an EUPE encoder, a projector and a causal language model."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, LlavaConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_eupe import FOLDER_FIELDS, EupeConfig
from .reading_eupe_configuration import EupeFieldsMixin


@strict
class EupeLlavaConfig(EupeFieldsMixin, LlavaConfig):
    """transformers' `LlavaConfig` with an EUPE encoder as `vision_config`. Fields not listed here are LLaVA's.

    Args:
        vision_config: The tower: an `EupeConfig` or its fields, by default EUPE ViT-S. By default the image processor
            resizes to its `image_size`.
        text_config: The language model: any causal one of transformers, by default LLaMA.
        image_token_index: Id of the token that stands for one image feature; also `image_token_id`.
        vision_feature_layer: Hidden state of the tower that is projected, after the tower's final norm: 0 is the
            embeddings, i + 1 the output of block i, -1 the last. A list concatenates several. A ConvNeXt has only -1.
        vision_feature_select_strategy: "default": patch tokens only, without class token and registers.
        scale_factor: Side of the squares of patches that the projector joins into one token: 2 turns 576 tokens into
            144. Rows and columns that do not fill a square are dropped.
        lm_head_bias: Whether the language model's head has a bias, like Phi's.
        image_seq_length: Tokens of an image of `image_size` x `image_size` pixels; set from the others.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A field has the wrong type or an impossible value.
        ValueError: The tower lacks a layer, or `scale_factor` is below 1.

    Example:

    ```python
    >>> from eupe_hf import EupeLlavaConfig, variant_config

    >>> config = EupeLlavaConfig(vision_config=variant_config("eupe-b", image_size=384))
    >>> config.image_seq_length
    576
    >>> EupeLlavaConfig(vision_config=variant_config("eupe-b", image_size=384), scale_factor=2).image_seq_length
    144

    ```
    """

    model_type = "eupe_llava"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=EupeConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: Any = None
    image_seq_length: int | None = None
    vision_feature_select_strategy: Literal["default"] = "default"
    vision_feature_layer: int | list[int] = -1
    scale_factor: int = 1
    lm_head_bias: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = self.vision_config.to_dict()
        given: dict[str, Any] = self.vision_config or {}
        model_type = given.get("model_type", EupeConfig.model_type)
        if model_type != EupeConfig.model_type:
            raise ValueError(f"vision_config must be an EupeConfig, got model_type {model_type!r}.")
        # fields about the tower's own folder stay there
        self.vision_config = {key: value for key, value in given.items() if key not in FOLDER_FIELDS}
        super().__post_init__(**kwargs)
        self.validate_architecture()  # before impossible values give a number of tokens
        side = self.vision_config.image_size // (self.vision_config.patch_size * self.scale_factor)
        self.image_seq_length = side**2

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Does what transformers does, but refuses the configuration of another kind of model with a ValueError."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {config_dict['model_type']!r}, not an EUPE "
                "VLM. EupeLlavaForConditionalGeneration.from_vision_text joins an encoder and a language model."
            )
        return config_dict, kwargs

    def validate_architecture(self) -> None:
        """Raises a ValueError that names the field. `@strict` calls it."""
        if self.scale_factor < 1:
            raise ValueError(f"scale_factor must be at least 1, got {self.scale_factor}.")
        self.feature_layers(self.vision_feature_layer)

    def feature_layers(self, layers: int | list[int]) -> list[int]:
        """Returns hidden states of the tower, counted from 0, for layers given as in `vision_feature_layer`.

        Raises:
            ValueError: The tower lacks a layer, or it is a stage of a ConvNeXt without a norm.
        """
        tower = self.vision_config
        count = tower.num_stages + 1
        chosen = [layers] if isinstance(layers, int) else list(layers)
        if not chosen or not all(-count <= layer < count for layer in chosen):
            raise ValueError(f"vision_feature_layer must be from {-count} to {count - 1}, got {layers}.")
        chosen = [layer % count for layer in chosen]
        if tower.backbone_type == "convnext" and chosen != [count - 1]:
            message = "vision_feature_layer of a ConvNeXt must be -1"
            raise ValueError(f"{message}, got {layers}: only its last stage has a norm.")
        return chosen
