# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Reading pictures: the metadata, damages, sizes and places that real files have."""

import base64
import io
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_common import PLAIN, RGB, unit, values
from PIL import Image, ImageCms, PngImagePlugin, features

from eupe_hf import EupeImageProcessorPil
from eupe_hf.models import image_processing_eupe_reading as reading


PICTURE = Image.fromarray(RGB)


@pytest.fixture
def processor() -> Any:
    return EupeImageProcessorPil()


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- metadata ----

GARBAGE = {
    "EXIF": {"exif": b"garbage!"},
    "EXIF in JPEG": {"exif": b"Exif\0\0garbage!"},
    "EXIF cut short": {"exif": b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"},
    "ICC profile": {"icc_profile": b"garbage" * 9},
    "XMP": {"xmp": b"\xff<<tiff:Orientation=\"9"},
    "XMP without EXIF": {"xmp": b"\x00tiff:Orientation>0"},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("garbage", GARBAGE)
def test_malformed_metadata_do_not_stop_a_picture(processor: Any, tmp_path: Path, kind: str, garbage: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(saved(PICTURE, kind, **GARBAGE[garbage]))
    pixels = values(processor, np.asarray(Image.open(io.BytesIO(saved(PICTURE, kind)))), **PLAIN)
    assert torch.equal(values(processor, path, **PLAIN), pixels)
    assert torch.equal(values(processor, Image.open(path), **PLAIN), pixels)
    assert reading.upright_size(Image.open(path)) == RGB.shape[:2]
    ids = Image.fromarray(RGB[..., 0])
    labels = processor(path, segmentation_maps=Image.open(io.BytesIO(saved(ids, "PNG", **GARBAGE[garbage]))))
    assert labels["labels"][0].shape == (256, 256)


@pytest.mark.parametrize("orientation", [6, (6, 6), b"6", "6"])
def test_orientations_of_odd_types_are_none_and_real_ones_are_undone_once(orientation: Any) -> None:
    picture = PICTURE.copy()
    picture.getexif()[0x0112] = orientation
    turned = reading.upright(picture, "it")
    assert turned.size == (PICTURE.size[::-1] if orientation == 6 else PICTURE.size)
    assert reading.upright_size(picture) == turned.size[::-1]
    assert reading.upright(turned, "it").size == turned.size
    assert picture.size == PICTURE.size


def test_an_orientation_in_xmp_is_undone_once(processor: Any) -> None:
    picture = Image.open(io.BytesIO(saved(PICTURE, "WEBP", lossless=True, xmp=b'<x tiff:Orientation="6"/>')))
    turned = reading.upright(picture, "it")
    assert turned.size == (20, 31) and reading.upright(turned, "it").size == (20, 31)
    assert torch.equal(values(processor, picture, **PLAIN), unit(np.rot90(RGB, -1).copy()))


# ---- kinds of pictures ----


def lab() -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    return ImageCms.profileToProfile(PICTURE, *profiles, outputMode="LAB")


FRAMES = {"save_all": True, "append_images": [PICTURE.rotate(90)]}
KINDS: dict[str, tuple[Callable[[], bytes], Callable[[], Image.Image], float]] = {
    "CMYK": (lambda: saved(PICTURE.convert("CMYK"), "TIFF"), lambda: PICTURE, 1),
    "LAB": (lambda: saved(lab(), "TIFF"), lambda: PICTURE, 40),
    "palette": (lambda: saved(PICTURE.quantize(16), "PNG"), lambda: PICTURE.quantize(16).convert("RGB"), 0),
    "transparent palette": (
        lambda: saved(PICTURE.quantize(16), "PNG", transparency=bytes(range(16))),
        lambda: PICTURE.quantize(16).convert("RGB"), 0,
    ),
    "transparent colour": (lambda: saved(PICTURE, "PNG", transparency=tuple(RGB[0, 0])), lambda: PICTURE, 0),
    "animated GIF": (
        lambda: saved(PICTURE.quantize(16), "GIF", **FRAMES),
        lambda: PICTURE.quantize(16).convert("RGB"), 0,
    ),
    "animated PNG": (lambda: saved(PICTURE, "PNG", **FRAMES), lambda: PICTURE, 0),
    "several pages": (lambda: saved(PICTURE, "TIFF", **FRAMES), lambda: PICTURE, 0),
    "one pixel": (lambda: saved(PICTURE.crop((0, 0, 1, 1)), "PNG"), lambda: PICTURE.crop((0, 0, 1, 1)), 0),
    "1 x 30000": (lambda: saved(PICTURE.resize((1, 30000)), "PNG"), lambda: PICTURE.resize((1, 30000)), 0),
    "30000 x 1": (lambda: saved(PICTURE.resize((30000, 1)), "PNG"), lambda: PICTURE.resize((30000, 1)), 0),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_every_kind_are_read(processor: Any, tmp_path: Path, kind: str) -> None:
    content, expected, tolerance = KINDS[kind]
    path = tmp_path / "picture"
    path.write_bytes(content())
    difference = values(processor, path, **PLAIN) - unit(np.array(expected()))
    assert difference.abs().max() * 255 <= tolerance + 1e-3
    assert values(processor, path).shape == (3, 256, 256)


def test_values_out_of_range_are_refused_with_the_name_of_the_file(processor: Any, tmp_path: Path) -> None:
    Image.fromarray(RGB[..., 0] * np.float32(16)).save(tmp_path / "metres.tif")
    with pytest.raises(ValueError, match=r"images\[0\] '.*metres\.tif' \(torch.float32\) has values from 0 to 4080"):
        processor(tmp_path / "metres.tif")


# ---- damages ----


class OddError(Exception):
    """Of a plugin."""


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("of libavif"), NotImplementedError("no such mode"), IndexError("list"), KeyError("tag"),
        ZeroDivisionError("by zero"), AssertionError(), MemoryError(), OverflowError("int"), TypeError("None"),
        AttributeError("tile"), SyntaxError("broken PNG file"), zlib.error("-3"), OddError("plugin"),
    ],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_error_with_the_name(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    PICTURE.save(tmp_path / "a.png")

    def fail(self: Any) -> None:
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    reason = str(error).strip("'") or type(error).__name__
    with pytest.raises(ValueError, match=rf"images\[0\] '.*a\.png' can't be read \(.*{reason}.*\): pass an image"):
        processor(tmp_path / "a.png")
    with pytest.raises(ValueError, match=rf"images\[0\] can't be read \(.*{reason}.*\): pass an intact image"):
        processor(Image.open(tmp_path / "a.png"))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_whose_data_are_zeros_is_refused(processor: Any, tmp_path: Path) -> None:
    content = saved(PICTURE, "AVIF")
    start = content.index(b"mdat") + 4
    (tmp_path / "a.avif").write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(ValueError, match=r"a\.avif' can't be read \(RuntimeError: Failed to decode frame 0"):
        processor(tmp_path / "a.avif")


@pytest.mark.parametrize("place", ["pipe", "folder", "/dev/zero"])
def test_only_regular_files_are_opened(processor: Any, tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    if place == "pipe":
        os.mkfifo(path)  # opening it would wait for a writer
    elif place == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=r"can't be read \(not a regular file\)"):
        processor(path)


# ---- sizes ----


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("above", [1, 3])  # up to twice its limit Pillow only warns
def test_decompression_bombs_are_refused_with_the_numbers(
    processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: int
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("1", (10, 100 * above + 1)).save(tmp_path / "large.png")
    count = 10 * (100 * above + 1)
    sentence = rf"large\.png' can't be read \(.*{count:,}.*1,000.*bomb" if above == 1 else rf"{count} pixels.*2000"
    with pytest.raises(ValueError, match=sentence):
        processor(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", count)
    opened = Image.open(tmp_path / "large.png")
    assert values(processor, opened, do_resize=False).shape == (3, 100 * above + 1, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", count - 1)
    with pytest.raises(ValueError, match=rf"images\[0\] can't be read \(.*{count:,} pixels"):
        processor(opened)


def test_thin_pictures_do_not_grow_beyond_the_limit(processor: Any) -> None:
    thin = torch.zeros(3, 30000, 1, dtype=torch.uint8)
    for image, options in ((thin, {"size": {"shortest_edge": 256}}), (thin.mT, {"size": {"shortest_edge": 256}}),
                           (torch.zeros(3, 400_000, 1, dtype=torch.uint8), {})):  # fmt: skip
        with pytest.raises(ValueError, match=r"images\[1\] is .* passes through .*,\d\d\d pixels: above 89,478,485"):
            processor([RGB, image], **options)
    with pytest.raises(ValueError, match=r"the images would be padded to 30000 x 30000 = 900,000,000 pixels"):
        processor([thin, thin.mT], do_resize=False, do_pad=True)


# ---- places ----

CONTENT = saved(PICTURE, "PNG")
TEXT = base64.b64encode(CONTENT).decode()
FORMS = {
    "data URL": lambda path: f"data:image/png;base64,{TEXT}",
    "data URL with escapes": lambda path: f"DATA:image/png;base64,{TEXT.replace('+', '%2B').replace('=', '%3D')}",
    "base64": lambda path: TEXT,
    "base64 in lines": lambda path: base64.encodebytes(CONTENT).decode(),
    "file URL": lambda path: path.as_uri(),
    "file URL with a host": lambda path: f"file://localhost{path.as_uri()[7:]}",
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_text_are_read_like_files(processor: Any, tmp_path: Path, form: str) -> None:
    path = tmp_path / "a picture #1.png"
    path.write_bytes(CONTENT)
    given = FORMS[form](path)
    assert torch.equal(values(processor, given, **PLAIN), unit(RGB))
    (fetched,) = processor.fetch_images([given])
    assert np.array_equal(fetched, RGB)


def test_a_file_is_a_file_even_if_its_name_could_be_base64(processor: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("A" * 40).write_bytes(CONTENT)
    assert torch.equal(values(processor, "A" * 40, **PLAIN), unit(RGB))
    with pytest.raises(ValueError, match=r"images\[0\] 'B{40}' can't be read \(No such file, and as base64: cannot"):
        processor("B" * 40)


BAD_TEXTS = {
    "data:image/png;base64,AAAA": "cannot identify the format",
    "data:image/png;base64,A": "base64",
    f"data:image/png;base64,{TEXT[: len(TEXT) // 8 * 4]}": "truncated",
    TEXT[: len(TEXT) // 8 * 4]: "No such file, and as base64: image file is truncated",
    "A" * 1_000_000: "No such file, and as base64: cannot identify the format",
    "file://elsewhere/a.png": "on this machine, not on elsewhere",
    "file:///nowhere.png": "No such file or directory",
    "github://org:repo@main/a.png": "No such file or directory",
    "ftp://127.0.0.1/a.png": "No such file or directory",
}


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda text: text[:30])
def test_texts_that_are_no_picture_are_refused_in_a_short_sentence(processor: Any, text: str) -> None:
    with pytest.raises(ValueError, match=rf"images\[0\] '.*' can't be read \(.*{BAD_TEXTS[text]}") as raised:
        processor(text)
    assert len(str(raised.value)) < 400


@contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # the client has had enough
                answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/a.png"
    finally:
        server.shutdown()
        server.server_close()


def drip(write: Callable[[bytes], Any]) -> None:
    for _ in range(100):
        write(b"x")
        time.sleep(0.05)


def begin(request: BaseHTTPRequestHandler, *headers: tuple[str, str], status: int = 200) -> Callable[[bytes], Any]:
    request.send_response(status)
    for header in headers:
        request.send_header(*header)
    request.end_headers()
    return request.wfile.write


def endless(request: BaseHTTPRequestHandler) -> None:
    write = begin(request)
    while True:
        write(bytes(2**16))


SERVERS = {
    "an endless body": (endless, "more than 1,000,000 bytes"),
    "a body byte by byte": (lambda request: drip(begin(request)), "not there within 0.5 seconds|too slow"),
    "headers byte by byte": (
        lambda request: (request.wfile.write(b"HTTP/1.1 200 OK\r\nA: "), drip(request.wfile.write)),
        "not there within 0.5 seconds",
    ),
    "silence": (lambda request: time.sleep(2), "timed out|not there within 0.5 seconds"),
    "an early end": (lambda request: begin(request, ("Content-Length", "99"))(b"x"), "ended 98 bytes early"),
    "a way to FTP": (lambda request: begin(request, ("Location", "ftp://127.0.0.1/"), status=302), "ftp"),
    "a way to a file": (lambda request: begin(request, ("Location", "file:///etc/hosts"), status=302), "file"),
}  # fmt: skip


@pytest.mark.parametrize("server", SERVERS)
def test_downloads_have_limits(processor: Any, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    monkeypatch.setattr(reading, "MAX_DOWNLOAD_BYTES", 1_000_000)
    monkeypatch.setattr(reading, "MAX_DOWNLOAD_SECONDS", 30.0 if server == "an endless body" else 0.5)
    answer, reason = SERVERS[server]
    with serving(answer) as url:
        start = time.monotonic()
        with pytest.raises(ValueError, match=rf"images\[0\] 'http://.*a\.png' can't be read \(.*({reason})"):
            processor(url)
        assert time.monotonic() - start < 4
