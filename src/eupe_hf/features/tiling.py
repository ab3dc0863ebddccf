# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Feature maps of large images, tile by tile, each at a resolution that the encoder was trained for."""

import torch

from eupe_hf.models.modeling_eupe import EupeBackbone
from eupe_hf.models.modeling_eupe_head import average_windows


@torch.no_grad()
def tiled_feature_map(
    backbone: EupeBackbone,
    pixel_values: torch.Tensor,
    tile: int = 512,
    overlap: int | None = None,
    batch_size: int = 8,
) -> torch.Tensor:
    """Compute the last feature map of a large image in overlapping tiles, averaged where they overlap.

    A larger image gives a finer map. Encoded whole, every patch attends to the whole image, at a cost that grows with
    the square of its area. In tiles, every patch attends to its tile only, and time and memory grow with the area. The
    map of an image that fits into a tile is the one that `backbone` computes.

    Args:
        backbone: An encoder in eval mode.
        pixel_values: (B, num_channels, H, W), normalised; sides are multiples of the encoder's stride, 16 for the
            ViTs, 32 for the ConvNeXts.
        tile: Side of the tiles in pixels, a multiple of that stride.
        overlap: Pixels that neighbours share at least, a multiple of that stride below `tile`; by default half a tile,
            rounded down to a multiple.
        batch_size: Tiles per forward pass.

    Returns:
        (B, C, H / stride, W / stride), float32, normed as the backbone's maps are. The stride is the stage's:
        earlier stages of a ConvNeXt have finer maps.

    Raises:
        ValueError: A side, the tile or the overlap is not a multiple of the stride, or out of range.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeBackbone, variant_config
    >>> from eupe_hf.features import tiled_feature_map

    >>> backbone = EupeBackbone(variant_config("eupe-t")).eval()
    >>> tiled_feature_map(backbone, torch.zeros(1, 3, 128, 192), tile=64).shape
    torch.Size([1, 192, 8, 12])

    ```
    """
    patch = backbone.config.patch_size
    overlap = tile // 2 // patch * patch if overlap is None else overlap
    height, width = pixel_values.shape[2:]
    if height % patch or width % patch:
        raise ValueError(
            f"The sides of the images must be multiples of {patch}, got {height} x {width}: let the image processor "
            f"resize them, or pad with do_pad=True, size_divisor={patch}."
        )
    if tile < patch or tile % patch or overlap % patch or not 0 <= overlap < tile:
        raise ValueError(
            f"tile must be a multiple of {patch}, and overlap a smaller multiple or 0, got {tile} and {overlap}."
        )
    window, step = (min(tile, height), min(tile, width)), (tile - overlap, tile - overlap)
    stride = backbone.config.stage_stride(backbone.out_indices[-1])
    return average_windows(
        lambda views: backbone(views).feature_maps[-1], pixel_values, window, step, batch_size, stride
    )
