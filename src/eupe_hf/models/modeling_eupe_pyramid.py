# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""A feature pyramid for decoders that need maps of several strides: a ViT has only one."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_eupe_pyramid import EupePyramidConfig
from .modeling_eupe import EupeBackbone, EupePreTrainedModel


class EupeFeaturePyramid(nn.Module):
    """Maps of one width at the strides wanted, each made from the given map with the nearest stride.

    For a ViT this is ViTDet's simple feature pyramid (arXiv 2203.16527, section 3): finer maps by transposed
    convolutions, coarser ones by max pooling, all from one map. A ConvNeXt's stages have several strides already. Maps
    of the same stride, from layers of a ViT, are joined first. The decoder may add a path from coarse to fine maps.

    Args:
        in_channels: Width of each given map.
        in_strides: Stride in pixels of each given map, a power of 2.
        out_strides: Strides of the new maps, powers of 2, ascending.
        out_channels: Width of the new maps.
    """

    def __init__(
        self, in_channels: Sequence[int], in_strides: Sequence[int], out_strides: Sequence[int], out_channels: int
    ):
        super().__init__()
        widths = dict.fromkeys(in_strides, 0)
        for width, stride in zip(in_channels, in_strides, strict=True):
            widths[stride] += width
        self.in_strides = tuple(in_strides)
        self.sources = nearest_strides(in_strides, out_strides)
        self.levels = nn.ModuleList(
            EupePyramidLevel(widths[source], source, out, out_channels)
            for source, out in zip(self.sources, out_strides, strict=True)
        )

    def forward(
        self, feature_maps: Sequence[torch.Tensor], chosen: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Maps (B, C_i, H / in_stride_i, W / in_stride_i) to one (B, out_channels, H / stride, W / stride) each.

        `chosen` are the numbers of the levels to compute, by default all. Maps after the last one that these read
        may be left out, see `count_read`.
        """
        groups: dict[int, list[torch.Tensor]] = {}
        for stride, feature_map in zip(self.in_strides, feature_maps, strict=False):
            groups.setdefault(stride, []).append(feature_map)
        joined = {stride: torch.cat(maps, dim=1) if len(maps) > 1 else maps[0] for stride, maps in groups.items()}
        chosen = range(len(self.levels)) if chosen is None else chosen
        return tuple(self.levels[i](joined[self.sources[i]]) for i in chosen)


def nearest_strides(in_strides: Sequence[int], out_strides: Sequence[int]) -> tuple[int, ...]:
    """Which of the given strides each new map is made from."""
    # of two equally near strides the finer one, which has lost less
    return tuple(min(in_strides, key=lambda s: (abs(math.log2(s / out)), s)) for out in out_strides)


def count_read(in_strides: Sequence[int], out_strides: Sequence[int]) -> int:
    """How many of the given maps, from the first, a pyramid of these strides reads; the rest need not be computed."""
    read = nearest_strides(in_strides, out_strides)
    return 1 + max(i for i, stride in enumerate(in_strides) if stride in read)


class EupePyramidLevel(nn.Module):
    """One level of the pyramid: resampling to its stride, then a 1x1 and a 3x3 convolution, each with a norm."""

    def __init__(self, in_channels: int, in_stride: int, out_stride: int, out_channels: int):
        super().__init__()
        steps = round(math.log2(in_stride / out_stride))
        resample: list[nn.Module] = []
        width = in_channels
        for i in range(steps):
            if i:
                resample += [EupeChannelLayerNorm(width), nn.GELU()]
            resample.append(nn.ConvTranspose2d(width, max(width // 2, out_channels), kernel_size=2, stride=2))
            width = max(width // 2, out_channels)
        resample += [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True) for _ in range(-steps)]
        self.resample = nn.Sequential(*resample)
        self.project = nn.Sequential(
            nn.Conv2d(width, out_channels, kernel_size=1, bias=False),
            EupeChannelLayerNorm(out_channels),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False),
            EupeChannelLayerNorm(out_channels),
        )

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, h, w) to (B, out_channels, h * in_stride / out_stride, ...); coarser sides round up."""
        return self.project(self.resample(feature_map))


class EupeChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of maps (B, C, H, W); "LayerNorm" in its name makes transformers initialise it."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same shape; each position has mean 0 and variance 1 before weight and bias."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EupePyramidBackbone(BackboneMixin, EupePreTrainedModel):
    """An EUPE encoder, `self.eupe`, with a feature pyramid: a backbone for decoders that need several strides.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupePyramidBackbone, EupePyramidConfig, variant_config

    >>> config = EupePyramidConfig(encoder_config=variant_config("eupe-t"), strides=[8, 16, 32], hidden_size=64)
    >>> backbone = EupePyramidBackbone(config).eval()  # random; from_pretrained("eupe-t") for a pretrained encoder
    >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 64, 64)).feature_maps]
    [(1, 64, 8, 8), (1, 64, 4, 4), (1, 64, 2, 2)]
    >>> backbone.channels
    [64, 64, 64]

    ```
    """

    config_class = EupePyramidConfig
    has_attentions = False  # the encoder's attentions belong to its tokens, not to these maps

    def __init__(self, config: EupePyramidConfig):
        super().__init__(config)
        self.eupe, width = EupeBackbone(config.encoder), config.hidden_size
        channels, strides = config.encoder.out_channels, config.encoder.out_strides
        self.pyramid = EupeFeaturePyramid(channels, strides, config.strides, width)
        self.num_features = [width] * len(config.strides)
        self.post_init()
        self.freeze_unused()

    @classmethod
    def _auto_classes(cls) -> dict[str, type]:
        return {"AutoConfig": EupePyramidConfig, "AutoBackbone": cls}

    def freeze_unused(self) -> None:
        """Freeze the levels that are not chosen, and what only they need of the encoder; see `EupeBackbone`."""
        for i, level in enumerate(self.pyramid.levels):
            if i not in self.out_indices:
                level.requires_grad_(False)
        self.eupe.needed = self._needed()
        self.eupe.freeze_unused()

    def _needed(self) -> list[int]:
        chosen, config = [self.config.strides[i] for i in self.out_indices], self.config.encoder
        return config.out_indices[: count_read(config.out_strides, chosen)]

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Feature maps at the strides in `config.out_features`.

        Args:
            pixel_values: (B, num_channels, H, W), normalised; H and W should be multiples of the largest stride.
            **kwargs: `output_hidden_states`, `output_attentions` (both the encoder's), `return_dict`.

        Returns:
            `feature_maps`: one (B, hidden_size, H / stride, W / stride) per chosen stride, finest first.
            `hidden_states` and `attentions` as in `EupeModel.forward`.
        """
        outputs = self.eupe(pixel_values, stages=self._needed(), **kwargs)
        maps, states = self.pyramid(outputs.feature_maps, self.out_indices), outputs.hidden_states
        return BackboneOutput(feature_maps=maps, hidden_states=states, attentions=outputs.attentions)
