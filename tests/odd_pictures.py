# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Files as users have them: pictures that must be read, and files that must be refused by name."""

import io
from typing import Any

import numpy as np
from PIL import Image, features


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
TURNED = Image.Exif()
TURNED[0x0112] = 6


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GOOD = {
    "plain.png": saved(PICTURE, "PNG"),
    "exif.png": saved(PICTURE, "PNG", exif=b"garbage!"),
    "exif.webp": saved(PICTURE, "WEBP", exif=b"garbage!"),
    "icc.jpg": saved(PICTURE, "JPEG", icc_profile=b"garbage"),
    "turned.jpg": saved(PICTURE, "JPEG", exif=TURNED),
    "grey16.png": saved(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
    "cmyk.jpg": saved(PICTURE.convert("CMYK"), "JPEG"),
    "palette.png": saved(PICTURE.quantize(16), "PNG", transparency=bytes(range(16))),
    "animated.gif": saved(PICTURE.quantize(16), "GIF", save_all=True, append_images=[PICTURE.rotate(9)]),
    "pixel.png": saved(PICTURE.crop((0, 0, 1, 1)), "PNG"),
    "thin.png": saved(PICTURE.resize((1, 30000)), "PNG"),
    "share.tif": saved(Image.fromarray(PIXELS[..., 0] / np.float32(255)), "TIFF"),
}
BAD = {
    "metres.tif": saved(Image.fromarray(PIXELS[..., 0] * np.float32(16)), "TIFF"),
    "cut.png": saved(PICTURE, "PNG")[:2000],
    "cut.jpg": saved(PICTURE, "JPEG")[:800],
    "text.jpg": b"no picture",
    "empty.png": b"",
}


def size(content: bytes) -> tuple[int, int]:
    """Width and height of the upright image; 48 x 40 of damaged ones."""
    try:
        width, height = Image.open(io.BytesIO(content)).size
    except OSError:
        return PICTURE.size
    return (height, width) if content == GOOD["turned.jpg"] else (width, height)


if features.check("avif"):  # whose decoder raises RuntimeError
    content = saved(PICTURE, "AVIF")
    start = content.index(b"mdat") + 4
    BAD["avif.png"] = content[:start] + bytes(len(content) - start)
