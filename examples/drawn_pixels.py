# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The pixels of drawn scenes: shapes, textures and shadows, and the maps that belong to them.

Places and sizes are shares of the side, so a scene looks the same at any side. Only integers and exact floating-point
operations are used, so pixels are equal on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


NEAR, FAR = 2.0, 8.0  # metres: the lower edge of the picture, and the wall
HORIZON = 0.4  # of the picture's height
_SAMPLES = 4  # per pixel and axis, for smooth edges


@dataclass(frozen=True)
class Layout:
    """Where one object stands, in shares of the side, so that it does not depend on the pixels."""

    shape: str
    colour: str
    rgb: tuple[float, ...]
    left: float
    bottom: float
    size: float
    distance: float

    def coverage(self, side: int) -> np.ndarray:
        """(side, side): how many of the samples of each pixel lie inside."""
        box = (self.left, self.bottom - self.size, self.size, self.size)
        return coverage(self.shape, *(value * side for value in box), side)


@dataclass(frozen=True)
class Backdrop:
    """Colours and textures of wall and floor."""

    tints: np.ndarray  # (2, 3)
    strengths: np.ndarray  # (2,)
    patterns: tuple[tuple[int, int, int, np.ndarray], ...]  # kind, direction, cells, values


def render(
    layouts: Sequence[Layout], backdrop: Backdrop, side: int, change: int, noise: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw objects, far to near, on a floor before a wall.

    Args:
        layouts: The objects.
        backdrop: Wall and floor.
        side: Side of the picture in pixels.
        change: The largest change of a value by noise.
        noise: The source of the noise.

    Returns:
        Pixels (side, side, 3) uint8; (side, side) uint8, 0 or i + 1 where object i is visible; (side, side) float32,
        metres.
    """
    horizon = round(HORIZON * side)
    wall, floor = (
        tint + strength * _pattern(side, *pattern)[..., None]
        for tint, strength, pattern in zip(backdrop.tints, backdrop.strengths, backdrop.patterns, strict=True)
    )
    pixels = np.concatenate((wall[:horizon], floor[horizon:]))
    for layout in layouts:  # shadows on the floor, below all objects
        size = layout.size
        box = (layout.left - 0.05 * size, layout.bottom - 0.1 * size, 1.1 * size, 0.2 * size)
        pixels *= 1 - 0.4 * (coverage("disc", *(value * side for value in box), side) / _SAMPLES**2)[..., None]
    instances = np.zeros((side, side), np.uint8)
    depth = np.full((side, side), FAR, np.float32)
    depth[horizon:] = (FAR + (NEAR - FAR) * np.arange(side - horizon) / (side - horizon - 1))[:, None]
    for number, layout in enumerate(layouts, start=1):
        inside = layout.coverage(side)
        pixels += (inside / _SAMPLES**2)[..., None] * (np.array(layout.rgb) - pixels)
        instances[2 * inside >= _SAMPLES**2] = number
        depth[instances == number] = layout.distance
    if change:  # two dice: small changes are the most frequent
        pixels += noise.integers(0, change + 1, pixels.shape) - noise.integers(0, change + 1, pixels.shape)
    return np.floor(pixels + 0.5).clip(0, 255).astype(np.uint8), instances, depth


def coverage(shape: str, left: float, top: float, width: float, height: float, side: int) -> np.ndarray:
    """(side, side): how many of the `_SAMPLES` x `_SAMPLES` samples of each pixel lie inside a shape."""
    counts = np.zeros((side, side), np.int64)
    x0, y0 = max(0, int(left)), max(0, int(top))
    x1, y1 = min(side, int(left + width) + 1), min(side, int(top + height) + 1)
    if x1 <= x0 or y1 <= y0:
        return counts
    x = (x0 + (np.arange((x1 - x0) * _SAMPLES) + 0.5) / _SAMPLES - left) / width
    y = ((y0 + (np.arange((y1 - y0) * _SAMPLES) + 0.5) / _SAMPLES - top) / height)[:, None]
    inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
    if shape == "disc":
        inside &= (x - 0.5) * (x - 0.5) + (y - 0.5) * (y - 0.5) <= 0.25
    elif shape == "triangle":
        inside &= abs(x - 0.5) <= y / 2
    counts[y0:y1, x0:x1] = inside.reshape(y1 - y0, _SAMPLES, x1 - x0, _SAMPLES).sum(axis=(1, 3))
    return counts


def _pattern(side: int, kind: int, direction: int, cells: int, values: np.ndarray) -> np.ndarray:
    """(side, side) in [-1, 1]: plain, stripes, checks or blotches."""
    y, x = (np.indices((side, side)) + 0.5) / side * cells
    if kind == 0:
        return np.zeros((side, side))
    if kind == 1:
        return np.floor((x, y, (x + y) / 2)[direction]) % 2 * 2 - 1
    row, column = y.astype(int), x.astype(int)
    if kind == 2:
        return (row + column) % 2 * 2.0 - 1
    y, x = y - row, x - column
    upper = values[row, column] * (1 - x) + values[row, column + 1] * x
    lower = values[row + 1, column] * (1 - x) + values[row + 1, column + 1] * x
    return upper * (1 - y) + lower * y


def visible_shares(layouts: list[Layout], side: int = 96) -> list[float]:
    """Share of each object's pixels that the nearer objects leave visible."""
    masks = [layout.coverage(side) > 0 for layout in layouts]
    before = [np.zeros((side, side), bool), *masks[:0:-1]]
    hidden = list(np.logical_or.accumulate(before))[::-1] if masks else []
    return [1 - float((mask & cover).sum()) / max(1, mask.sum()) for mask, cover in zip(masks, hidden, strict=True)]
