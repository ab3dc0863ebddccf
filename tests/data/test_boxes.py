# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Boxes of objects, from the forms that data sets have to corners in pixels."""

import math
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from eupe_hf.data.boxes import category_names, count_boxes, read_objects, report_boxes
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Classes, Rows


BOX = [10, 4, 8, 6.5]


@pytest.mark.parametrize(
    "value",
    [
        {"bbox": [BOX, [0, 0, 2, 2]], "category": [7, 3]},
        {"bbox": [BOX, [0, 0, 2, 2]], "category_id": [7, 3], "iscrowd": [0, 0]},
        [{"bbox": BOX, "label": 7}, {"bbox": [0, 0, 2, 2], "label": 3}],
        {"bbox": [BOX, [1, 1, 5, 5], [0, 0, 2, 2]], "labels": [7, 3, 3], "iscrowd": [False, True, None]},
    ],
)
def test_forms_of_objects_give_the_same_corners(value: Any) -> None:
    boxes, labels, skipped = read_objects(value, 40, 30, {3: 0, 7: 1})
    assert boxes.dtype == torch.float64 and boxes.tolist() == [[10, 4, 18, 10.5], [0, 0, 2, 2]]
    assert labels.dtype == torch.int64 and labels.tolist() == [1, 0] and skipped == 0


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        ([-5, -5, 10, 10], [0, 0, 5, 5]),
        ([30, 20, 50, 50], [30, 20, 40, 30]),
        ([0.3, 0.1, 0.2, 0.7], [0.3, 0.1, 0.3 + 0.2, 0.1 + 0.7]),
        ([3, 3, 0, 5], None),
        ([3, 3, -2, 5], None),
        ([3, 3, 0.09, 5], None),
        ([50, 3, 5, 5], None),
        ([-9, 3, 5, 5], None),
        ([math.nan, 0, 1, 1], None),
        ([0, 0, math.inf, 1], None),
    ],
)
def test_boxes_are_clipped_or_counted(box: list[float], corners: list[float] | None) -> None:
    boxes, labels, skipped = read_objects({"bbox": [box], "category": [3]}, 40, 30, {3: 0})
    assert boxes.tolist() == ([] if corners is None else [corners])
    assert (len(labels), skipped) == ((0, 1) if corners is None else (1, 0))


