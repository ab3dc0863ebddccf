# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads images of any kind into (C, H, W) tensors, and checks them; part of the image processors."""

import http.client
import io
import os
import struct
import urllib.request
from typing import Any

import numpy as np
import torch
from transformers.image_utils import ChannelDimension, is_pil_image
from transformers.utils import is_vision_available, requires_backends


if is_vision_available():
    import PIL.Image
    import PIL.ImageOps

    # what Pillow raises on damaged, truncated and oversized images
    _UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, PIL.Image.DecompressionBombError)


def read_pixels(
    image: Any, name: str, do_convert_rgb: bool | None = True, input_data_format: str | None = None
) -> torch.Tensor:
    """Reads one image of any kind that `EupeImageProcessor.preprocess` takes, and checks it.

    Args:
        image: A path, a URL, a PIL image, an array or a tensor.
        name: What errors call the image.
        do_convert_rgb: Repeats grey in three channels and drops alpha.
        input_data_format: The layout of arrays and tensors; inferred by default.

    Returns:
        (C, H, W): uint8, or float32 in [0, 1] if the image has more than 8 bits.

    Raises:
        TypeError: `image` is not an image.
        ValueError: It can't be read, is empty, or its values or channels are out of range.
    """
    layouts = [ChannelDimension.LAST, ChannelDimension.FIRST]
    if isinstance(image, (str, os.PathLike)):
        image = open_image(image, name)
    if is_pil_image(image):
        image, layouts = _pil_to_array(image, do_convert_rgb, name), layouts[:1]
    elif input_data_format is not None:
        layouts = [ChannelDimension(input_data_format)]
    elif isinstance(image, torch.Tensor):
        layouts.reverse()
    if isinstance(image, np.ndarray) and image.dtype.kind in "buif" and image.dtype.itemsize <= 8:
        # a copy: torch takes neither read-only arrays nor negative strides nor foreign byte orders
        image = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
    if not isinstance(image, torch.Tensor) or image.is_complex():
        kind = f"{type(image).__name__} {getattr(image, 'dtype', '')}".rstrip()
        raise TypeError(f"{name} is of type {kind}: pass a path, URL, PIL image, array or tensor of real numbers.")
    image = _to_pixels(_to_channels_first(image.detach(), layouts, name), name)
    if do_convert_rgb:
        image = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
    return image


def open_image(reference: str | os.PathLike, name: str) -> "PIL.Image.Image":
    """Decodes the image at a path or http(s) URL, in its own mode, not rotated; a ValueError if it can't be read."""
    requires_backends("EupeImageProcessor", ["vision"])
    source: Any = os.fsdecode(reference)
    try:
        if source.startswith(("http://", "https://")):
            request = urllib.request.Request(source, headers={"User-Agent": "eupe-hf"})
            with urllib.request.urlopen(request, timeout=30) as response:
                source = io.BytesIO(response.read())
        with PIL.Image.open(source) as image:
            image.load()
        return image
    except (*_UNREADABLE, http.client.HTTPException) as error:
        name = f"{name} {str(reference)[:200]!r}"
        raise ValueError(f"{name} can't be read ({error}): pass an image file or URL.") from error


def upright(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """Decodes a PIL image and undoes its EXIF rotation; a ValueError if it can't be read."""
    try:
        image.load()
        is_rotated = image.getexif().get(0x0112, 1) != 1
        return PIL.ImageOps.exif_transpose(image) if is_rotated else image
    except _UNREADABLE as error:
        raise ValueError(f"{name} can't be read ({error}): pass an intact image.") from error


def _pil_to_array(image: "PIL.Image.Image", do_convert_rgb: bool | None, name: str) -> np.ndarray:
    # Pillow gives grey PPM of 16 bits, and older Pillow PNG too, the mode I of 32 bits
    is_16bit = image.mode == "I" and image.format in ("PNG", "PPM")
    image = upright(image, name)
    if do_convert_rgb and image.mode not in ("RGB", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")
    array = np.asarray(image)
    if image.mode == "I" and array.size and array.min() >= 0 and (is_16bit or 255 < array.max() <= 65535):
        array = array.astype(np.uint16)
    return array


def _to_channels_first(image: torch.Tensor, layouts: list[ChannelDimension], name: str) -> torch.Tensor:
    shape = tuple(image.shape)
    if image.ndim not in (2, 3) or 0 in shape:
        raise ValueError(f"{name} has the shape {shape}: pass HxW, HxWxC or CxHxW of at least one pixel.")
    if image.ndim == 2:
        return image[None]
    for layout in layouts:
        if shape[0 if layout == ChannelDimension.FIRST else 2] in (1, 3, 4):
            return image if layout == ChannelDimension.FIRST else image.permute(2, 0, 1)
    where = " or ".join(layout.value for layout in layouts)
    raise ValueError(f"{name} has the shape {shape}, without 1, 3 or 4 channels ({where}): pass grey, RGB or RGBA.")


def _to_pixels(image: torch.Tensor, name: str) -> torch.Tensor:
    if image.dtype in (torch.uint8, torch.bool):
        return image if image.dtype == torch.uint8 else image.to(torch.uint8) * 255
    if image.dtype == torch.uint16:
        return image.to(torch.float32) / 65535
    is_float = image.is_floating_point()
    pixels = image.to(torch.float32 if is_float else torch.int64)
    low, high = (bound.item() for bound in pixels.aminmax())
    tolerance = 1e-5  # an earlier resize or blend leaves values like 1.0000001
    if not (low >= -tolerance and high <= (1 if is_float else 255) + tolerance):  # also where they are NaN
        raise ValueError(
            f"{name} ({image.dtype}) has values from {low:.6g} to {high:.6g}: pass floats in [0, 1], uint16, or other "
            "integers in 0..255. If it is already normalised, pass it straight to the model."
        )
    return pixels.clamp(0, 1) if is_float else pixels.to(torch.uint8)
