# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of data sets: images, labels and maps, and the checks before the first step."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps, PngImagePlugin

from eupe_hf.data.checks import check_map_size, readable, skip
from eupe_hf.data.rows import Classes, Rows, UnreadableError, image_size, read_image, row_name
from eupe_hf.data.streams import Stream


def encoded(pixels: np.ndarray, kind: str = "PNG") -> dict[str, Any]:
    file = io.BytesIO()
    if kind == "NPY":
        np.save(file, pixels)
    else:
        Image.fromarray(pixels).save(file, kind)
    return {"bytes": file.getvalue(), "path": f"map.{kind.lower()}"}


def test_cells_have_the_types_of_their_columns() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    depth = np.linspace(0, 9, 12, dtype=">f4").reshape(3, 4)
    row = {"a": encoded(pixels), "b": encoded(pixels), "c": encoded(depth, "NPY"), "d": [[1, 2]], "e": [1, None]}
    image, mask, metres, listed, points = Rows(
        [row], {"image": "a", "label": "b", "depth": "c", "map": "d", "points": "e"}
    )[0]
    assert np.array_equal(image, pixels) and isinstance(image, Image.Image)
    assert mask.dtype == torch.uint8 and mask.tolist() == pixels.tolist()
    assert metres.dtype == torch.float32 and metres.tolist() == depth.tolist()
    assert listed.dtype == points.dtype == torch.float64 and listed.tolist() == [[1, 2]]
    assert points[0] == 1 and points[1].isnan()
    assert Rows([{"d": [[1, 2]]}], {"label": "d"})[0][0].dtype == torch.int64
    value = {"bbox": [[0, 0, 1, 1]]}
    assert Rows([{"o": value}], {"objects": "o"})[0] == (value,)


def test_labels_become_class_ids_and_unknown_ones_are_named() -> None:
    rows = Rows([{"label": "b"}, {"label": "z"}], {"label": "label"}, Classes({"a": 0, "b": 1}))
    assert rows[0] == (1,)
    with pytest.raises(
        ValueError, match=r"^Row 1, 'label' has the label 'z', which is beyond the 2 classes: 'a', 'b'\.$"
    ):
        rows[1]
    many = Classes({i: i for i in range(9)})
    assert many.beyond(9) == "the label 9, which is beyond the 9 classes: 0, 1, 2, ..., 8."
    with pytest.raises(IndexError):
        rows[2]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"bytes": b"no picture", "path": "a.png"}, r"Row 0, 'x' \(a\.png\) cannot be read: "),
        ({"bytes": None, "path": "nowhere.png"}, r"Row 0, 'x' \(nowhere\.png\) cannot be read: "),
        ({"bytes": b"no picture", "path": None}, r"Row 0, 'x' \(no file name\) cannot be read: "),
        ({"bytes": b"no array", "path": "a.npy"}, r"Row 0, 'x' \(a\.npy\) cannot be read: "),
        ([["a"]], "Row 0, 'x' is not an array of numbers: "),
    ],
)
def test_unreadable_cells_are_named(value: Any, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        Rows([{"x": value}], {"map": "x"})[0]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image", {"bytes": "x"}, "is no file: it must have either 'bytes' or, as text, 'path', got {'bytes': 'x'}."),
        ("image", {"path": 5}, "is no file: it must have either"),
        ("image", {}, "is no file: it must have either"),
        ("image", {"bytes": None, "path": None}, "is no file: it must have either"),
        ("image", {"bytes": [1, 2], "path": "a.png"}, "is no file: it must have either"),
        ("image", None, "is not an image but of type NoneType."),
        ("image", [1], "is not an image but of type list."),
        ("image", "nowhere.png", "(nowhere.png) cannot be read: "),
        ("label", None, "is not an array of numbers: None."),
        ("label", [[1, 2], [3]], "is not an array of numbers: [[1, 2], [3]]."),
        ("label", [["a"]], "is not an array of numbers: [['a']]."),
        ("label", [[2**70]], "is not an array of numbers: [[1180591620717411303424]]."),
        ("label", {"bytes": None, "path": 5}, "is no file: it must have either"),
        ("box", [1, "x"], "is not an array of numbers: [1, 'x']."),
        ("box", [10**400], "is not an array of numbers: "),
    ],
)
def test_cells_of_other_types_are_refused_in_a_sentence(key: str, value: Any, words: str) -> None:
    with pytest.raises(UnreadableError) as raised:
        Rows([{"x": value}], {key: "x"})[0]
    assert str(raised.value).startswith("Row 0, 'x' ") and words in str(raised.value)


