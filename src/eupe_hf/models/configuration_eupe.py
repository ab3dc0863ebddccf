# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the EUPE encoders: one class for the ViTs and the ConvNeXts."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .sharing_eupe import EupeNamesMixin


# The licence of the published weights, as the metadata of a model card names it. The code is Apache-2.0.
WEIGHTS_LICENSE = {
    "license": "other",
    "license_name": "fair-noncommercial-research-license",
    "license_link": "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md",
}


# What each family is built with where the caller says nothing: EUPE ViT-S and EUPE ConvNeXt-T.
_VIT_DEFAULTS = {
    "patch_size": 16,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_register_tokens": 4,
    "rope_theta": 100.0,
    "layer_norm_eps": 1e-5,
    "layerscale_value": 1e-5,
}


_CONVNEXT_DEFAULTS = {
    "depths": [3, 3, 9, 3],
    "hidden_sizes": [96, 192, 384, 768],
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1e-6,
}


_VIT_ONLY = (
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "num_register_tokens",
    "rope_theta",
    "rope_periods",
    "pos_embed_rescale",
)


# They belong to the folder that a configuration was read from, not to an encoder inside another model.
FOLDER_FIELDS = ("auto_map", "architectures", "transformers_version", "_name_or_path")


_STEM_STRIDE = 4  # of the ConvNeXts; each later stage halves the side once more


