# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What turns the features of an EUPE encoder into tokens of a language model."""

import torch
from torch import nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .configuration_eupe_llava import EupeLlavaConfig


class EupeLlavaProjector(LlavaMultiModalProjector):
    """LLaVA's two layers with GELU. Before them, `scale_factor` squared patches are joined into one token."""

    def __init__(self, config: EupeLlavaConfig):
        super().__init__(config)
        self.scale_factor, text_width = config.scale_factor, config.text_config.hidden_size
        if self.scale_factor > 1:
            count = len(config.feature_layers(config.vision_feature_layer))
            width = config.vision_config.hidden_size * count * self.scale_factor**2
            self.linear_1 = nn.Linear(width, text_width, bias=config.multimodal_projector_bias)

    def forward(self, image_features: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        """Projects (N, H * W, C), row-major, where C counts all layers.

        `grid` is H and W, by default a square. It is used if `scale_factor` is above 1. Returns (N, H // scale_factor
        * W // scale_factor, width of the language model), row-major; a ValueError if the grid does not fit.
        """
        if self.scale_factor > 1:
            side = round(image_features.shape[1] ** 0.5)
            grid = grid or (side, side)
            if grid[0] * grid[1] != image_features.shape[1]:
                raise ValueError(f"{image_features.shape[1]} features do not form a grid of {grid[0]} x {grid[1]}.")
            image_features = _join_squares(image_features.unflatten(1, grid), self.scale_factor)
        return super().forward(_in_dtype_of(self.linear_1, image_features))


def _in_dtype_of(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """Features as a layer takes them. A quantized one casts by itself: its weight has the dtype of its storage."""
    plain = getattr(layer, "base_layer", layer)  # with an adapter
    return features.to(plain.weight.dtype) if type(plain) is nn.Linear else features


def _join_squares(maps: torch.Tensor, side: int) -> torch.Tensor:
    """(N, H, W, C) to (N, H // side * W // side, side * side * C): each square row by row."""
    rows, columns = maps.shape[1] // side, maps.shape[2] // side
    maps = maps[:, : rows * side, : columns * side]
    squares = maps.unflatten(2, (columns, side)).unflatten(1, (rows, side))  # (N, rows, side, columns, side, C)
    return squares.transpose(2, 3).flatten(3).flatten(1, 2)