def test_cells_without_objects_and_faulty_cells() -> None:
    for value in (None, [], {"bbox": [], "category": []}):
        boxes, labels, skipped = read_objects(value, 40, 30, {})
        assert boxes.shape == (0, 4) and labels.shape == (0,) and skipped == 0
    with pytest.raises(ValueError, match="1 boxes, of four numbers each, and 2 categories"):
        read_objects({"bbox": [BOX], "category": [3, 3]}, 40, 30, {3: 0})
    with pytest.raises(ValueError, match="1 boxes, of four numbers each, and 1 categories and 2 crowd marks"):
        read_objects({"bbox": [BOX], "category": [3], "iscrowd": [0, 0]}, 40, 30, {3: 0})
    with pytest.raises(ValueError, match=r"^object 0 has the bbox \[10, 4, 8\]: it must be four"):
        read_objects({"bbox": [BOX[:3]], "category": [3]}, 40, 30, {3: 0})
    with pytest.raises(ValueError, match="the label 4, which is beyond the 1 classes"):
        read_objects({"bbox": [BOX], "category": [4]}, 40, 30, Classes({3: 0}))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"bbox": [None], "category": [3]}, "object 0 has the bbox None: it must be four numbers, left, top, width"),
        ({"bbox": [BOX, [1, None, 5, 4]], "category": [3, 3]}, r"object 1 has the bbox \[1, None, 5, 4\]"),
        ({"bbox": [[BOX]], "category": [3]}, r"object 0 has the bbox \[\[10, 4, 8, 6.5\]\]"),
        ({"bbox": [["1", 2, 3, 4]], "category": [3]}, "object 0 has the bbox"),
        ({"bbox": [[True, 2, 3, 4]], "category": [3]}, "object 0 has the bbox"),
        ({"bbox": [[10**400, 2, 3, 4]], "category": [3]}, "object 0 has the bbox"),
        ({"bbox": BOX, "category": [3, 3, 3, 3]}, "object 0 has the bbox 10"),
        ({"bbox": 5, "category": [3]}, "bbox must be a list with an entry per object, got 5"),
        ({"bbox": [BOX], "category": 3}, "category must be a list with an entry per object, got 3"),
        ({"bbox": [BOX], "category": [None]}, "object 0 has the category None: it must be text or a number"),
        ({"bbox": [BOX], "category": [[3]]}, r"object 0 has the category \[3\]"),
        ({"bbox": [BOX], "category": [3], "iscrowd": ["0"]}, "object 0 has the iscrowd '0': it must be 0 or 1"),
        ({"bbox": [BOX], "category": [3], "iscrowd": [2]}, "object 0 has the iscrowd 2"),
        ([{"bbox": BOX, "category": 3}, {"category": 3}], "object 1 has the bbox None"),
        ([{"bbox": BOX, "category": 3}, 5], "the objects must be lists of bbox and category, got "),
        ("x", "the objects must be lists of bbox and category, got 'x'"),
        (
            {"bbox": [BOX], "category": ["3"]},
            "object 0 has the label '3', .* The label is text, the classes are numbers",
        ),
    ],
)
def test_objects_of_other_types_are_refused_with_their_index(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        read_objects(value, 40, 30, Classes({3: 0}))


def objects(category: Any, *kinds: list[Any]) -> Rows:
    feature = {
        "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        "category": datasets.Sequence(category),
    }
    rows = [{"bbox": [BOX] * len(listed), "category": listed} for listed in kinds]
    data = datasets.Dataset.from_dict({"objects": rows}, features=datasets.Features({"objects": feature}))
    return Rows(data, {"objects": "objects"})


def test_categories_are_named_by_the_data_or_by_what_occurs() -> None:
    arguments = DataArguments("d", label_column="objects")
    for category, kinds, expected in (
        (datasets.ClassLabel(names=["cup", "box"]), ([1], [], [1, 0]), {0: "cup", 1: "box"}),
        (datasets.Value("int64"), ([20], [3, 7]), {3: "3", 7: "7", 20: "20"}),
        (datasets.Value("string"), (["cup"], ["box"]), {"box": "box", "cup": "cup"}),
    ):
        rows = objects(category, *kinds)
        names = category_names([rows], arguments, rows.data.features["objects"])
        assert list(names.items()) == list(expected.items())
    numbers = objects(datasets.Value("int64"), [0, 5])
    with pytest.raises(
        ValueError, match="The column 'objects' of d must have, per image, bbox and category: lists of box"
    ):
        category_names([numbers], arguments, datasets.Value("int64"))


def test_categories_of_both_kinds_and_faulty_objects_are_refused_with_the_row() -> None:
    arguments = DataArguments("d", label_column="objects")
    texts, numbers = objects(datasets.Value("string"), ["1"], ["3"]), objects(datasets.Value("int64"), [3])
    with pytest.raises(ValueError, match="The labels of d are both text, such as '1', and numbers, such as 3: write"):
        category_names([texts, numbers], arguments, texts.data.features["objects"])
    rows = objects(datasets.Value("int64"), [3], [None])
    with pytest.raises(ValueError, match=r"^d, row 1: object 0 has the category None: it must be text or a number"):
        category_names([rows], arguments, rows.data.features["objects"])


def test_categories_beyond_the_names_are_refused(tmp_path: Any) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    rows = objects(datasets.Value("int64"), [0, 5])
    arguments = DataArguments("d", label_column="objects", labels=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match="d has boxes of the category 5, beyond the 2 class names"):
        category_names([rows], arguments, rows.data.features["objects"])


def test_boxes_are_counted_in_upright_images(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("L", (10, 40))
    image.getexif()[0x0112] = 6  # upright it is 40 pixels wide
    value = {"bbox": [[30, 2, 5, 5], [2, 30, 5, 5]], "category": [0, 0]}
    assert count_boxes("a.png", (image, value), {0: 0}) == ("a.png", 1, 1)
    with pytest.raises(ValueError, match=r"^a\.png: there are 1 boxes"):
        count_boxes("a.png", (image, {"bbox": [BOX], "category": []}), {0: 0})
    report_boxes([("a.png", 3, 0)], "training", DataArguments("d"))
    assert not caplog.text
    report_boxes([("a.png", 3, 0), ("b.png", 1, 2)], "training", DataArguments("d"))
    assert "2 of 6 boxes of the training part have no area inside their image, the first in b.png" in caplog.text
    for found, strict in (([("b.png", 1, 2)], True), ([("b.png", 0, 2)], False)):
        with pytest.raises(ValueError, match=r"boxes of the evaluation part have no area .* first in b\.png"):
            report_boxes(found, "evaluation", DataArguments("d", strict=strict))
    with pytest.raises(ValueError, match="The training part of d has 1 images and no box"):
        report_boxes([("a.png", 0, 0)], "training", DataArguments("d"))
