# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of tensors: feature maps, attention, label maps, depth, boxes.

Pillow draws them: the package needs it anyway, and matplotlib would be a large dependency for two colour maps.
"""

import colorsys
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.nn import functional
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput

from eupe_hf.staging import naming_full_disk, staged_file


# Anchors of the heat colours, from low to high: dark blue, violet, orange, light yellow.
_HEAT = np.array([(13, 8, 135), (126, 3, 168), (204, 71, 120), (248, 149, 64), (240, 249, 33)], dtype=np.float32)


def pca_rgb(feature_maps: torch.Tensor) -> torch.Tensor:
    """First three principal components of patch features as colours, as in figure 4 of the paper.

    Parts with similar features get similar colours. All images of the batch share one set of components, so colours
    agree between them.

    Args:
        feature_maps: (B, C, H, W), for example a feature map of `EupeBackbone`. C and B * H * W at least 3.

    Returns:
        (B, H, W, 3), float32 in [0, 1]: each component between its 1st and 99th percentile, with the sign that makes
        its largest loading positive.

    Raises:
        ValueError: `feature_maps` is not a batch of maps, or too small for three components.
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
    """Cosine similarity (H, W), float32 in [-1, 1], of every patch of a feature map (C, H, W) to one patch.

    Raises:
        ValueError: `feature_map` is not one map, or the patch (from 0 at the top left) lies outside it.
    """
    if feature_map.ndim != 3:
        raise ValueError(f"feature_map must be (channels, height, width), got {tuple(feature_map.shape)}.")
    height, width = feature_map.shape[1:]
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(f"Patch ({row}, {column}) lies outside the grid of {height} x {width} patches.")
    features = functional.normalize(feature_map.detach().float().cpu(), dim=0)
    return torch.einsum("chw,c->hw", features, features[:, row, column])


def mutual_matches(first: torch.Tensor, second: torch.Tensor, count: int = 20) -> list[tuple[int, int, int, int]]:
    """Match patches of two images that are each other's nearest, by cosine similarity.

    Args:
        first: (C, H, W), the feature map of an image.
        second: (C, h, w), the feature map of another; a ValueError if C differs.
        count: Largest number of matches; the most similar are kept.

    Returns:
        Row and column in the first map, then row and column in the second; the most similar first.
    """
    if first.ndim != 3 or second.ndim != 3 or len(first) != len(second):
        raise ValueError(f"The maps must be (C, H, W) with one C, got {tuple(first.shape)} and {tuple(second.shape)}.")
    columns, other_columns = first.shape[2], second.shape[2]
    normed = [functional.normalize(one.detach().float().cpu().flatten(1), dim=0) for one in (first, second)]
    similarity = normed[0].T @ normed[1]
    best, nearest = similarity.max(dim=1)
    is_mutual = similarity.argmax(dim=0)[nearest] == torch.arange(len(nearest))
    order = best.where(is_mutual, -2).argsort(descending=True)[: min(count, int(is_mutual.sum()))]
    return [(*divmod(i, columns), *divmod(int(nearest[i]), other_columns)) for i in order.tolist()]


def matches_picture(
    first: Image.Image,
    second: Image.Image,
    matches: Sequence[tuple[int, int, int, int]],
    grids: tuple[tuple[int, int], tuple[int, int]],
) -> Image.Image:
    """Draw two images side by side, with a line from each patch to its match, see `mutual_matches`.

    `grids` holds the rows and columns of patches of each image.
    """
    sheet = side_by_side([first.convert("RGB"), second.convert("RGB")])
    draw = ImageDraw.Draw(sheet)
    for number, (row, column, other_row, other_column) in enumerate(matches):
        start = _centre(first, row, column, grids[0])
        end = _centre(second, other_row, other_column, grids[1])
        end = (end[0] + sheet.width - second.width, end[1])
        colour = class_colour(number + 1)
        draw.line((*start, *end), fill=colour, width=2)
        for x, y in (start, end):
            draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour, outline="white")
    return sheet


