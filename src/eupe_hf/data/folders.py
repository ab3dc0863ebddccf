# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of images: in class folders, or with masks or depth maps beside them."""

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageOps
from transformers.utils import logging

from eupe_hf.extras import require

from .loading import evenly
from .options import DataArguments


logger = logging.get_logger(__name__)


_PICTURES = frozenset(PIL.Image.registered_extensions())


def is_pair_folder(dataset: str) -> bool:
    """Whether this is a folder with `images`, or with folders that have one."""
    folder = Path(dataset)
    return folder.is_dir() and ((folder / "images").is_dir() or any(folder.glob("*/images")))


def _pairs(arguments: DataArguments, columns: Mapping[str, str], split: str, targets: str) -> Any:
    """Images and the files that belong to them, joined by their names."""
    datasets, root = require("datasets"), Path(arguments.dataset)
    root = root if (root / "images").is_dir() else root / split
    if not (root / "images").is_dir() or not (root / targets).is_dir():
        raise ValueError(f"{root} must be a folder with images/NAME.jpg and {targets}/NAME.png.")
    kinds = {"images": _PICTURES, targets: _PICTURES | {".npy"}}
    images, found = ({path.stem: path for path in _files(root / name, ends)} for name, ends in kinds.items())
    if not images:
        raise ValueError(f"There are no images in {root / 'images'}.")
    if alone := sorted(images.keys() ^ found.keys()):
        missing = targets if alone[0] in images else "images"
        raise ValueError(f"{len(alone)} files in {root} have no partner: {alone[0]!r} is missing in {missing}.")
    names = evenly(sorted(images), arguments.limit)
    files = {columns["image"]: images, columns["label"]: found}
    data = datasets.Dataset.from_dict({key: [str(paths[name]) for name in names] for key, paths in files.items()})
    for column in files:
        data = data.cast_column(column, datasets.Image(decode=False))
    return data


def _files(folder: Path, ends: Set[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ends)


# ---- checks ----


def check_class_folders(dataset: str) -> None:
    """Refuse class folders without images, which `imagefolder` passes over, and folders without any file."""
    folders: list[Path] = []
    full: set[Path] = set()
    has_files = False
    for name, _, files in os.walk(dataset):  # nothing for what is no folder
        folders.append(Path(name))
        has_files = has_files or bool(files)
        if any(Path(file).suffix.lower() in _PICTURES for file in files):
            full |= {folders[-1], *folders[-1].parents}
    if folders and not has_files:
        raise ValueError(f"There are no images in {dataset}.")
    empty = [folder for folder in folders if folder not in full and not folder.name.startswith(".")]
    if full and empty:  # without any picture it is a data set in another format
        raise ValueError(f"The class folder {min(empty)} has no images: fill it or remove it.")
