# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of what an encoder sees: principal components of patch features, and similarity to one patch.

Drawing is done with Pillow, which the package needs anyway; matplotlib was weighed, and would be a large dependency
for two colour maps.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw


# Anchors of the heat colours, from low to high: dark blue, violet, orange, light yellow.
_HEAT = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], dtype=np.float32)


def pca_rgb(feature_maps: torch.Tensor) -> torch.Tensor:
    """First three principal components of patch features as colours, as in figure 4 of the paper.

    Parts of an image whose features agree get the same colour. The components are found over all images of the batch
    together, so colours agree between them.

    Args:
        feature_maps: (B, C, H, W), for example a feature map of `EupeBackbone`. C and B * H * W at least 3.

    Returns:
        (B, H, W, 3), float32 in [0, 1]: each component between its 1st and 99th percentile. The sign of a component,
        which PCA leaves open, is chosen so that its largest loading is positive.

    Raises:
        ValueError: Not a batch of maps, or too few channels or positions for three components.
    """
    if feature_maps.ndim != 4:
        raise ValueError(f"feature_maps must be (batch, channels, height, width), got {tuple(feature_maps.shape)}.")
    batch, channels, height, width = feature_maps.shape
    if channels < 3 or batch * height * width < 3:
        raise ValueError(
            f"Three components need at least 3 channels and 3 positions, got {channels} and {batch * height * width}; "
            "use a larger image."
        )
    features = feature_maps.detach().float().cpu().permute(0, 2, 3, 1).reshape(-1, channels)
    features = features - features.mean(dim=0)
    _, _, loadings = torch.linalg.svd(features, full_matrices=False)
    loadings = loadings[:3]
    largest = loadings.gather(1, loadings.abs().argmax(dim=1, keepdim=True))
    components = features @ (loadings * largest.sign()).T  # (B * H * W, 3)
    low, high = components.quantile(0.01, dim=0), components.quantile(0.99, dim=0)
    scaled = (components - low) / (high - low).clamp_min(torch.finfo(torch.float32).eps)
    return scaled.clamp(0, 1).reshape(batch, height, width, 3)


def similarity_map(feature_map: torch.Tensor, row: int, column: int) -> torch.Tensor:
    """Cosine similarity of every patch to one patch.

    Args:
        feature_map: (C, H, W), one image's map.
        row: Row of the patch, counted in patches from the top.
        column: Column of the patch, counted in patches from the left.

    Returns:
        (H, W), float32 in [-1, 1]; 1 at the patch itself.

    Raises:
        ValueError: Not one map, or a patch outside it.
    """
    if feature_map.ndim != 3:
        raise ValueError(f"feature_map must be (channels, height, width), got {tuple(feature_map.shape)}.")
    height, width = feature_map.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"Patch ({row}, {column}) lies outside the grid of {height} x {width} patches.")
    features = torch.nn.functional.normalize(feature_map.detach().float().cpu(), dim=0)
    return torch.einsum("chw,c->hw", features, features[:, row, column])


def rgb_picture(colours: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Picture of an (H, W, 3) array of colours in [0, 1], enlarged to `size` (width, height) in pixels."""
    array = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array, "RGB").resize(size, Image.Resampling.BICUBIC)


def heat_picture(values: torch.Tensor, image: Image.Image, opacity: float = 0.7) -> Image.Image:
    """Lay (H, W) values as heat colours over an image: the lowest dark blue, the highest yellow."""
    values = values.float()
    span = (values.max() - values.min()).clamp_min(torch.finfo(torch.float32).eps)
    position = ((values - values.min()) / span).numpy() * (len(_HEAT) - 1)
    lower = np.clip(position.astype(int), 0, len(_HEAT) - 2)
    share = (position - lower)[..., None]
    colours = _HEAT[lower] * (1 - share) + _HEAT[lower + 1] * share
    heat = Image.fromarray(colours.round().astype(np.uint8), "RGB").resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image.convert("RGB"), heat, opacity)


def mark_patch(image: Image.Image, row: int, column: int, grid: tuple[int, int]) -> Image.Image:
    """Frame one patch of a `grid` (rows, columns) on a copy of an image."""
    marked = image.convert("RGB")
    height, width = image.height / grid[0], image.width / grid[1]
    box = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
    draw = ImageDraw.Draw(marked)
    draw.rectangle(box, outline="black", width=5)
    draw.rectangle(box, outline="white", width=3)
    return marked


def side_by_side(pictures: list[Image.Image], caption: str = "") -> Image.Image:
    """Pictures of equal height in a row, with a caption below where one is given."""
    gap, footer = 8, 28 if caption else 0
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    height = max(picture.height for picture in pictures)
    sheet = Image.new("RGB", (width, height + footer), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    if caption:
        ImageDraw.Draw(sheet).text((gap, height + 4), caption, fill="black", font_size=16)
    return sheet


__all__ = ["heat_picture", "mark_patch", "pca_rgb", "rgb_picture", "side_by_side", "similarity_map"]