@strict
class EupeConfig(EupeNamesMixin, BackboneConfigMixin, PreTrainedConfig):
    """Architecture of an EUPE encoder, of either family. Without arguments it is EUPE ViT-S.

    Fields that belong to the other family stay `None` and must not be set. `variant_config("eupe-s")` of the
    package gives the six published architectures by name.

    Args:
        backbone_type: Family of the encoder.
        num_channels: Channels of the input image.
        image_size: Side in pixels to which the image processor of this model squashes by default. The encoder itself
            takes any size.
        patch_size: Stride in pixels of the dense features: 16 for the ViTs; for a ConvNeXt the stride of its last
            stage (32 with four stages), which follows from `depths` and need not be given.
        hidden_size: Width of the features. For a ConvNeXt it follows from `hidden_sizes`.
        num_hidden_layers: ViT: number of blocks.
        num_attention_heads: ViT: heads per block. The width of a head must be a multiple of 4.
        intermediate_size: ViT: width of the MLP, by default 4 times `hidden_size`.
        num_register_tokens: ViT: register tokens between class token and patches (upstream: storage tokens).
        rope_theta: ViT: base of the rotary periods `theta ** (2 k / (head_dim / 2))`.
        rope_periods: ViT: the rotary periods themselves, `head_dim / 4` of them, where a checkpoint carries others
            than `rope_theta` gives.
        pos_embed_rescale: ViT, training only: patch coordinates are multiplied by a factor drawn log-uniformly from
            [1 / value, value], once per forward pass. 2.0 as published; `None` turns it off.
        depths: ConvNeXt: blocks per stage. On a ViT each block counts as one stage.
        hidden_sizes: ConvNeXt: width per stage. On a ViT `hidden_size` for each block.
        hidden_act: Activation of the MLPs; "gelu" is the exact (erf) one.
        layer_norm_eps: Epsilon of every norm: 1e-5 for the ViTs, 1e-6 for the ConvNeXts.
        layerscale_value: Initial value of the learned vectors that scale each residual branch: 1e-5 for the ViTs, 1e-6
            for the ConvNeXts.
        initializer_range: Standard deviation of the truncated normal that initialises weights.
        apply_layernorm: `EupeBackbone`: pass the feature maps through the final norm (ViT: every map, ConvNeXt: the
            last stage, the only one that has a norm).
        reshape_hidden_states: `EupeBackbone`, ViT: give maps (B, C, H, W); `False` gives (B, 1 + H * W, C), class
            token first, registers left out, as DPT reads them.
        return_class_token: `EupeBackbone`: also give the global feature of each chosen stage.
        classify_patch_mean: Image classification: read the mean of the patch features beside the global feature.
        head_dropout: Dense heads: share of channels dropped in training.
        semantic_loss_ignore_index: Segmentation: label of pixels that do not count.
        num_depth_bins: Depth estimation: number of bins, spread evenly from `min_depth` to `max_depth`.
        min_depth: Depth estimation: the nearest bin, in metres.
        max_depth: Depth estimation: the farthest bin, in metres.
        detection_hidden_size: Object detection: width of the feature pyramid and the head, a multiple of 8.
        detection_strides: Object detection: strides in pixels of the pyramid's levels, ascending, the features' stride
            times powers of 2. Default: half, once and twice the patch size of a ViT; 8, 16 and 32.
        out_features: `EupeBackbone` and heads: names of the stages to return, "stem", "stage1", ... Default: the last.
        out_indices: The same by number; 0 is the stem, so block i of a ViT (counted from 0) is i + 1.

    Raises:
        huggingface_hub.errors.StrictDataclassError: A field has the wrong type, or the shape is impossible.
        ValueError: A field of the other family, stages that contradict each other, or stages that do not exist.

    Example:

    ```python
    >>> from eupe_hf import EupeConfig, EupeModel

    >>> config = EupeConfig(hidden_size=192, num_attention_heads=3)
    >>> config.num_prefix_tokens, config.intermediate_size
    (5, 768)
    >>> model = EupeModel(config)  # random weights: for pretrained ones use EupeModel.from_pretrained

    ```
    """

    model_type = "eupe"

    backbone_type: Literal["vit", "convnext"] = "vit"
    num_channels: int = 3
    image_size: int = 256
    patch_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    num_attention_heads: int | None = None
    intermediate_size: int | None = None
    num_register_tokens: int | None = None
    rope_theta: float | int | None = None
    rope_periods: list[float] | None = None
    pos_embed_rescale: float | int | None = 2.0
    depths: list[int] | None = None
    hidden_sizes: list[int] | None = None
    hidden_act: str = "gelu"
    layer_norm_eps: float | None = None
    layerscale_value: float | int | None = None
    initializer_range: float = 0.02
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    return_class_token: bool = False
    classify_patch_mean: bool = False
    head_dropout: float | int = 0.1
    semantic_loss_ignore_index: int = 255
    num_depth_bins: int = 256
    min_depth: float | int = 0.001
    max_depth: float | int = 10.0
    detection_hidden_size: int = 128
    detection_strides: list[int] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        # An older file may list the stages; they follow from the architecture, which the caller may have changed.
        kwargs.pop("stage_names", None)
        fill = self._fill_vit if self.backbone_type == "vit" else self._fill_convnext
        fill()
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but what is overridden takes part in the checks and in what follows from it.

        transformers would set it on the finished object and leave, for instance, the stages as they were.
        """
        overrides = {name: kwargs.pop(name) for name in EupeConfig.__annotations__ if name in kwargs}
        stale = set()
        if overrides.keys() & {"num_hidden_layers", "depths"}:
            stale |= {"out_features", "out_indices"}
        if overrides.keys() & {"depths", "hidden_sizes"}:
            stale |= {"hidden_size", "patch_size"}
        kept = {name: value for name, value in config_dict.items() if name not in stale}
        return super().from_dict({**kept, **overrides}, **kwargs)

    def _fill(self, defaults: dict[str, Any]) -> None:
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, list(value) if isinstance(value, list) else value)

    def _fill_vit(self) -> None:
        for name in ("depths", "hidden_sizes"):
            if getattr(self, name):
                raise ValueError(f"{name} describes a ConvNeXt; backbone_type is 'vit': leave {name} out.")
        self._fill(_VIT_DEFAULTS)
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        # stage i of the backbone contract is block i: tools that read the lengths of these lists count right
        self.depths = [1] * self.num_hidden_layers
        self.hidden_sizes = [self.hidden_size] * self.num_hidden_layers

    def _fill_convnext(self) -> None:
        if self.pos_embed_rescale == type(self).pos_embed_rescale:
            self.pos_embed_rescale = None
        for name in _VIT_ONLY:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} describes a ViT; backbone_type is 'convnext': leave {name} out.")
        self._fill(_CONVNEXT_DEFAULTS)
        stages = {"depths": self.depths, "hidden_sizes": self.hidden_sizes}
        for name, value in stages.items():
            if not value or min(value) < 1:
                raise ValueError(f"{name} must list at least one stage, each at least 1, got {value}.")
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths {self.depths} and hidden_sizes {self.hidden_sizes} must have one entry per stage, got "
                f"{len(self.depths)} and {len(self.hidden_sizes)}."
            )
        derived = {"hidden_size": self.hidden_sizes[-1], "patch_size": _STEM_STRIDE * 2 ** (len(self.depths) - 1)}
        for name, value in derived.items():
            given = getattr(self, name)
            if given not in (None, value):
                raise ValueError(
                    f"{name} of this ConvNeXt is {value}, got {given}: leave {name} out or change stages."
                )
            setattr(self, name, value)

    def validate_architecture(self) -> None:
        """Part of `@strict`: sizes are positive and fit each other. Raises `ValueError` naming the field."""
        sizes = ["num_channels", "image_size", "patch_size", "hidden_size"]
        if self.backbone_type == "vit":
            sizes += ["num_hidden_layers", "num_attention_heads", "intermediate_size"]
        for name in sizes:
            if getattr(self, name) is None or getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.layer_norm_eps < math.inf:
            raise ValueError(f"layer_norm_eps must be positive, got {self.layer_norm_eps}.")
        if not math.isfinite(self.layerscale_value):
            raise ValueError(f"layerscale_value must be finite, got {self.layerscale_value}.")
        if not 0 <= self.initializer_range < math.inf:
            raise ValueError(f"initializer_range must not be negative, got {self.initializer_range}.")
        if self.num_labels < 1:
            raise ValueError("num_labels must be at least 1, got 0.")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"head_dropout must be at least 0 and below 1, got {self.head_dropout}.")
        if self.num_depth_bins < 2 or not 0 < self.min_depth < self.max_depth < math.inf:
            raise ValueError(
                "Depth bins must be at least 2, from min_depth above 0 to a larger max_depth, got "
                f"{self.num_depth_bins} from {self.min_depth} to {self.max_depth}."
            )
        if self.detection_hidden_size < 8 or self.detection_hidden_size % 8:
            raise ValueError(f"detection_hidden_size must be a multiple of 8, got {self.detection_hidden_size}.")
        if self.detection_strides is not None:
            self._validate_detection_strides()
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown; choose from {', '.join(sorted(ACT2FN))}.")
        if self.backbone_type == "vit":
            self._validate_vit()

    def _validate_detection_strides(self) -> None:
        strides = self.detection_strides
        powers = [math.log2(stride / self.patch_size) for stride in strides if stride > 0]
        is_ascending = all(a < b for a, b in pairwise(strides))
        if not powers or len(powers) < len(strides) or not is_ascending or any(p != round(p) for p in powers):
            raise ValueError(
                f"detection_strides must ascend and be {self.patch_size}, the stride of the features, times powers of "
                f"2, got {strides}."
            )

    def _validate_vit(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be divisible by num_attention_heads {self.num_attention_heads}."
            )
        head_dim = self.hidden_size // self.num_attention_heads
        if head_dim % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_attention_heads {self.num_attention_heads} gives heads of "
                f"width {head_dim}; rotary position embedding over two axes needs a multiple of 4."
            )
        if self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens must not be negative, got {self.num_register_tokens}.")
        if self.pos_embed_rescale is not None and not 1 <= self.pos_embed_rescale < math.inf:
            raise ValueError(f"pos_embed_rescale must be at least 1 or None, got {self.pos_embed_rescale}.")
        if self.rope_periods is None:
            if not 0 < self.rope_theta < math.inf:
                raise ValueError(f"rope_theta must be positive, got {self.rope_theta}.")
        elif len(self.rope_periods) != head_dim // 4 or not all(0 < p < math.inf for p in self.rope_periods):
            raise ValueError(
                f"rope_periods must be {head_dim // 4} positive numbers (a quarter of the head width {head_dim}), got "
                f"{len(self.rope_periods)}: {self.rope_periods}."
            )

    @property
    def num_stages(self) -> int:
        """Stages of the backbone contract after the stem: blocks of a ViT, stages of a ConvNeXt."""
        return len(self.depths)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches in `last_hidden_state`: class token and registers; 0 for a ConvNeXt."""
        return 1 + self.num_register_tokens if self.backbone_type == "vit" else 0

    def stage_stride(self, index: int) -> int:
        """Stride in pixels of the feature map of a stage of the backbone contract: 0 is the stem, -1 the last."""
        if self.backbone_type == "vit":
            return self.patch_size
        return _STEM_STRIDE * 2 ** max(0, index % (self.num_stages + 1) - 1)

    def with_detection_stages(self) -> "EupeConfig":
        """The configuration with the stages that a detector reads.

        A ConvNeXt whose last stage alone is chosen, as by default, gets its last three: a detector needs the finer
        maps. Any other choice stays. This configuration is left as it is.
        """
        count = self.num_stages
        if self.backbone_type == "vit" or count == 1 or list(self.out_indices) not in ([count], [-1]):
            return self
        config = copy.deepcopy(self)
        config.out_indices = list(range(max(1, count - 2), count + 1))
        return config

    def selected_hidden_states(self, requested: bool | int | Sequence[int] | None) -> frozenset[int]:
        """Which hidden states a forward call returns, counted from the stem (0).

        Args:
            requested: The caller's `output_hidden_states`: a flag, an index, or indices, negative ones from the end;
                `None` takes the setting of this configuration. Indices that do not exist select nothing.
        """
        requested = self.output_hidden_states if requested is None else requested
        count = self.num_stages + 1
        if isinstance(requested, bool):
            return frozenset(range(count)) if requested else frozenset()
        indices = [requested] if isinstance(requested, int) else requested
        return frozenset(index % count for index in indices if -count <= index < count)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary, without those that follow from others."""
        output = super().to_dict()
        output.pop("stage_names", None)
        absent = ("depths", "hidden_sizes") if self.backbone_type == "vit" else _VIT_ONLY
        for name in absent:
            output.pop(name, None)
        return output


class EupeEncoderConfigMixin(EupeNamesMixin):
    """What configurations share that hold an encoder's, as `encoder_config`."""

    model_type: str
    encoder_config: Any

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers. The configuration of an encoder alone is taken for the `encoder_config` of this one."""
        parent: Any = super()
        config_dict, kwargs = parent.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == EupeConfig.model_type:
            config_dict = {"model_type": cls.model_type, "encoder_config": config_dict}
        return config_dict, kwargs

    @property
    def encoder(self) -> EupeConfig:
        """`encoder_config`, which is an `EupeConfig` once the configuration is built."""
        return self.encoder_config
