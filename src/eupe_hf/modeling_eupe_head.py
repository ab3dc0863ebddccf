# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the task heads share: an encoder with one head, and the layers of the linear dense heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import initialization as init

from .configuration_eupe import EupeConfig
from .modeling_eupe import EupeBackbone, EupeBackboneOutput, EupePreTrainedModel


class EupeTaskModel(EupePreTrainedModel):
    """An encoder, `self.eupe`, with one head, `self.head`. Subclasses name the head and its outputs.

    A head sees the encoder only through the contract of `EupeBackbone`: the feature maps and global features of the
    stages in `config.out_indices`. So every head works on all six models.
    """

    head_class: type[nn.Module]

    def __init__(self, config: EupeConfig):
        super().__init__(config)
        self.eupe = EupeBackbone(config)
        self.head = self.head_class(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EupeLinearDenseHead):
            init.normal_(module.conv.weight, std=0.01)  # as upstream's evaluation code
            init.zeros_(module.conv.bias)

    def freeze_backbone(self) -> None:
        """Train the head alone: no gradient for the encoder, and nothing random in it, also in train mode."""
        self.eupe.requires_grad_(False)

    def unfreeze_backbone(self) -> None:
        """Train the encoder with the head."""
        self.eupe.requires_grad_(True)

    def encode(self, pixel_values: torch.Tensor, **kwargs: Any) -> EupeBackboneOutput:
        """Feature maps and global features of the stages in `config.out_indices`."""
        return self.eupe(pixel_values, return_class_token=True, **kwargs)


class EupeLinearDenseHead(nn.Module):
    """Upstream's linear head for dense tasks: maps joined, dropout, batch norm, 1x1 convolution.

    Args:
        config: Stages to read (`out_indices`) and `head_dropout`.
        out_channels: Channels of the output.
    """

    def __init__(self, config: EupeConfig, out_channels: int):
        super().__init__()
        widths = [config.hidden_sizes[0], *config.hidden_sizes]
        channels = sum(widths[index] for index in config.out_indices)
        self.dropout = nn.Dropout2d(config.head_dropout)
        self.batch_norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, out_channels, kernel_size=1)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps (B, C_i, H_i, W_i), resized bilinearly to the first one's size, to (B, out_channels, H_0, W_0)."""
        size = feature_maps[0].shape[2:]
        joined = torch.cat([resize(feature_map, size) for feature_map in feature_maps], dim=1)
        return self.conv(self.batch_norm(self.dropout(joined)))


def resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize (B, C, H, W) bilinearly, with corners not aligned; computed in float32, returned in the dtype given."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return functional.interpolate(maps.float(), tuple(size), mode="bilinear", align_corners=False).to(maps.dtype)


def check_class_ids(labels: torch.Tensor, num_labels: int, hint: str) -> None:
    """Refuse class ids outside 0 to `num_labels` - 1. Not when compiled: looking at values would break the graph."""
    if torch.compiler.is_compiling() or not labels.numel():
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= num_labels:
        raise ValueError(
            f"labels go from {low} to {high}, but the model has {num_labels} classes, 0 to {num_labels - 1}. {hint}"
        )


def check_label_maps(labels: torch.Tensor, pixel_values: torch.Tensor, what: str) -> None:
    """Refuse label maps that are not (B, H, W) with the batch size of the images."""
    if labels.ndim != 3 or labels.shape[0] != pixel_values.shape[0]:
        raise ValueError(
            f"labels must be {what}, one map per image, ({pixel_values.shape[0]}, height, width), got "
            f"{tuple(labels.shape)}."
        )


__all__ = ["EupeLinearDenseHead", "EupeTaskModel"]
