# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of images: with masks or depth maps beside them, or in class folders."""

import os
from pathlib import Path
from typing import Any

import PIL.Image

from eupe_hf.extras import require

from .loading import Source, evenly


_PICTURES = frozenset(PIL.Image.registered_extensions())


class PairFolder(Source):
    """A folder with `images/` and `masks/` or `depth/`, or with such folders per split; file names make pairs."""

    @property
    def unstreamable(self) -> str:
        """Pairs are never streamed."""
        return f"its images and {self.targets} are matched by listing them all"

    @staticmethod
    def fits(dataset: str) -> bool:
        """Whether the folder has `images/`, or folders that have one."""
        folder = Path(dataset)
        return folder.is_dir() and ((folder / "images").is_dir() or any(folder.glob("*/images")))

    def splits(self) -> list[str]:
        """Names of the folders that have `images/`, or "train"."""
        folders = Path(self.arguments.dataset).iterdir()
        return [folder.name for folder in folders if (folder / "images").is_dir()] or ["train"]

    def load(self, split: str) -> Any:
        """The paths of the images and of their partners."""
        datasets, root = require("datasets"), Path(self.arguments.dataset)
        root = root if (root / "images").is_dir() else root / split
        if not (root / "images").is_dir() or not (root / self.targets).is_dir():
            raise ValueError(f"{root} must be a folder with images/NAME.jpg and {self.targets}/NAME.png.")
        images, targets = _by_name(root / "images", _PICTURES), _by_name(root / self.targets, _PICTURES | {".npy"})
        if not images:
            raise ValueError(f"There are no images in {root / 'images'}.")
        if alone := sorted(images.keys() ^ targets.keys()):
            missing = self.targets if alone[0] in images else "images"
            raise ValueError(f"{len(alone)} files in {root} have no partner: {alone[0]!r} is missing in {missing}.")
        names = evenly(sorted(images), self.arguments.limit)
        files = {self.arguments.image_column: images, self.arguments.label_column: targets}
        paths = {column: [str(found[name]) for name in names] for column, found in files.items()}
        features = datasets.Features(dict.fromkeys(files, datasets.Image(decode=False)))
        return datasets.Dataset.from_dict(paths, features=features)


def _by_name(folder: Path, ends: frozenset[str]) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ends}


def check_class_folders(dataset: str) -> None:
    """Refuse folders without any file, and class folders without images, which `datasets` would pass over."""
    folders, full, has_files = list[Path](), set[Path](), False
    for name, _, files in os.walk(dataset):  # yields nothing unless it is a folder
        folders.append(Path(name))
        has_files = has_files or bool(files)
        if any(Path(file).suffix.lower() in _PICTURES for file in files):
            full |= {folders[-1], *folders[-1].parents}
    if folders and not has_files:
        raise ValueError(f"There are no images in {dataset}.")
    empty = [folder for folder in folders if folder not in full and not folder.name.startswith(".")]
    if full and empty:  # without images it is a data set in another format
        raise ValueError(f"The class folder {min(empty)} has no images: fill it or remove it.")