def _centre(image: Image.Image, row: int, column: int, grid: tuple[int, int]) -> tuple[float, float]:
    return (column + 0.5) * image.width / grid[1], (row + 0.5) * image.height / grid[0]


def attention_picture(attention: torch.Tensor, image: Image.Image) -> Image.Image:
    """Draw the attention (heads, H, W) of one token to the patches as heat over the image, a picture for each head.

    Rows hold four heads where that fits, else three.
    """
    if attention.ndim != 3:
        raise ValueError(f"attention must be (heads, height, width), got {tuple(attention.shape)}.")
    pictures = [heat_picture(head, image) for head in attention]
    columns = 4 if len(pictures) % 4 == 0 else 3
    rows = [side_by_side(pictures[start : start + columns]) for start in range(0, len(pictures), columns)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + 8 for row in rows) - 8), "white")
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * (row.height + 8)))
    return sheet


def read_photograph(image: ImageInput, processor: BaseImageProcessor, resize: bool = True) -> Image.Image:
    """Read an image as the model sees it: upright, 16 bits kept; without `resize` in its own size."""
    options = {} if resize else {"do_resize": False, "do_center_crop": False}
    (pixels,) = processor(image, **options, do_normalize=False, return_tensors="pt")["pixel_values"]
    return rgb_picture(pixels.permute(1, 2, 0), (pixels.shape[2], pixels.shape[1]))


