# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the EUPE encoders: one class for the ViTs and the ConvNeXts."""

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional, TypeVar

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig

from .reading_eupe_configuration import EupeFieldsMixin


# The licence of the published weights, as the metadata of a model card names it. The code is Apache-2.0.
WEIGHTS_LICENSE = {
    "license": "other",
    "license_name": "fair-noncommercial-research-license",
    "license_link": "https://github.com/facebookresearch/EUPE/blob/main/LICENSE.md",
}
# The defaults of each family: EUPE ViT-S and EUPE ConvNeXt-T.
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {
        "patch_size": 16, "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
        "num_register_tokens": 4, "rope_theta": 100.0, "layer_norm_eps": 1e-5, "layerscale_value": 1e-5,
    },
    "convnext": {
        "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768], "layer_norm_eps": 1e-6, "layerscale_value": 1e-6,
    },
}  # fmt: skip

# What only the other family has: it stays `None`, and no model reads it.
_OF_THE_OTHER = {
    "vit": ("depths", "hidden_sizes"),
    "convnext": (
        "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_register_tokens", "rope_theta",
        "rope_periods", "pos_embed_rescale",
    ),
}  # fmt: skip

# They belong to the folder that a configuration was read from, not to an encoder inside another model.
FOLDER_FIELDS = ("auto_map", "architectures", "transformers_version", "_name_or_path")

# What no encoder has, and would take all memory or time before anything else could refuse it.
_MOST = {
    "num_labels": 1_000_000, "num_hidden_layers": 1000, "depths": 1000,
    **dict.fromkeys(("hidden_size", "intermediate_size", "hidden_sizes", "num_register_tokens", "num_channels",
                     "patch_size", "image_size", "detection_hidden_size", "num_depth_bins"), 65_536),
}  # fmt: skip

_STEM_STRIDE = 4  # of the ConvNeXts; each later stage halves the side once more

_T = TypeVar("_T")
if TYPE_CHECKING:  # a caller may leave these fields out or pass None; the models that read them always find a value
    Filled = Annotated[_T, "filled in when the configuration is built"]
else:
    Filled = Optional
DEFAULT: Any = None


