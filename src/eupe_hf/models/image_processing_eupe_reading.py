# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Reads images of any kind into (C, H, W) tensors, and checks them; part of the image processors."""

import base64
import http.client
import io
import os
import re
import stat
import time
import urllib.parse
import urllib.request
from multiprocessing import TimeoutError as PoolTimeoutError
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.image_utils import ChannelDimension, is_pil_image
from transformers.utils import is_vision_available, requires_backends


if is_vision_available():
    import PIL.Image

MAX_DOWNLOAD_BYTES = 256 * 2**20
MAX_DOWNLOAD_SECONDS = 120.0
_SILENT_SECONDS = 30.0  # of a server, before that
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{32,}={0,2}\s*")  # no image is shorter
# Decoders, and the libraries and plugins below them, raise what they like: RuntimeError, IndexError, zlib.error, ...
_UNREADABLE = Exception
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Pillow's number of the turn that undoes an EXIF orientation
_EXIF = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow finds the orientation


def read_pixels(
    image: Any, name: str, do_convert_rgb: bool | None = True, input_data_format: str | None = None
) -> torch.Tensor:
    """Reads one image of any kind that `EupeImageProcessor.preprocess` takes, and checks it.

    Args:
        image: What `open_image` takes, a PIL image, an array or a tensor.
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
        image, name = open_image(image, name), _named(name, image)
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
    """Decodes an image from a path, a URL or base64, in its own mode, not rotated.

    Args:
        reference: A local path, an http(s), file or data URL, or base64. Text that names a file is never base64.
        name: What errors call the image.

    Raises:
        ValueError: It can't be read, has too many pixels, or its download is too large or too slow.
    """
    requires_backends("EupeImageProcessor", ["vision"])
    text = os.fsdecode(reference)
    try:
        return _from_base64(text) if _is_base64(text) else decode_image(_source(text))
    except (OSError, ValueError, http.client.HTTPException) as error:
        name = _named(name, reference)
        raise ValueError(f"{name} can't be read ({_why(error)}): pass an image file or URL.") from error


def decode_image(source: str | bytes) -> "PIL.Image.Image":
    """Decodes the image in a local file, or in the content of one, in its own mode, not rotated.

    Whatever Pillow decodes is read, whatever metadata say.

    Raises:
        ValueError: The reason why it can't be read, without a name.
    """
    try:
        if isinstance(source, str):
            check_is_file(source)
        with PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            check_pixel_count(image.width, image.height, "it has")
            image.load()
        return image
    except _UNREADABLE as error:
        raise ValueError(_why(error)) from error


def check_is_file(path: str) -> None:
    """Refuses folders, devices and pipes, which would keep a reader waiting; an OSError if there is nothing."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("not a regular file")


def download_image(url: str) -> bytes:
    """Returns what lies at an http(s) URL; a ValueError or OSError if it is too large, too slow or not there."""
    with ThreadPool(1) as pool:  # in a thread: the time-out of a socket starts anew with every byte
        try:
            return pool.apply_async(_download, (url,)).get(MAX_DOWNLOAD_SECONDS)
        except PoolTimeoutError as error:
            raise ValueError(f"not there within {MAX_DOWNLOAD_SECONDS:g} seconds") from error


def check_pixel_count(width: int, height: int, what: str) -> None:
    """Refuses more pixels than Pillow's limit, of which Pillow itself only warns up to its double."""
    limit = PIL.Image.MAX_IMAGE_PIXELS if is_vision_available() else None
    if limit is not None and width * height > limit:
        raise ValueError(
            f"{what} {width} x {height} = {width * height:,} pixels: above {limit:,} it counts as a decompression "
            "bomb, see PIL.Image.MAX_IMAGE_PIXELS"
        )


