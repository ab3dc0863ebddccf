# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Photographs of the app: read as the image processor reads them, and refused where they are damaged or too large."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from eupe_hf import EupeImageProcessor
from eupe_hf.models.image_processing_eupe_reading import decode_image, read_pixels
from eupe_hf.visualization import read_photograph


MAX_MEGAPIXELS = 64
SHOWN_SIDE = 512  # the longer side of what the app shows, in pixels


@dataclass(frozen=True)
class Photograph:
    """A photograph; two with the same content are equal.

    Args:
        digest: Of the file.
        path: The file.
        picture: What the app shows: upright, 8 bits, with its aspect ratio.
    """

    digest: str
    path: Path = field(compare=False)
    picture: Image.Image = field(compare=False)


def open_photograph(path: Path) -> Photograph:
    """Read a photograph as the image processor does: EXIF rotation undone, alpha dropped, 16 bits kept.

    Raises:
        ValueError: The file can't be read, or has too many pixels.
    """
    pixels = _pixels(path)
    height, width = pixels.shape[1:]
    scale = SHOWN_SIDE / max(height, width)
    # a panorama one pixel high is shown as a stripe that can be clicked
    width, height = max(round(width * scale), 32), max(round(height * scale), 32)
    shown = read_photograph(pixels, EupeImageProcessor(size={"height": height, "width": width}))
    return Photograph(hashlib.sha256(path.read_bytes()).hexdigest(), path, shown)


def _pixels(path: Path) -> torch.Tensor:
    try:
        image = decode_image(str(path))
        is_small_enough = image.width * image.height <= MAX_MEGAPIXELS * 1_000_000
    except ValueError as error:
        is_small_enough = "decompression bomb" not in str(error)  # Pillow's own limit
        if is_small_enough:
            message = "it is damaged or not an image. Choose an intact JPEG, PNG or WebP file."
            raise ValueError(f"{path.name} can't be read: {message}") from error
    if not is_small_enough:
        raise ValueError(f"{path.name} has more than {MAX_MEGAPIXELS} million pixels: choose a smaller image.")
    return read_pixels(image, path.name)