ONE = np.ones((8, 12))
ARRAYS = {
    "text": ONE.astype("U3"), "bytes": ONE.astype("S3"), "dates": ONE.astype("M8[s]"), "spans": ONE.astype("m8[s]"),
    "complex": ONE.astype(complex),
    "records": np.zeros((8, 12), [("a", int), ("b", "f4")]), "objects": ONE.astype(object),
    "large": np.full((8, 12), 2**64 - 1, np.uint64),
}  # fmt: skip


@pytest.mark.parametrize("kind", [*ARRAYS, "claims 74 GB", "negative", "archive", "version", "cut", "header"])
def test_array_files_that_are_no_maps_are_refused_in_a_sentence(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    (np.savez if kind == "archive" else np.save)(file, ARRAYS.get(kind, ONE))
    data = file.getvalue()
    if kind in ("claims 74 GB", "negative"):
        shape = b"(99999, 93000), }" if kind == "claims 74 GB" else b"(-8, 12), }"
        data = data.replace(b"(8, 12), }" + b" " * (len(shape) - 10), shape)
    data = {"version": data[:6] + b"\x09" + data[7:], "cut": data[:-1], "header": data[:10] + b"[" * 118}.get(
        kind, data
    )
    (tmp_path / "a.npy").write_bytes(data)
    for value in ({"bytes": data, "path": "a.npy"}, {"bytes": None, "path": str(tmp_path / "a.npy")}):
        with pytest.raises(UnreadableError, match=r"^Row 0, 'x' "):
            Rows([{"x": value}], {"label": "x"})[0]


@pytest.mark.parametrize("kind", ["u2", "u4", "u8", ">u2", ">i4", "?", "i1", "f2"])
def test_maps_of_every_number_type_can_be_computed_with(kind: str) -> None:
    values = np.array([[0, 1], [1, 100]]).astype(kind)
    (found,) = Rows([{"x": encoded(values, "NPY")}], {"label": "x"})[0]
    assert found.tolist() == values.tolist() and found.max() == values.max() and found[found != 1].tolist()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("github://org:repo@main/a.png", "github:// is not among hf, http, https, tar, zip"),
        ("file:///etc/hostname", "file:// is not among"),
        ("zip://a.png::sftp://host/b.zip", "sftp:// is not among"),
        ("hf://datasets/me/pictures/a.png", "it is on the network, and HF_HUB_OFFLINE is set"),
        ("https://example.org/a.png", "it is on the network, and HF_HUB_OFFLINE is set"),
    ],
)
def test_files_elsewhere_have_a_short_list_of_protocols(
    path: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eupe_hf.data.rows.is_offline_mode", lambda: True)
    with pytest.raises(UnreadableError, match=rf"Row 0, 'x' \(.*\) cannot be read: {words}"):
        Rows([{"x": {"bytes": None, "path": path}}], {"image": "x"})[0]


def test_pictures_out_of_range_are_named_and_maps_are_read() -> None:
    metres = np.full((4, 4), 4000, dtype=np.float32)
    cell = encoded(metres, "TIFF")
    with pytest.raises(
        UnreadableError, match=r"Row 0, 'x' \(map\.tiff\) \(torch\.float32\) has values from 4000 to 4000"
    ):
        Rows([{"x": cell}], {"image": "x"})[0]
    assert Rows([{"x": cell}], {"label": "x"})[0][0].tolist() == metres.tolist()
    assert Rows([{"x": encoded(metres / 4000, "TIFF")}], {"image": "x"})[0][0].mode == "F"


def test_whatever_a_decoder_raises_is_an_unreadable_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise IndexError("tile")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(UnreadableError, match=r"Row 0, 'x' \(map\.png\) cannot be read: IndexError: tile"):
        Rows([{"x": encoded(np.zeros((4, 4), np.uint8))}], {"image": "x"})[0]


def test_cells_that_are_not_images_are_named() -> None:
    with pytest.raises(UnreadableError, match="The image is not an image but of type str"):
        read_image("a.png", "The image")


def test_rows_are_named_by_their_last_file() -> None:
    assert row_name({"image": {"path": "a.png"}, "mask": {"path": "b.png"}, "label": 1}, "row 3") == "b.png"
    assert row_name({"image": {"path": None, "bytes": b""}, "label": 1}, "row 3") == "row 3"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_of_upright_images(orientation: int) -> None:
    image = Image.new("L", (4, 3))
    image.getexif()[0x0112] = orientation
    assert image_size(image) == ImageOps.exif_transpose(image).size[::-1]
    height, width = image_size(image)
    check_map_size("a.png", "mask", image, torch.zeros(height, width))
    with pytest.raises(ValueError, match=rf"a\.png: the mask is {height} x {width} pixels and its image {width} x"):
        check_map_size("a.png", "mask", image, torch.zeros(width, height))
    assert image_size(torch.zeros(3, 5, 7)) == (5, 7)


# ---- checks ----


def rows_of(*pixels: int | None) -> Rows:
    values = [
        {"bytes": b"no picture", "path": f"{i}.png"} if value is None else encoded(np.full((2, 2), value, np.uint8))
        for i, value in enumerate(pixels)
    ]
    return Rows(datasets.Dataset.from_list([{"image": value} for value in values]), {"image": "image"})


def test_unreadable_rows_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    rows, found = readable(
        rows_of(5, None, 7), strict=False, check=lambda name, cells: (name, cells[0].getpixel((0, 0)))
    )
    assert found == [("map.png", 5), ("map.png", 7)] and len(rows) == 2
    assert "Skipped 1 of 3 rows. Row 1, 'image' (1.png) cannot be read: " in caplog.text
    same = rows_of(5, 7)
    assert readable(same, strict=True) == (same, [None, None])
    with pytest.raises(ValueError, match=r"1 of 3 rows cannot be read\. Row 1, 'image' \(1\.png\)"):
        readable(rows_of(5, None, 7), strict=True)
    with pytest.raises(ValueError, match=r"None of 2 rows can be read\. Row 0"):
        readable(rows_of(None, None), strict=False)


def test_what_a_check_raises_is_not_skipped() -> None:
    def refuse(name: str, cells: Any) -> None:
        raise ValueError(f"{name} is wrong")

    with pytest.raises(ValueError, match=r"map\.png is wrong"):
        readable(rows_of(5), strict=False, check=refuse)


def test_rows_keep_their_numbers_when_others_are_left_out() -> None:
    rows = rows_of(5, None, 7, None).select([3, 2, 1]).select([0, 1])
    assert rows.name(1) == "map.png" and list(rows.numbers) == [3, 2]
    with pytest.raises(UnreadableError, match=r"^Row 3, 'image'"):
        rows[0]


def test_labels_that_are_no_classes_are_refused_with_their_row() -> None:
    rows = Rows(datasets.Dataset.from_dict({"label": [[1], [2]]}), {"label": "label"})
    with pytest.raises(ValueError, match=r"^photos, row 0, has the label \[1\]: a class is text or a number\.$"):
        rows.labels("photos")
    with pytest.raises(ValueError, match="The label is a number, the classes are text: write both one way"):
        Rows([{"label": 3}], {"label": "label"}, Classes({"1": 0, "3": 1}))[0]


def test_a_message_names_ten_rows_and_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    problems = [None, *(f"Row {i} is bad." for i in range(1, 13)), None]
    assert skip(problems, strict=False, use="used") == [0, 13]
    assert "Skipped 12 of 14 rows." in caplog.text and "And 2 more." in caplog.text
    assert "Row 10 is bad." in caplog.text and "Row 11 is bad." not in caplog.text
    assert skip([None, None], strict=True) == [0, 1]


# ---- streams ----


def stream_of(*pixels: int | None, **options: Any) -> Stream:
    rows = rows_of(*pixels)
    return Stream(rows.data.to_iterable_dataset(), rows.columns, **options)


def test_rows_of_a_stream_come_with_numbers_that_go_on(tmp_path: Path) -> None:
    stream = iter(stream_of(5, 7, buffer=1))
    turns = [next(stream) for _ in range(5)]
    assert [number for number, _ in turns] == [0, 1, 2, 3, 4]
    assert [cells[0].getpixel((0, 0)) for _, cells in turns] == [5, 7, 5, 7, 5]


def test_unreadable_rows_of_a_stream_keep_their_numbers() -> None:
    rows = stream_of(5, None, 7, buffer=1)
    stream = iter(rows)
    assert [next(stream)[0] for _ in range(4)] == [0, 2, 3, 5] and rows.skipped.tolist() == [2]
    with pytest.raises(UnreadableError, match=r"0\.png, 'image' \(0\.png\) cannot be read"):
        list(stream_of(None, strict=True, buffer=1))
    with pytest.raises(ValueError, match="None of 2 rows can be read, nor any other of this turn"):
        next(iter(stream_of(None, None)))
    with pytest.raises(ValueError, match="The stream is empty"):
        Stream(rows.data.filter(lambda row: False), rows.columns).first(3)


def test_first_rows_of_a_stream_are_checked_and_the_others_when_they_come() -> None:
    rows = stream_of(*range(70), buffer=1)
    checked: list[int] = []
    same, found = readable(rows, strict=False, check=lambda _, cells: checked.append(cells[0].getpixel((0, 0))))
    assert same is rows and sorted(checked) == list(range(64)) and len(found) == 64
    checked.clear()
    next(iter(rows))
    assert checked == [0]