def upright(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """Decodes a PIL image and undoes its EXIF rotation; a ValueError if it can't be read."""
    try:
        check_pixel_count(image.width, image.height, "it has")
        image.load()
    except _UNREADABLE as error:
        raise ValueError(f"{name} can't be read ({_why(error)}): pass an intact image.") from error
    turn = _TURNS.get(_orientation(image))
    if turn is None:
        return image
    image = image.transpose(PIL.Image.Transpose(turn))
    for key in _EXIF:
        image.info.pop(key, None)
    return image


def upright_size(image: "PIL.Image.Image") -> tuple[int, int]:
    """Returns height and width in pixels of a decoded image with its EXIF rotation undone."""
    return image.size if _orientation(image) >= 5 else image.size[::-1]


def _orientation(image: "PIL.Image.Image") -> int:
    try:
        value = image.getexif().get(0x0112)
    except _UNREADABLE:  # malformed metadata say nothing
        return 1
    return int(value) if value in _TURNS else 1


def _source(text: str) -> str | bytes:
    """What `decode_image` takes, from a path or a URL."""
    kind = text[:8].lower()
    if kind.startswith(("http://", "https://")):
        return download_image(text)
    if kind.startswith("data:"):
        head, _, data = text.partition(",")
        content = urllib.parse.unquote_to_bytes(data)
        return base64.b64decode(content) if head.lower().endswith(";base64") else content
    if kind.startswith("file://"):
        url = urllib.parse.urlsplit(text)
        if url.netloc.lower() not in ("", "localhost"):
            raise ValueError(f"a file URL names a file on this machine, not on {url.netloc}")
        return urllib.request.url2pathname(url.path)
    return text


def _is_base64(text: str) -> bool:
    if not _BASE64.fullmatch(text):
        return False
    try:
        return not Path(text).exists()
    except OSError:  # longer than a path can be
        return True


def _from_base64(text: str) -> "PIL.Image.Image":
    try:
        return decode_image(base64.b64decode(text))
    except ValueError as error:
        raise ValueError(f"No such file, and as base64: {error}") from error


def _download(url: str) -> bytes:
    opener = urllib.request.OpenerDirector()  # redirects lead to http(s) alone
    for handler in (
        urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
    ):  # fmt: skip
        opener.add_handler(handler())
    request = urllib.request.Request(url, headers={"User-Agent": "eupe-hf"})
    content, end = bytearray(), time.monotonic() + MAX_DOWNLOAD_SECONDS
    with opener.open(request, timeout=min(_SILENT_SECONDS, MAX_DOWNLOAD_SECONDS)) as response:
        while chunk := response.read1(2**20):
            content += chunk
            if len(content) > MAX_DOWNLOAD_BYTES:
                raise ValueError(f"more than {MAX_DOWNLOAD_BYTES:,} bytes")
            if time.monotonic() > end:
                raise ValueError("too slow")  # ends the thread: nobody waits for it any more
        if response.length:
            raise ValueError(f"the connection ended {response.length:,} bytes early")
    return bytes(content)


def _named(name: str, reference: str | os.PathLike) -> str:
    text = os.fsdecode(reference)
    return f"{name} {text if len(text) <= 200 else text[:60] + '...'!r}"


def _why(error: BaseException) -> str:
    """The reason in an error, on one line, without names of files and addresses in memory."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "cannot identify the format of the image"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    known = isinstance(error, (OSError, ValueError, SyntaxError, http.client.HTTPException))
    return text if known and text else f"{type(error).__name__}: {text}".rstrip(": ")


def _pil_to_array(image: "PIL.Image.Image", do_convert_rgb: bool | None, name: str) -> np.ndarray:
    # Pillow gives grey PPM of 16 bits, and older Pillow PNG too, the mode I of 32 bits
    is_16bit = image.mode == "I" and image.format in ("PNG", "PPM")
    image = upright(image, name)
    try:
        if do_convert_rgb and image.mode not in ("RGB", "I", "F") and not image.mode.startswith("I;16"):
            if "transparency" in image.info:  # Pillow warns of some, and refuses malformed ones
                image = image.copy()
                del image.info["transparency"]
            image = image.convert("RGB")
        array = np.asarray(image)
    except _UNREADABLE as error:
        raise ValueError(f"{name} has the mode {image.mode}, which can't be converted ({_why(error)}).") from error
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
