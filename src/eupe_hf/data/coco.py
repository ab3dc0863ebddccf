# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of images with COCO's JSON as data sets, in the form that those of the Hub have.

Needs `pip install 'eupe-hf[train]'`.
"""

import json
from pathlib import Path
from typing import Any

from eupe_hf.extras import require

from .loading import evenly
from .options import DataArguments, refuse_streaming
from .splits import divide


_SPLITS = {"validation": ("validation", "valid", "val")}  # what a split is called, if not by its name


_FILES = ("annotations.json", "_annotations.coco.json")  # the second by Roboflow


def is_coco_folder(dataset: str) -> bool:
    """Whether this is a folder with COCO's JSON for training."""
    return Path(dataset).is_dir() and _coco_file(Path(dataset), "train") is not None


def _coco_file(root: Path, split: str) -> Path | None:
    aliases = _SPLITS.get(split, (split,))
    places = [root / alias / name for alias in aliases for name in _FILES]
    places += [root / f"{alias}.json" for alias in aliases]
    if split == "train":
        places += [root / name for name in _FILES]
    return next((place for place in places if place.is_file()), None)


def load_coco(arguments: DataArguments, seed: int) -> tuple[Any, Any, str, dict[Any, str]]:
    """Both parts of such a folder as data sets, the name of the second, and class names by category id.

    Args:
        arguments: `dataset` has `annotations.json` beside `images/`, or `train.json` and `validation.json`, or a JSON
            file, also as Roboflow calls it, in `train/` and in `validation/`, `valid/` or `val/`.
        seed: Of the held-out part.

    Raises:
        ValueError: No such file, files that are not COCO's, or that do not have the same categories, each name once;
            or `--labels`, for the files name their categories.
    """
    refuse_streaming(arguments, "COCO's JSON has the boxes apart from the images")
    if arguments.labels:
        raise ValueError(f"The files in {arguments.dataset} name their categories: leave out --labels.")
    root, categories = Path(arguments.dataset), dict[int, str]()
    used, parents = set[int](), set[str]()

    def load(split: str) -> Any:
        file = _coco_file(root, split)
        if file is None:
            raise ValueError(f"{root} has no {split}.json and no {split}/{_FILES[0]} or {split}/{_FILES[1]}.")
        content = _read_coco(file)
        for category in content["categories"]:
            identifier, name = category["id"], str(category["name"])
            if categories.setdefault(identifier, name) != name:
                raise ValueError(
                    f"{file} calls the category {identifier} {name!r}, and another file {categories[identifier]!r}: "
                    "the files must have the same categories."
                )
            parents.add(str(category.get("supercategory")) if category.get("supercategory") != name else "")
        used.update(annotation["category_id"] for annotation in content["annotations"])
        if unknown := used - categories.keys():
            raise ValueError(f"{file} has boxes of the category {min(unknown)}, which is not among its categories.")
        return _coco_rows(content, file, root, split, arguments)

    splits = [split for split in ("train", "validation") if _coco_file(root, split)]
    train, evaluation, split = divide(arguments, load, splits, seed)
    # Roboflow writes the group of all categories as one of them
    names = {i: name for i, name in sorted(categories.items()) if i in used or name not in parents}
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise ValueError(f"The files in {root} have two categories called {twice[0]!r}: give each a name of its own.")
    return train, evaluation, split, names


def _read_coco(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    for key, fields in (
        ("images", ("id", "file_name")), ("annotations", ("image_id", "bbox", "category_id")),
        ("categories", ("id", "name")),
    ):  # fmt: skip
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file} has no list of {key}: it must be COCO's JSON for detection.")
        if bad := [entry for entry in content[key] if not isinstance(entry, dict) or not set(fields) <= set(entry)]:
            raise ValueError(f"{file}: one of the {key} is {bad[0]!r}, it must have {', '.join(fields)}.")
    identifiers = {image["id"] for image in content["images"]}
    if alone := [entry["image_id"] for entry in content["annotations"] if entry["image_id"] not in identifiers]:
        raise ValueError(f"{file} has boxes for the image {alone[0]}, which is not among its images.")
    return content


def _coco_rows(content: dict[str, Any], file: Path, root: Path, split: str, arguments: DataArguments) -> Any:
    """One row per image, also for those without objects, in the form of the data sets of the Hub."""
    datasets, objects = require("datasets"), dict[Any, list[dict[str, Any]]]()
    for annotation in content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    images = evenly(content["images"], arguments.limit)
    if not images:
        raise ValueError(f"{file} has no images.")
    folders = [file.parent, file.parent / "images", *(root / "images" / name for name in _SPLITS.get(split, (split,)))]
    folders += [root / name for name in _SPLITS.get(split, (split,))]
    paths = []
    for image in images:
        places = [folder / image["file_name"] for folder in folders]
        paths.append(str(next((place for place in places if place.is_file()), places[1])))
    listed = [objects.get(image["id"], []) for image in images]
    kinds: Any = datasets.Value
    feature = {
        "bbox": datasets.Sequence(datasets.Sequence(kinds("float64"))),
        "category": datasets.Sequence(kinds("int64")),
        "iscrowd": datasets.Sequence(kinds("int64")),
    }
    columns = {
        arguments.image_column: paths,
        arguments.label_column: [
            {
                "bbox": [entry["bbox"] for entry in entries],
                "category": [entry["category_id"] for entry in entries],
                "iscrowd": [int(entry.get("iscrowd", 0)) for entry in entries],
            }
            for entries in listed
        ],
    }
    features = {arguments.image_column: datasets.Image(decode=False), arguments.label_column: feature}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