def rgb_picture(colours: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Picture of (H, W, 3) colours in [0, 1], resized to `size` (width, height) in pixels."""
    array = (colours.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(array, "RGB").resize(size, Image.Resampling.BICUBIC)


def _heat_colours(values: torch.Tensor) -> np.ndarray:
    """(H, W) values as (H, W, 3) uint8 colours, from the lowest to the highest."""
    values = values.detach().float().cpu()
    span = (values.max() - values.min()).clamp_min(torch.finfo(torch.float32).eps)
    position = ((values - values.min()) / span).numpy() * (len(_HEAT) - 1)
    lower = np.clip(position.astype(int), 0, len(_HEAT) - 2)
    share = (position - lower)[..., None]
    return (_HEAT[lower] * (1 - share) + _HEAT[lower + 1] * share).round().astype(np.uint8)


def heat_picture(values: torch.Tensor, image: Image.Image, opacity: float = 0.7) -> Image.Image:
    """Blend (H, W) values as heat colours over an image: the lowest dark blue, the highest yellow."""
    heat = Image.fromarray(_heat_colours(values), "RGB").resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image.convert("RGB"), heat, opacity)


def class_colour(index: int) -> tuple[int, int, int]:
    """Colour of a class, (red, green, blue) from 0 to 255; consecutive classes are far apart in hue."""
    golden_ratio = 0.618034
    red, green, blue = colorsys.hsv_to_rgb((0.05 + index * golden_ratio) % 1, 0.85, 0.95 if index % 2 else 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def segmentation_picture(
    label_map: torch.Tensor, image: Image.Image, id2label: Mapping[int, str], opacity: float = 0.55, entries: int = 12
) -> Image.Image:
    """Blend a label map (H, W) of class ids over an image, with a legend of its `entries` largest classes below."""
    labels = label_map.detach().cpu().long()
    ids, counts = labels.unique(return_counts=True)
    palette: np.ndarray = np.zeros((int(ids.max()) + 1, 3), dtype=np.uint8)
    for index in ids.tolist():
        palette[index] = class_colour(index)
    colours = Image.fromarray(palette[labels.numpy()], "RGB").resize(image.size, Image.Resampling.NEAREST)
    largest = ids[counts.argsort(descending=True, stable=True)][:entries].tolist()
    legend = [(class_colour(index), str(id2label.get(index, index))) for index in largest]
    return with_legend(Image.blend(image.convert("RGB"), colours, opacity), legend)


def depth_picture(depth: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    """Draw a depth map (H, W) in metres, near dark blue, far yellow, at `size` (width, height); its scale is below."""
    colours = Image.fromarray(_heat_colours(depth), "RGB").resize(size, Image.Resampling.BICUBIC)
    width, bar = size[0], 14
    sheet = Image.new("RGB", (width, size[1] + bar + 30), "white")
    sheet.paste(colours, (0, 0))
    scale = _heat_colours(torch.linspace(0, 1, width).expand(bar, width))
    sheet.paste(Image.fromarray(scale, "RGB"), (0, size[1] + 4))
    draw = ImageDraw.Draw(sheet)
    near, far = f"{float(depth.min()):.2f} m", f"{float(depth.max()):.2f} m"
    draw.text((4, size[1] + bar + 8), near, fill="black", font_size=14)
    draw.text((width - 4, size[1] + bar + 8), far, fill="black", font_size=14, anchor="ra")
    return sheet


def boxes_picture(image: Image.Image, detections: Mapping[str, Any], id2label: Mapping[int, str]) -> Image.Image:
    """Draw boxes with their classes and scores: one entry of what `post_process_object_detection` returns."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    line = max(2, round(max(picture.size) / 250))
    rows = zip(detections["boxes"].tolist(), detections["labels"].tolist(), detections["scores"].tolist(), strict=True)
    for box, label, score in sorted(rows, key=lambda row: row[2]):  # the surest on top
        colour = class_colour(label)
        draw.rectangle(box, outline=colour, width=line)
        text = f"{id2label.get(label, label)} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font_size=14)
        # above the box, but inside the picture
        corner = (max(min(box[0], picture.width - (right - left) - 7), 0), max(box[1] - (bottom - top) - 6, 0))
        draw.rectangle((*corner, corner[0] + right - left + 6, corner[1] + bottom - top + 6), fill=colour)
        draw.text((corner[0] + 3 - left, corner[1] + 3 - top), text, fill="white", font_size=14)
    return picture


def with_legend(picture: Image.Image, entries: list[tuple[tuple[int, int, int], str]]) -> Image.Image:
    """Draw rows of coloured squares and names below a picture."""
    row, square, gap = 22, 14, 10
    measure = ImageDraw.Draw(picture)
    places: list[tuple[int, int]] = []
    left, line = 0, 0
    for _, name in entries:
        width = square + 5 + round(measure.textlength(name, font_size=14)) + gap
        if left and left + width > picture.width:
            left, line = 0, line + 1
        places.append((left + 4, line))
        left += width
    sheet = Image.new("RGB", (picture.width, picture.height + (line + 1) * row + 4), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for (colour, name), (left, line) in zip(entries, places, strict=True):
        top = picture.height + 4 + line * row
        draw.rectangle((left, top + 2, left + square, top + 2 + square), fill=colour, outline="black")
        draw.text((left + square + 5, top), name, fill="black", font_size=14)
    return sheet


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
    """Draw pictures of equal height in a row, with an optional caption below."""
    gap, footer = 8, 28 if caption else 0
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    height = max(picture.height for picture in pictures)
    if caption:  # it may say that weights are random: small pictures must not cut it off
        width = max(width, 2 * gap + math.ceil(ImageDraw.Draw(pictures[0]).textlength(caption, font_size=16)))
    sheet = Image.new("RGB", (width, height + footer), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    if caption:
        ImageDraw.Draw(sheet).text((gap, height + 4), caption, fill="black", font_size=16)
    return sheet


def save_picture(picture: Image.Image, file: Path) -> None:
    """Write a PNG file, whole or not at all. Raises `OSError`, for example where the disk is full."""
    content = io.BytesIO()
    picture.save(content, "PNG")
    with naming_full_disk(file, content.tell()), staged_file(file) as unfinished:
        unfinished.write_bytes(content.getbuffer())