@strict
class EupeConfig(EupeFieldsMixin, BackboneConfigMixin, PreTrainedConfig):
    """Architecture of an EUPE encoder, of either family. Without arguments it is EUPE ViT-S.

    `variant_config("eupe-s")` of the package gives the six published architectures by name.

    Args:
        backbone_type: Family of the encoder. Fields of the other family must not be set.
        num_channels: Channels of the input image.
        image_size: Side in pixels to which the image processor of this model resizes by default. The encoder itself
            takes any size.
        patch_size: Stride in pixels of the dense features: 16 for the ViTs. For a ConvNeXt it follows from `depths`:
            32 with four stages.
        hidden_size: Width of the features. For a ConvNeXt it follows from `hidden_sizes`.
        num_hidden_layers: ViT: number of blocks.
        num_attention_heads: ViT: heads per block. The width of a head must be a multiple of 4.
        intermediate_size: ViT: width of the MLP, by default 4 times `hidden_size`.
        num_register_tokens: ViT: register tokens between class token and patches (upstream: storage tokens).
        rope_theta: ViT: base of the rotary periods `theta ** (2 k / (head_dim / 2))`.
        rope_periods: ViT: the `head_dim / 4` rotary periods themselves, for checkpoints that do not follow
            `rope_theta`.
        pos_embed_rescale: ViT, training only: each forward pass multiplies the patch coordinates by a factor drawn
            log-uniformly from [1 / value, value]. 2.0 as published; `None` turns it off.
        depths: ConvNeXt: blocks per stage. On a ViT each block counts as one stage.
        hidden_sizes: ConvNeXt: width per stage. On a ViT `hidden_size` for each block.
        hidden_act: Activation of the MLPs; "gelu" is the exact (erf) one.
        layer_norm_eps: Epsilon of every norm: 1e-5 for the ViTs, 1e-6 for the ConvNeXts.
        layerscale_value: Initial value of the learned vectors that scale each residual branch: 1e-5 for the ViTs, 1e-6
            for the ConvNeXts.
        drop_path_rate: Training only: probability that a sample skips the residual branches of the last block
            (stochastic depth). It grows linearly over the blocks, from 0 for the first. In [0, 1).
        initializer_range: Standard deviation of the truncated normal that initialises weights.
        apply_layernorm: `EupeBackbone`: pass the feature maps through the final norm (ViT: every map; ConvNeXt: the
            last stage, the only one that has a norm).
        reshape_hidden_states: `EupeBackbone`, ViT: give maps (B, C, H, W); `False` gives (B, 1 + H * W, C), class
            token first, without registers, as DPT reads them.
        return_class_token: `EupeBackbone`: also give the global feature of each chosen stage.
        classify_patch_mean: Image classification: read the mean of the patch features beside the global feature.
        head_dropout: Dense heads: share of channels dropped in training, in [0, 1).
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
    patch_size: Filled[int] = DEFAULT
    hidden_size: Filled[int] = DEFAULT
    num_hidden_layers: Filled[int] = DEFAULT
    num_attention_heads: Filled[int] = DEFAULT
    intermediate_size: Filled[int] = DEFAULT
    num_register_tokens: Filled[int] = DEFAULT
    rope_theta: Filled[float | int] = DEFAULT
    rope_periods: list[float] | None = None
    pos_embed_rescale: float | int | None = 2.0
    depths: Filled[list[int]] = DEFAULT
    hidden_sizes: Filled[list[int]] = DEFAULT
    hidden_act: str = "gelu"
    layer_norm_eps: Filled[float] = DEFAULT
    layerscale_value: Filled[float | int] = DEFAULT
    drop_path_rate: float | int = 0.0
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
        kwargs.pop("stage_names", None)  # of an older file: they follow from the architecture
        if self.backbone_type == "convnext" and self.pos_embed_rescale == type(self).pos_embed_rescale:
            self.pos_embed_rescale = None
        for name in _OF_THE_OTHER[self.backbone_type]:
            if getattr(self, name) is not None:
                other = "ConvNeXt" if self.backbone_type == "vit" else "ViT"
                found = f"backbone_type is {self.backbone_type!r}"
                raise ValueError(f"{name} describes a {other}; {found}: leave {name} out.")
        for name, value in FAMILY_DEFAULTS[self.backbone_type].items():
            if getattr(self, name) is None:
                setattr(self, name, copy.copy(value))
        self._check_bounds(kwargs.get("num_labels"))
        if self.backbone_type == "vit":
            if self.intermediate_size is None:
                self.intermediate_size = 4 * self.hidden_size
            # stage i of the backbone contract is block i: tools that read the lengths of these lists count right
            self.depths = [1] * self.num_hidden_layers
            self.hidden_sizes = [self.hidden_size] * self.num_hidden_layers
        else:
            self._derive_from_stages()
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, self.num_stages + 1))]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def _check_bounds(self, num_labels: Any) -> None:
        for name, most in _MOST.items():  # before lists of such lengths are made
            given = num_labels if name == "num_labels" else getattr(self, name)
            values = given if isinstance(given, list) else [given]
            if len(values) > 1000 or any(isinstance(value, int) and value > most for value in values):
                raise ValueError(f"{name} must be at most {most:,}, got {str(given)[:80]}.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, but overrides are checked, and other fields follow from them."""
        overrides = {name: kwargs.pop(name) for name in EupeConfig.__annotations__ if name in kwargs}
        stale = set()
        if overrides.keys() & {"num_hidden_layers", "depths"}:
            stale |= {"out_features", "out_indices"}
        if overrides.keys() & {"depths", "hidden_sizes"}:
            stale |= {"hidden_size", "patch_size"}
        kept = {name: value for name, value in config_dict.items() if name not in stale}
        return super().from_dict({**kept, **overrides}, **kwargs)

    def _derive_from_stages(self) -> None:
        for name in ("depths", "hidden_sizes"):
            self._require(min(getattr(self, name), default=0) >= 1, name, "list at least one stage, each at least 1")
        if len(self.depths) != len(self.hidden_sizes):
            raise ValueError(
                f"depths {self.depths} and hidden_sizes {self.hidden_sizes} must have one entry per stage, got "
                f"{len(self.depths)} and {len(self.hidden_sizes)}."
            )
        derived = {"hidden_size": self.hidden_sizes[-1], "patch_size": self.stage_stride(-1)}
        for name, value in derived.items():
            given = getattr(self, name)
            if given not in (None, value):
                advice = f"leave {name} out or change stages"
                raise ValueError(f"{name} of this ConvNeXt is {value}, got {given}: {advice}.")
            setattr(self, name, value)

    def _require(self, holds: bool, name: str, what: str) -> None:
        if not holds:
            raise ValueError(f"{name} must {what}, got {getattr(self, name)}.")

    def validate_architecture(self) -> None:
        """Part of `@strict`: sizes are positive and fit each other. Raises `ValueError` naming the field."""
        sizes = ["num_channels", "image_size", "patch_size", "hidden_size", "num_labels"]
        if self.backbone_type == "vit":
            sizes += ["num_hidden_layers", "num_attention_heads", "intermediate_size"]
        for name in sizes:
            self._require((getattr(self, name) or 0) >= 1, name, "be at least 1")
        self._require(0 < self.layer_norm_eps < math.inf, "layer_norm_eps", "be positive")
        self._require(math.isfinite(self.layerscale_value), "layerscale_value", "be finite")
        self._require(0 <= self.initializer_range < math.inf, "initializer_range", "not be negative")
        for name in ("drop_path_rate", "head_dropout"):
            self._require(0 <= getattr(self, name) < 1, name, "be at least 0 and below 1")
        if self.num_depth_bins < 2 or not 0 < self.min_depth < self.max_depth < math.inf:
            found = f"{self.num_depth_bins} from {self.min_depth} to {self.max_depth}"
            raise ValueError(
                f"Depth bins must be at least 2, from min_depth above 0 to a larger max_depth, got {found}."
            )
        width = self.detection_hidden_size
        self._require(width >= 8 and width % 8 == 0, "detection_hidden_size", "be a multiple of 8")
        if self.detection_strides is not None:
            powers = [math.log2(stride / self.patch_size) for stride in self.detection_strides if stride > 0]
            is_ascending = powers == sorted(set(powers)) and len(powers) == len(self.detection_strides) > 0
            what = f"ascend and be {self.patch_size}, the stride of the features, times powers of 2"
            self._require(is_ascending and all(p == round(p) for p in powers), "detection_strides", what)
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is unknown; choose from {', '.join(sorted(ACT2FN))}.")
        if self.backbone_type == "vit":
            self._validate_vit()

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
        self._require(self.num_register_tokens >= 0, "num_register_tokens", "not be negative")
        rescale = self.pos_embed_rescale
        self._require(rescale is None or 1 <= rescale < math.inf, "pos_embed_rescale", "be at least 1 or None")
        if self.rope_periods is None:
            self._require(0 < self.rope_theta < math.inf, "rope_theta", "be positive")
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

    @property
    def out_channels(self) -> list[int]:
        """Channels of the feature maps of the stages in `out_indices`."""
        widths = [self.hidden_sizes[0], *self.hidden_sizes]
        return [widths[index] for index in self.out_indices]

    @property
    def out_strides(self) -> list[int]:
        """Strides in pixels of the feature maps of the stages in `out_indices`."""
        return [self.stage_stride(index) for index in self.out_indices]

    def selected_hidden_states(self, requested: bool | int | Sequence[int] | None) -> frozenset[int]:
        """Hidden states that a forward call returns, counted from the stem (0), for its `output_hidden_states`.

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
        for name in _OF_THE_OTHER[self.backbone_type]:
            output.pop(name, None)
        return output


class EupeEncoderConfigMixin(EupeFieldsMixin):
    """For configurations that hold an `encoder_config`."""

    model_type: str
    encoder_config: Any

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> tuple[dict, dict]:
        """As in transformers, but also reads the folder of an encoder: its configuration becomes `encoder_config`."""
        parent: Any = super()
        config_dict, kwargs = parent.get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == EupeConfig.model_type:
            config_dict = {"model_type": cls.model_type, "encoder_config": config_dict}
        return config_dict, kwargs

    @property
    def encoder(self) -> EupeConfig:
        """`encoder_config`, which is an `EupeConfig` once the configuration is built."""
        return self.encoder_config
