# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures in every format that Pillow writes, changed, through every way on which a picture comes in.

What Pillow decodes is read, with its own pixels turned as its EXIF says; what it does not decode is one sentence.
"""

import base64
import io
import os
import struct
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import torch
from campaign import WrongError, building, scratch
from hypothesis import strategies as st

from eupe_hf import EupeImageProcessorPil
from eupe_hf.data.rows import read_image


PIL.Image.init()
FORMATS = tuple(sorted(set(PIL.Image.SAVE) & set(PIL.Image.OPEN) - {"PDF", "EPS", "GRIB", "HDF5", "BUFR", "WMF"}))
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F", "YCbCr", "PA")
_ENDINGS = {kind: end for end, kind in sorted(PIL.Image.EXTENSION.items(), reverse=True)}
_CONTENT = ("bytes of a row", "data url", "base64")
_WAYS = ("processor", "bytes of a row", "path of a row", "data url", "base64", "file url", "opened", "features")


@dataclass(frozen=True)
class Picture:
    """A picture with one change, and the way it comes in.

    Args:
        kind: Pillow's name of the format.
        mode: Pillow's mode.
        change: What is done to the file, one of `CHANGES`.
        way: Where it comes in.
        size: Width and height.
        where: A number from 0 to 1 that picks a byte.
        orientation: Of EXIF; None writes no EXIF.
    """

    kind: str = "PNG"
    mode: str = "RGB"
    change: str = "none"
    way: str = "processor"
    size: tuple[int, int] = (23, 17)
    where: float = 0.5
    orientation: int | None = None


def _drawn(mode: str, size: tuple[int, int]) -> PIL.Image.Image:
    noise = np.random.default_rng(3)
    width, height = size
    if mode in ("I;16", "I", "F"):
        values = noise.integers(0, 65536, (height, width))
        if mode == "F":
            return PIL.Image.fromarray((values / 65535).astype(np.float32))
        return PIL.Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    rgb = PIL.Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    return rgb.convert("RGBA").convert(mode) if mode == "LA" else rgb.convert(mode)


def _encoded(case: Picture) -> bytes:
    """The file; a format that cannot hold the mode gets RGB."""
    options: dict[str, Any] = {}
    if case.change.startswith("exif"):
        options["exif"] = {
            "exif garbage": b"garbage!", "exif cut": b"Exif\0\0II*\0\x08\0\0\0\xff\xff", "exif empty": b"",
            "exif loop": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\x08\0\0\0",
            "exif text": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x08\0\0\0\x1a\0\0\0\0\0\0\0sideways",
        }[case.change]  # fmt: skip
    elif case.orientation is not None:
        exif = PIL.Image.Exif()
        exif[0x0112] = case.orientation
        options["exif"] = exif.tobytes()
    if case.change == "profile":
        options["icc_profile"] = b"no profile at all" * 9
    if case.kind in ("WEBP", "AVIF", "JPEG2000"):
        options["lossless"] = True
    if case.kind == "SPIDER":
        options = {}
    for mode in (case.mode, "RGB", "L", "1", "F", "P"):
        for given in (options, {}):
            file = io.BytesIO()
            try:
                _drawn(mode, case.size).save(file, case.kind, **given)
            except Exception:  # a mode or metadata that the format cannot hold
                continue
            return file.getvalue()
    raise ValueError(f"nothing to save as {case.kind}")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _changed(case: Picture) -> bytes:
    content = bytearray(_encoded(case))
    at = min(int(case.where * len(content)), len(content) - 1)
    if case.change == "truncate":
        return bytes(content[:at])
    if case.change == "flip":
        content[at] ^= 1 << (at % 8)
    elif case.change == "zeros":
        content[at:] = bytes(len(content) - at)
    elif case.change == "zeros of avif":
        at = content.find(b"mdat") + 4
        content[at:] = bytes(len(content) - at)
    elif case.change == "ones":
        content[at:] = b"\xff" * (len(content) - at)
    elif case.change == "insert":
        content[at:at] = os.urandom(0) + b"\x00\xff\x7f\x80"
    elif case.change == "swap":
        content = content[at:] + content[:at]
    elif case.change == "empty":
        content = bytearray()
    elif case.change == "text":
        content = bytearray(b"<html>404</html>")
    elif case.change == "svg":
        content = bytearray(b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    elif case.change in ("bomb", "great bomb", "text bomb"):
        side = {"bomb": 14_000, "great bomb": 100_000, "text bomb": 16}[case.change]
        head = _chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
        packer = zlib.compressobj(9)
        data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
        extra = _chunk(b"zTXt", b"note\0\0" + data) if case.change == "text bomb" else b""
        body = zlib.compress(bytes(17 * 16)) if case.change == "text bomb" else data
        content = bytearray(b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", body) + _chunk(b"IEND", b""))
    elif case.change == "float 4000":
        file = io.BytesIO()
        PIL.Image.fromarray(np.linspace(0, 4000, 300, dtype=np.float32).reshape(15, 20)).save(file, "TIFF")
        return file.getvalue()
    return bytes(content)


CHANGES = (
    "none", "truncate", "flip", "flip", "flip", "zeros", "ones", "insert", "swap", "empty", "text", "svg", "profile",
    "exif garbage", "exif cut", "exif empty", "exif loop", "exif text", "bomb", "great bomb", "text bomb",
    "float 4000", "zeros of avif",
)  # fmt: skip


def _truth(path: Path, is_content: bool) -> torch.Tensor | str:
    """(3, H, W) in [0, 1] by Pillow alone; "decoded" if the mode has rules of its own; "" if it is not decoded.

    Pillow gets the content where the way hands that over: it turns some damaged TIFF files from their path alone.
    """
    try:
        with PIL.Image.open(io.BytesIO(path.read_bytes()) if is_content else path) as image:
            image.load()
    except Exception:  # whatever a decoder raises
        return ""
    try:
        turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(image.getexif().get(0x0112))
    except Exception:
        turn = None
    if turn is not None:
        image = image.transpose(PIL.Image.Transpose(turn))
    if image.mode == "I" or image.mode == "F":
        return "decoded"
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32)[..., None].repeat(3, 2) / np.float32(65535)
    else:
        values = np.asarray(image.convert("RGB")).astype(np.float32) * np.float32(1 / 255)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


_PROCESSOR = EupeImageProcessorPil(do_resize=False, do_normalize=False)


def _values(image: Any) -> torch.Tensor:
    return _PROCESSOR(image, return_tensors="pt")["pixel_values"][0]


def _read(way: str, path: Path) -> torch.Tensor | None:
    if way == "processor":
        return _values(str(path))
    if way == "bytes of a row":
        return _values(read_image({"bytes": path.read_bytes(), "path": path.name}, "row 3"))
    if way == "path of a row":
        return _values(read_image({"bytes": None, "path": str(path)}, "row 3"))
    if way in ("data url", "base64"):
        text = base64.b64encode(path.read_bytes()).decode()
        return _values(f"data:image/png;base64,{text}" if way == "data url" else text)
    if way == "file url":
        return _values(path.as_uri())
    if way == "opened":
        with PIL.Image.open(path) as image:  # lazily: decoding is ours
            return _values(image)
    from eupe_hf.features.extraction import ImageReader

    batch = ImageReader(EupeImageProcessorPil(size={"height": 32, "width": 32}))[[str(path)]]
    if batch.skipped:
        raise ValueError(batch.skipped[str(path)])
    return None


def check(case: Picture, names: list[str]) -> None:
    """Write the picture, read it, and compare it with what Pillow gives."""
    with scratch() as folder:
        with building():
            path = folder / f"picture{_ENDINGS.get(case.kind, '.png')}"
            if case.change == "pipe":
                os.mkfifo(path)
                thread = threading.Thread(target=_feed, args=(path,), daemon=True)
                thread.start()
                expected: torch.Tensor | str = ""
            else:
                path.write_bytes(_changed(case))
                expected = _truth(path, case.way in _CONTENT)
        names += [path.name, "row 3", "images[0]", "image"]
        if case.way == "opened" and isinstance(expected, str) and not expected:
            return  # Pillow's own error
        try:
            found = _read(case.way, path)
        except ValueError as error:
            if isinstance(expected, torch.Tensor) and 0 not in expected.shape:
                raise RuntimeError(f"refused, and Pillow reads it: {error}") from error
            raise
        if isinstance(expected, str) and not expected:
            if case.way in ("data url", "base64") and not path.stat().st_size:
                return
            raise WrongError("read, and Pillow does not read it")
        if found is None or isinstance(expected, str):
            return
        if found.shape != expected.shape or not torch.equal(found, expected):
            raise WrongError(f"other pixels: {tuple(found.shape)} for {tuple(expected.shape)}")


def _feed(path: Path) -> None:
    """Nothing: a pipe that nobody writes to."""


CASES: st.SearchStrategy[Picture] = st.builds(
    Picture, kind=st.sampled_from(FORMATS), mode=st.sampled_from(MODES), change=st.sampled_from(CHANGES),
    way=st.sampled_from(_WAYS), size=st.sampled_from([(23, 17), (1, 1), (1, 90), (3000, 1), (64, 48)]),
    where=st.floats(0, 0.999), orientation=st.none() | st.integers(0, 9),
)  # fmt: skip

KNOWN = [
    *(Picture(kind, mode) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP") for mode in ("RGB", "L", "P")),
    *(Picture(kind, change=change, way=way) for kind in ("PNG", "JPEG", "WEBP") for way in _WAYS
      for change in ("exif garbage", "exif cut")),
    *(Picture("AVIF", change="zeros of avif", way=way) for way in _WAYS if "AVIF" in FORMATS),
    *(Picture("TIFF", change="float 4000", way=way) for way in _WAYS),
    *(Picture(change=change, way=way) for change in ("bomb", "great bomb", "text bomb") for way in _WAYS[:3]),
    *(Picture("TIFF", "RGBA", "ones", way, (1, 90), 0.86685, 7) for way in _WAYS),
    *(Picture(way=way) for way in _WAYS), *(Picture("JPEG", orientation=turn) for turn in range(10)),
    *(Picture(change="pipe", way=way) for way in ("processor", "path of a row", "features")),
]  # fmt: skip
