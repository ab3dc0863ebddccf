# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Boxes of objects: read once from the form that data sets have, COCO's, into corners in pixels."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.utils import logging

from .options import DataArguments
from .rows import Rows, class_id, image_size, object_fault
from .splits import given_names, names_by_label


logger = logging.get_logger(__name__)

_CATEGORIES = ("category", "category_id", "label", "labels")  # keys beside `bbox` in data sets of the Hub
_SMALLEST = 0.1  # pixels: rounding could leave nothing of a shorter side
_SHOWN = 200  # characters of a feature


def read_objects(
    value: Any, width: int, height: int, classes: Mapping[Any, int]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Read the objects of one image, and clip them to it.

    Args:
        value: `bbox` (left, top, width, height in pixels), `category` and perhaps `iscrowd`, as lists, or a list of
            dictionaries with these. Crowds are left out.
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        classes: Class ids by category.

    Returns:
        Boxes (N, 4), float64: left, top, right, bottom in pixels; class ids (N,); and how many boxes are left out
        because they are not finite or have no area inside the image.

    Raises:
        ValueError: There is not one category per box, a box is not four numbers, or a category is unknown.
    """
    boxes, categories, crowds = read_lists(value)
    given = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    corners = torch.cat([given[:, :2], given[:, :2] + given[:, 2:]], dim=1)
    corners = corners.clamp(min=0).minimum(corners.new_tensor([width, height] * 2))
    is_single = ~torch.tensor(crowds, dtype=torch.bool)
    is_box = given.isfinite().all(dim=1) & (corners[:, 2:] - corners[:, :2] > _SMALLEST).all(dim=1)
    kept = is_single & is_box
    labels = [
        class_id(classes, category, f"object {index}")
        for index, (category, is_kept) in enumerate(zip(categories, kept.tolist(), strict=True))
        if is_kept
    ]
    return corners[kept], torch.tensor(labels, dtype=torch.int64), int((is_single & ~is_box).sum())


def read_lists(value: Any) -> tuple[list[list[float]], list[Any], list[bool]]:
    """Boxes, categories and crowd marks of a cell, which is an object of lists or a list of objects.

    Raises:
        ValueError: The cell has another form, or a box, category or crowd mark in it is none.
    """
    if isinstance(value, list) and all(isinstance(entry, Mapping) for entry in value):
        value = {
            key: [entry.get(key) for entry in value] for key in dict.fromkeys(k for entry in value for k in entry)
        }
    value = {} if value is None else value
    if not isinstance(value, Mapping):
        raise ValueError(f"the objects must be lists of bbox and category, got {reprlib.repr(value)}.")
    key = next((key for key in _CATEGORIES if key in value), "category")
    boxes, categories = ([] if value.get(name) is None else value[name] for name in ("bbox", key))
    crowds: Any = value.get("iscrowd")
    if crowds is None and isinstance(boxes, list):
        crowds = [None] * len(boxes)
    for name, given in (("bbox", boxes), (key, categories), ("iscrowd", crowds)):
        if not isinstance(given, list):
            raise ValueError(f"{name} must be a list with an entry per object, got {reprlib.repr(given)}.")
    if not len(boxes) == len(categories) == len(crowds):
        counts = f"{len(categories)} categories and {len(crowds)} crowd marks"
        raise ValueError(f"there are {len(boxes)} boxes, of four numbers each, and {counts}.")
    for index, found in enumerate(zip(boxes, categories, crowds, strict=True)):
        if fault := object_fault(*found):
            raise ValueError(f"object {index} {fault}")
    return boxes, categories, [bool(crowd) for crowd in crowds]


def category_names(parts: Sequence[Rows], arguments: DataArguments, feature: Any) -> dict[Any, str]:
    """Class names by category: of `--labels` or of the data set, otherwise the categories of `parts`, in order.

    `feature` is the feature of the column with the objects.

    Raises:
        ValueError: The column has no boxes and categories, or a category is beyond the names.
    """
    feature = getattr(feature, "feature", feature)  # a list of objects, or an object of lists
    key = next((key for key in _CATEGORIES if isinstance(feature, Mapping) and key in feature), None)
    is_mixed = type(feature).__name__ == "Json"  # of `datasets`: the rows differ, and each is looked at
    if (key is None or "bbox" not in feature) and not is_mixed:
        raise ValueError(
            f"The column {arguments.label_column!r} of {arguments.dataset} must have, per image, bbox and category: "
            "lists of boxes, left, top, width, height in pixels, and of their categories. It is "
            f"{str(feature)[:_SHOWN]}."
        )
    kind = None if is_mixed else getattr(feature[key], "feature", feature[key])
    given = given_names(arguments, kind)
    occur = {
        category
        for part in parts
        for row, cell in enumerate(part.data[arguments.label_column])
        for category in _categories(part, row, cell, arguments.dataset)
    }
    names = names_by_label(given, occur, arguments.dataset)
    if beyond := occur - names.keys():
        raise ValueError(
            f"{arguments.dataset} has boxes of the category {min(beyond)!r}, beyond the {len(names)} class names."
        )
    return names


def _categories(part: Rows, row: int, cell: Any, dataset: str) -> list[Any]:
    try:
        return read_lists(cell)[1]
    except ValueError as error:
        raise ValueError(f"{dataset}, {part.name(row)}: {error}") from error


def count_boxes(name: str, cells: tuple[Any, ...], classes: Mapping[Any, int]) -> tuple[str, int, int]:
    """A check for `readable`: the name of a row, how many boxes it has, and how many `read_objects` leaves out."""
    image, objects = cells
    height, width = image_size(image)
    try:
        boxes, _, skipped = read_objects(objects, width, height, classes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return name, len(boxes), skipped


def report_boxes(found: list[tuple[str, int, int]], what: str, arguments: DataArguments) -> None:
    """Refuse a part without boxes; warn of boxes that are left out, or refuse them with `--strict`."""
    total, skipped = sum(row[1] for row in found), sum(row[2] for row in found)
    if not skipped:
        if not total:
            raise ValueError(f"The {what} part of {arguments.dataset} has {len(found)} images and no box.")
        return
    first = next(name for name, _, bad in found if bad)
    problem = (
        f"{skipped} of {total + skipped} boxes of the {what} part have no area inside their image, the first in "
        f"{first}: COCO's are left, top, width, height in pixels of the original image."
    )
    if arguments.strict or not total:
        raise ValueError(problem)
    logger.warning(f"{problem} They are skipped.")


def are_shares(cells: tuple[Any, ...]) -> bool | None:
    """Whether all boxes of a row lie in [0, 1], which in pixels is the first of the image; `None` without boxes.

    The whole of [0, 1] may be a pixel.
    """
    image, objects = cells
    boxes, _, crowds = read_lists(objects)
    single = [box for box, is_crowd in zip(boxes, crowds, strict=True) if not is_crowd]
    if not single or min(image_size(image)) < 2:
        return None
    return all(0 <= value <= 1 for box in single for value in box) and any(set(box) - {0, 1} for box in single)


def refuse_shares(found: list[bool | None], what: str, arguments: DataArguments) -> None:
    """Refuse a part in which the boxes of each row with boxes are shares; `found` is of `are_shares`."""
    known = [is_share for is_share in found if is_share is not None]
    if known and all(known):
        raise ValueError(
            f"The boxes of the {what} part of {arguments.dataset} are all from 0 to 1, as shares of the image's sides "
            "are. COCO's are left, top, width, height in pixels: multiply them by the width and height of their image."
        )
