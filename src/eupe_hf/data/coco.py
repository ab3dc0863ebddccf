# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of images with COCO's JSON, read into the form of the detection data sets on the Hub."""

import reprlib
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from eupe_hf.extras import require

from .loading import Source, evenly, read_json
from .rows import object_fault


_SPLITS = {"validation": ("validation", "valid", "val")}  # names of a split
_MAX_NAME = 250  # characters, which every file system has room for
_FILES = ("annotations.json", "_annotations.coco.json")  # the second is Roboflow's
_ID = ((int, float, str), "a number or text")
_FIELDS: dict[str, dict[str, Any]] = {
    "images": {"id": _ID, "file_name": ((str,), "text")},
    "annotations": {"image_id": _ID, "bbox": ((list,), "four numbers"), "category_id": _ID},
    "categories": {"id": _ID, "name": _ID},
}


class CocoFolder(Source):
    """A folder with `annotations.json` beside `images/`, or with one of these files per split.

    Per split: `train.json` and `validation.json`, or `annotations.json` in `train/` and in `validation/`, `valid/` or
    `val/`. Roboflow's name for `annotations.json` works as well.
    """

    @property
    def unstreamable(self) -> str:
        """COCO's JSON is never streamed."""
        return "COCO's JSON has the boxes apart from the images"

    @staticmethod
    def fits(dataset: str) -> bool:
        """Whether the folder has COCO's JSON for training."""
        return Path(dataset).is_dir() and _file(Path(dataset), "train") is not None

    def splits(self) -> list[str]:
        """Those of "train" and "validation" that have a file."""
        return [split for split in ("train", "validation") if _file(Path(self.arguments.dataset), split)]

    def load(self, split: str) -> Any:
        """One row per image, also for those without objects; categories are numbered 0, 1, ... in their order."""
        datasets, root = require("datasets"), Path(self.arguments.dataset)
        file, content = self._contents[split]
        ids = {category: index for index, category in enumerate(self._categories)}
        objects: Any = {image["id"]: {"bbox": [], "category": [], "iscrowd": []} for image in content["images"]}
        for entry in content["annotations"]:
            values = entry["bbox"], ids[entry["category_id"]], int(entry.get("iscrowd") or 0)
            for listed, value in zip(objects[entry["image_id"]].values(), values, strict=True):
                listed.append(value)
        names = _SPLITS.get(split, (split,))
        folders = [file.parent, file.parent / "images", *(root / "images" / name for name in names)]
        folders += [root / name for name in names]
        paths, cells = [], []
        for image in evenly(content["images"], self.arguments.limit):
            name = image["file_name"]
            if len(name) > 1000 or max(map(len, name.split("/"))) > _MAX_NAME:
                raise ValueError(f"{file}: the 'file_name' {name[:40]}... has {len(name):,} characters: no file has.")
            places = [folder / name for folder in folders]
            paths.append(str(next((place for place in places if place.is_file()), places[1])))
            cells.append(objects[image["id"]])
        if not paths:
            raise ValueError(f"{file} has no images.")
        feature = {
            "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
            "category": datasets.Sequence(datasets.ClassLabel(names=list(self._categories.values()))),
            "iscrowd": datasets.Sequence(datasets.Value("int64")),
        }
        image_column, label_column = self.arguments.image_column, self.arguments.label_column
        features = datasets.Features({image_column: datasets.Image(decode=False), label_column: feature})
        return datasets.Dataset.from_dict({image_column: paths, label_column: cells}, features=features)

    @cached_property
    def _contents(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """By split the files that the run needs, and what is in them."""
        root, found = Path(self.arguments.dataset), {}
        if self.arguments.labels:
            raise ValueError(f"The files in {root} name their categories: leave out --labels.")
        for split in filter(None, (self.arguments.train_split, self.eval_split())):
            file = _file(root, split)
            if file is None:
                raise ValueError(f"{root} has no {split}.json and no {split}/{_FILES[0]} or {split}/{_FILES[1]}.")
            found[split] = file, _read(file)
        return found

    @cached_property
    def _categories(self) -> dict[Any, str]:
        """Names by category id, in the order of the ids, without the group of all categories that Roboflow writes."""
        categories, used, groups = dict[Any, str](), set[Any](), set[str]()
        for file, content in self._contents.values():
            for index, category in enumerate(content["categories"]):
                key, name = category["id"], str(category["name"])
                if categories.setdefault(key, name) != name:
                    raise ValueError(
                        f"{file}: categories[{index}] calls the category {key!r} {name!r}, and another place "
                        f"{categories[key]!r}: a category must have one name."
                    )
                if category.get("supercategory") != name:
                    groups.add(str(category.get("supercategory")))
            for index, annotation in enumerate(content["annotations"]):
                used.add(key := annotation["category_id"])
                if key not in categories:
                    hint = _other_type(key, categories)
                    raise ValueError(
                        f"{file}: annotations[{index}] is of the category {key!r:.80}, which is not among its "
                        f"categories.{hint}"
                    )
        if len({isinstance(key, str) for key in categories}) > 1:
            raise ValueError(f"The category ids in {self.arguments.dataset} are text and numbers: write them one way.")
        names = {key: name for key, name in sorted(categories.items()) if key in used or name not in groups}
        if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
            where = f"The files in {self.arguments.dataset}"
            raise ValueError(f"{where} have two categories called {twice[0]!r}: give each a name of its own.")
        return names


def _file(root: Path, split: str) -> Path | None:
    names = _SPLITS.get(split, (split,))
    places = [*(root / name / file for name in names for file in _FILES), *(root / f"{name}.json" for name in names)]
    if split == "train":
        places += [root / file for file in _FILES]
    return next((place for place in places if place.is_file()), None)


def _read(file: Path) -> dict[str, Any]:
    content = read_json(file)
    for key, fields in _FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{file} has no list of {key}: it must be COCO's JSON for detection.")
        for index, entry in enumerate(content[key]):
            fault = _fault(entry, fields)
            if not fault and key == "annotations":
                fault = object_fault(entry["bbox"], entry["category_id"], entry.get("iscrowd"))
            if fault:
                raise ValueError(f"{file}: {key}[{index}] {fault}")
    images = [image["id"] for image in content["images"]]
    known = dict(zip(images, range(len(images)), strict=True))
    if len(known) < len(images):
        twice = next(index for index, image in enumerate(images) if known[image] != index)
        raise ValueError(f"{file}: images[{twice}] and images[{known[images[twice]]}] have one id, {images[twice]!r}.")
    for index, entry in enumerate(content["annotations"]):
        if (image := entry["image_id"]) not in known:
            hint = _other_type(image, known)
            raise ValueError(
                f"{file}: annotations[{index}] is of the image {image!r:.80}, which is not among its images.{hint}"
            )
    return content


def _fault(entry: Any, fields: Mapping[str, Any]) -> str:
    """What is wrong with the fields of an entry; empty if nothing is."""
    if not isinstance(entry, dict):
        return f"is {reprlib.repr(entry)}, it must have {', '.join(fields)}."
    if missing := [field for field in fields if field not in entry]:
        return f"has no {missing[0]}, it must have {', '.join(fields)}."
    for field, (kinds, words) in fields.items():
        value = entry[field]
        if not isinstance(value, kinds) or isinstance(value, bool) or value == "" or value != value:
            return f"has the {field} {reprlib.repr(value)}: it must be {words}."
    return ""


def _other_type(value: Any, known: Collection[Any]) -> str:
    """A hint for an id that is there as text where it is a number, or the other way round."""
    if str(value) not in {str(one) for one in known}:
        return ""
    return " It is text in one place and a number in the other: write it one way."
