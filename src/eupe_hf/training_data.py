# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Data for training recipes: options, splits, and checks before the first step.

Needs `pip install 'eupe-hf[train]'`.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
from transformers.utils import logging

from .data import Classes, Rows, Stream, UnreadableError, accept, load_split
from .metrics import require
from .training_scale import as_rows, check_named, refuse_streaming


logger = logging.get_logger(__name__)

_PICTURES = frozenset(PIL.Image.registered_extensions())
_NAMED = 10  # unreadable files that a message names; it counts the others
_FIRST = 64  # rows of a stream that are checked before the first step


@dataclass(kw_only=True)
class InputArguments:
    """Which part of the data to train on, and how images go in: what one data set needs as well as several."""

    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split to evaluate on; default: validation, else --held_out of --train_split"}
    )
    held_out: float = field(default=0.1, metadata={"help": "share held out where there is no validation split"})
    image_column: str = field(default="image", metadata={"help": "column with the images"})
    size: int = field(default=256, metadata={"help": "side of the input in pixels"})
    augment: bool = field(default=True, metadata={"help": "crop, flip and recolour the training images"})
    flip: float = field(
        default=0.5, metadata={"help": "probability of a mirrored image; 0 where sides have a meaning"}
    )
    colour: float = field(default=0.25, metadata={"help": "strength of the random change of colours"})
    limit: int | None = field(default=None, metadata={"help": "take this many rows of each split, evenly spaced"})
    strict: bool = field(default=False, metadata={"help": "refuse unreadable files instead of skipping them"})
    check: bool = field(
        default=True, metadata={"help": f"read every file once before the first step, of a stream {_FIRST} rows"}
    )
    streaming: bool = field(
        default=False, metadata={"help": "read the training split while it is trained on; needs --max_steps"}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "streaming: rows in memory among which the next is chosen"}
    )
    eval_rows: int = field(default=1000, metadata={"help": "streaming: rows to evaluate on, kept in memory"})

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held_out must be a share between 0 and 1, got {self.held_out}.")
        for name in ("size", "limit", "shuffle_buffer", "eval_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """What else a card should say of these options."""
        return {}


@dataclass
class DataArguments(InputArguments):
    """What to train on. A recipe takes a Hub id, an image folder, or what `save_to_disk` wrote."""

    dataset: str = field(metadata={"help": "a Hub id or a folder"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration, if there are several"})
    label_column: str = field(default="label", metadata={"help": "column with the targets"})
    labels: str | None = field(default=None, metadata={"help": "file with class names: JSON, or one per line"})


@dataclass
class SegmentationDataArguments(DataArguments):
    """Options of the data, and of label maps."""

    reduce_labels: bool = field(default=False, metadata={"help": "label 0 is ignored, 1 is the first class"})


@dataclass
class TaskData:
    """Both parts of a data set, checked.

    Args:
        train: Rows to train on.
        evaluation: Rows to evaluate on.
        names: Class names, where the task has classes.
        eval_split: Name of the evaluation part, for the results.
    """

    train: Rows
    evaluation: Rows
    names: list[str]
    eval_split: str


# ---- loading ----


def load_classification(arguments: DataArguments, seed: int) -> TaskData:
    """Images with one class each.

    Class names are those of the data set or of `--labels`; where the column holds neither names nor a `ClassLabel`,
    the values that occur, in order.

    Raises:
        ValueError: Empty class folders, no images, labels beyond the classes, fewer than two classes, and, with
            `--strict`, unreadable files.
    """
    check_class_folders(arguments.dataset)
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed, classes=True)
    feature = train.features[arguments.label_column]
    given = read_names(arguments.labels) if arguments.labels else getattr(feature, "names", None)
    values = (evaluation if arguments.streaming else train)[arguments.label_column]
    if given is None:
        check_named(arguments)
    if given is None or isinstance(values[0], str):
        known: list[Any] = sorted({value for value in values if value is not None})
        names = [str(value) for value in known] if given is None else given
        if given is not None:
            known = list(given)
    else:
        names, known = list(given), list(range(len(given)))
    if len(names) < 2:
        raise ValueError(f"The data set {arguments.dataset} has {len(names)} class: a classifier needs at least two.")
    classes = Classes({value: i for i, value in enumerate(known)})
    for what, part in (("training", train), ("evaluation", evaluation)):
        if arguments.streaming and what == "training":
            continue  # there each row is looked at when it comes
        for row, value in enumerate(part[arguments.label_column]):
            if value not in classes:
                raise ValueError(f"Row {row} of the {what} part has {classes.beyond(value)}")
    parts = [as_rows(part, columns, arguments, seed, classes) for part in (train, evaluation)]
    if arguments.check:
        parts = [readable(part, arguments.strict)[0] for part in parts]
    return TaskData(parts[0], parts[1], names, split)


def load_segmentation(arguments: DataArguments, seed: int, reduce_labels: bool = False) -> TaskData:
    """Images with label maps.

    Args:
        arguments: `dataset` may also be a folder with `images/NAME.jpg` and `masks/NAME.png`, or with such folders
            under `train/` and `validation/`.
        seed: Of the held-out part.
        reduce_labels: Label 0 is ignored and 1 the first class, as in ADE20K.

    Returns:
        The data; `names` are those of `--labels`, or the numbers of the classes that the maps use.

    Raises:
        ValueError: No images, images without a map, maps of another size than their image, class ids beyond
            `--labels`, and, with `--strict`, unreadable files.
    """
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed)
    names = read_names(arguments.labels) if arguments.labels else None
    if names is None:
        check_named(arguments)
    parts, highest = [], -1
    for part in (train, evaluation):
        rows, found = as_rows(part, columns, arguments, seed), list[int]()
        if arguments.check or names is None:
            check = partial(check_map, reduce_labels=reduce_labels, names=names)
            rows, found = readable(rows, arguments.strict, check)
        parts.append(rows)
        highest = max([highest, *found])
    if names is None and highest < 0:
        raise ValueError(f"The masks of {arguments.dataset} hold no class, only ignored pixels.")
    return TaskData(parts[0], parts[1], names or [str(i) for i in range(highest + 1)], split)


def load_splits(
    arguments: DataArguments, columns: Mapping[str, str], seed: int, classes: bool = False, targets: str = "masks"
) -> tuple[Any, Any, str]:
    """The training and the evaluation part, and the name of the latter.

    Without an evaluation split a share of the training split is held out, of every class the same where `classes`. A
    folder `images` may have a folder beside it, called as `targets` says, whose files belong to them by their names.
    """
    if is_pair_folder(arguments.dataset):
        refuse_streaming(arguments, f"its images and {targets} are matched by listing them all")
        load: Callable[[str], Any] = lambda split: _pairs(arguments, columns, split, targets)  # noqa: E731
        folders = [path.name for path in Path(arguments.dataset).iterdir() if (path / "images").is_dir()]
        names = folders or ["train"]
    else:
        load = lambda split: load_split(  # noqa: E731
            arguments.dataset, split, columns, arguments.dataset_config, arguments.limit, arguments.streaming
        )
        names = split_names(arguments.dataset, arguments.dataset_config)
    train, evaluation, split = divide(arguments, load, names, seed, columns["label"] if classes else None)
    if arguments.streaming:
        evaluation = as_rows(evaluation, columns, arguments, seed).first(arguments.eval_rows, shuffled=True).data
        split = f"{len(evaluation)} rows of {split}"
    return train, evaluation, split


def divide(
    arguments: DataArguments, load: Callable[[str], Any], names: list[str], seed: int, classes: str | None = None
) -> tuple[Any, Any, str]:
    """Both parts, and the name of the second, of splits called `names` that `load` reads.

    Without an evaluation split a share is held out, of every value of the column `classes` the same.
    """
    train, split = load(arguments.train_split), arguments.eval_split
    if split is None and "validation" in names:
        split = "validation"
    if split is not None:
        return train, load(split), split
    refuse_streaming(
        arguments,
        "there is no validation split, and no share to hold out of what is not all there",
        "give --eval_split",
    )
    held_out = hold_out(train[classes] if classes else None, len(train), arguments.held_out, seed)
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"The split {arguments.train_split!r} has {len(train)} rows, too few to hold out a share of "
            f"{arguments.held_out}: raise --held_out or give --eval_split."
        )
    kept, held = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return train.select(kept), train.select(held), f"{arguments.held_out} of {arguments.train_split}"


def split_names(dataset: str, config: str | None) -> list[str]:
    """Names of the splits of a data set."""
    datasets, saved = require("datasets"), Path(dataset) / "dataset_dict.json"
    if saved.is_file():
        return json.loads(saved.read_text(encoding="utf-8"))["splits"]
    if (Path(dataset) / "state.json").is_file():
        return []
    try:
        return datasets.get_dataset_split_names(dataset, config)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"The data set {dataset} cannot be loaded: {' '.join(str(error).split())}") from error


def hold_out(labels: list[Any] | None, count: int, share: float, seed: int) -> np.ndarray:
    """Which of `count` rows to hold out, as booleans: a share of each class, at random but the same each time."""
    order: np.ndarray = np.random.default_rng(seed).permutation(count)
    if labels is not None:
        order = order[np.argsort(np.array([str(label) for label in labels])[order], kind="stable")]
    steps = np.floor(np.arange(count + 1) * share + 1e-9)
    held_out: np.ndarray = np.zeros(count, dtype=bool)
    held_out[order] = np.diff(steps) > 0  # every (1 / share)-th row of those sorted by class
    return held_out


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


def evenly(items: list[Any], limit: int | None) -> list[Any]:
    """So many of the items, evenly spaced; all of them without a limit."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _files(folder: Path, ends: Set[str]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in ends)


def read_names(path: str) -> list[str]:
    """Class names from a file: a JSON list, a JSON object from ids to names, or one name per line.

    Raises:
        ValueError: No such file, no names, or ids that are not 0, 1, 2, ...
    """
    if not Path(path).is_file():
        raise ValueError(f"--labels {path} is no file.")
    text = Path(path).read_text(encoding="utf-8").strip()
    if text[:1] in ("[", "{"):
        names = json.loads(text)
        if isinstance(names, dict):
            if sorted(map(int, names)) != list(range(len(names))):
                raise ValueError(f"The ids in {path} must go from 0 to {len(names) - 1} without a gap.")
            names = [names[key] for key in sorted(names, key=int)]
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must hold class names, each once.")
    return [str(name) for name in names]


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


def readable(rows: Any, strict: bool, check: Callable[[str, Any], Any] = accept) -> tuple[Any, list[Any]]:
    """Read every row once, and leave out those that cannot be read; of a stream the first, the others when they come.

    Args:
        rows: `Rows`, or others that know `select` and `name`.
        strict: Refuse them instead.
        check: Looks at the name and the cells of a row; what it raises is not skipped.

    Returns:
        The readable rows, and what `check` gave for each.

    Raises:
        ValueError: With `strict` an unreadable file; no readable one; what `check` raises.
    """
    if isinstance(rows, Stream):
        rows.check = check
        return rows, readable(rows.first(_FIRST), strict, check)[1]

    def read(row: int) -> tuple[str | None, Any]:
        try:
            cells = rows[row]
        except UnreadableError as error:
            return str(error), None
        return None, check(rows.name(row), cells)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside Python's lock
        found = list(logging.tqdm(pool.imap(read, range(len(rows))), total=len(rows), desc="checking files"))
    kept = skip([problem for problem, _ in found], strict)
    if len(kept) == len(found):
        return rows, [fact for _, fact in found]
    return rows.select(kept), [found[row][1] for row in kept]


def skip(problems: Sequence[str | None], strict: bool, use: str = "read") -> list[int]:
    """Leave out the rows that have a problem, and say which.

    Args:
        problems: A sentence for each row that has one, else `None`.
        strict: Refuse them instead.
        use: What cannot be done with such a row.

    Returns:
        The other rows.

    Raises:
        ValueError: With `strict` any problem, else no row without one.
    """
    sentences = [problem for problem in problems if problem is not None]
    if sentences and strict:
        raise ValueError(f"{len(sentences)} of {len(problems)} rows cannot be {use}. {' '.join(sentences[:_NAMED])}")
    if len(sentences) == len(problems):
        raise ValueError(f"None of {len(problems)} rows can be {use}. {sentences[0]}")
    if sentences:
        more = f" And {len(sentences) - _NAMED} more." if len(sentences) > _NAMED else ""
        logger.warning(f"Skipped {len(sentences)} of {len(problems)} rows. {' '.join(sentences[:_NAMED])}{more}")
    return [row for row, problem in enumerate(problems) if problem is None]


def check_map(
    name: str, cells: tuple[Any, ...], reduce_labels: bool = False, names: list[str] | None = None, ignore: int = 255
) -> int:
    """The highest class id of a label map, which must fit its image and the class names."""
    image, labels = cells
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(
            f"{name}: a mask has one whole number per pixel, (height, width), got {tuple(labels.shape)} of "
            f"{labels.dtype}. Translate colours to class ids first."
        )
    check_map_size(name, "mask", image, labels)
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"{name}: the mask holds the class {int(labels.min())}: class ids count from 0.")
    counted = labels[labels != ignore].long() - int(reduce_labels)
    highest = int(counted.max()) if counted.numel() else -1
    if names is not None and highest >= len(names):
        raise ValueError(
            f"{name}: the mask holds the class {highest}, but there are {len(names)} class names, 0 to "
            f"{len(names) - 1}. {ignore} is ignored; where labels count from 1, give --reduce_labels."
        )
    return highest


def check_map_size(name: str, what: str, image: PIL.Image.Image, values: Any) -> None:
    """Refuse a map (H, W) of another size than its image, which may be turned by EXIF."""
    width, height = PIL.ImageOps.exif_transpose(image).size
    if tuple(values.shape) != (height, width):
        raise ValueError(
            f"{name}: the {what} is {values.shape[1]} x {values.shape[0]} pixels and its image {width} x {height}: "
            "they must have one size."
        )


__all__ = [
    "DataArguments", "InputArguments", "SegmentationDataArguments", "TaskData", "check_class_folders", "check_map",
    "check_map_size", "divide", "evenly", "hold_out", "load_classification", "load_segmentation", "load_splits",
    "read_names", "readable", "skip",
]  # fmt: skip
