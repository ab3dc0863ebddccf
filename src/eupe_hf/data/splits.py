# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The part of a data set to train on and the part to evaluate on."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .coco import CocoFolder
from .folders import PairFolder
from .loading import DataSet, Source, read_json
from .options import DataArguments
from .rows import Rows
from .streams import Stream


@dataclass
class TaskData:
    """Both parts of a data set, checked."""

    train: Rows | Stream
    evaluation: Rows
    names: list[str]  # of the classes, if the task has classes
    eval_split: str  # name of the evaluation part, for the results


def pick_source(arguments: DataArguments, columns: Mapping[str, str], targets: str = "masks") -> Source:
    """The source that fits `--dataset`; arguments as for `Source`."""
    kind: type[Source] = DataSet
    if "objects" in columns and CocoFolder.fits(arguments.dataset):
        kind = CocoFolder
    elif PairFolder.fits(arguments.dataset):
        kind = PairFolder
    return kind(arguments, columns, targets)


def load_splits(
    arguments: DataArguments, columns: Mapping[str, str], seed: int, classes: bool = False, targets: str = "masks"
) -> tuple[Any, Rows, str]:
    """Load the part to train on and the part to evaluate on.

    Args:
        arguments: Options of the data. Without an evaluation split a share of the training split is held out.
        columns: As for `Source`.
        seed: Seed of the held-out share, and of the order of a stream.
        classes: Hold out the same share of every class; "label" is a class.
        targets: As for `Source`.

    Returns:
        The training part, with `--streaming` as a `Stream`; the evaluation part; and the name of the latter.

    Raises:
        ValueError: The data cannot be loaded, streamed or divided.
    """
    source = pick_source(arguments, columns, targets)
    if arguments.streaming:
        return _load_streams(source, seed)
    rows, split = Rows(source.load(arguments.train_split), columns), source.eval_split()
    if split is not None:
        return rows, Rows(source.load(split), columns), split
    labels = rows.data[columns["label"]] if classes else None
    is_held = hold_out(labels, len(rows), arguments.held_out, seed)
    if not is_held.any() or is_held.all():
        raise ValueError(
            f"The split {arguments.train_split!r} has {len(rows)} rows, too few to hold out a share of "
            f"{arguments.held_out}: raise --held_out or give --eval_split."
        )
    kept, held = (rows.select(np.flatnonzero(is_there)) for is_there in (~is_held, is_held))
    return kept, held, f"{arguments.held_out} of {arguments.train_split}"


def _load_streams(source: Source, seed: int) -> tuple[Stream, Rows, str]:
    arguments, problem = source.arguments, f"{source.arguments.dataset} cannot be streamed:"
    if source.unstreamable:
        raise ValueError(f"{problem} {source.unstreamable}; leave out --streaming.")
    if (split := source.eval_split()) is None:
        raise ValueError(f"{problem} it has no validation split, and no share can be held out; give --eval_split.")
    options = (seed, arguments.shuffle_buffer, arguments.strict)
    train, evaluation = (
        Stream(source.load(name), source.columns, *options) for name in (arguments.train_split, split)
    )
    kept = evaluation.first(arguments.eval_rows, shuffled=True)
    return train, kept, f"{len(kept)} rows of {split}"


def hold_out(labels: list[Any] | None, count: int, share: float, seed: int) -> np.ndarray:
    """Which of `count` rows to hold out, as booleans: the same share of each class, at random by the seed."""
    order: np.ndarray = np.random.default_rng(seed).permutation(count)
    if labels is not None:
        order = order[np.argsort(np.array([str(label) for label in labels])[order], kind="stable")]
    steps = np.floor(np.arange(count + 1) * share + 1e-9)
    held_out: np.ndarray = np.zeros(count, dtype=bool)
    held_out[order] = np.diff(steps) > 0  # every (1 / share)-th row of those sorted by class
    return held_out


def given_names(arguments: DataArguments, feature: Any = None) -> list[str] | None:
    """The class names of `--labels`, otherwise of a feature of the data set; `None` if neither has names."""
    names = read_names(arguments.labels) if arguments.labels else getattr(feature, "names", None)
    if names is None and arguments.streaming:  # only its end would show them
        raise ValueError(f"The stream {arguments.dataset} does not name its classes: name them with --labels FILE.")
    return names


def names_by_label(given: list[str] | None, occur: set[Any], dataset: str) -> dict[Any, str]:
    """Class names by label: labels are names or count them; without given names they are the labels that occur.

    Raises:
        ValueError: Some labels are text and others numbers.
    """
    texts = sorted(label for label in occur if isinstance(label, str))
    if not texts and given is not None:
        return dict(enumerate(given))
    if texts and len(texts) < len(occur):
        number = min(occur.difference(texts))
        raise ValueError(
            f"The labels of {dataset} are both text, such as {reprlib.repr(texts[0])}, and numbers, such as {number}: "
            "write them one way."
        )
    return {label: str(label) for label in given or sorted(occur)}


def read_names(path: str) -> list[str]:
    """Read class names from a file: a JSON list, a JSON object from ids to names, or one name per line.

    Raises:
        ValueError: The file was not found, has no names or one twice, or ids that are not 0, 1, 2, ...
    """
    if not Path(path).is_file():
        raise ValueError(f"--labels {path} is not a file.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except ValueError as error:
        raise ValueError(f"--labels {path} is not text in UTF-8: {error}") from error
    names: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if text[:1] in ("[", "{"):
        names = read_json(Path(path))
    if isinstance(names, dict):
        if set(names) != {str(index) for index in range(len(names))}:
            raise ValueError(f"The ids in {path} must go from 0 to {len(names) - 1} without a gap.")
        names = [names[str(index)] for index in range(len(names))]
    for index, name in enumerate(names):
        if not isinstance(name, (str, int, float)):
            raise ValueError(f"{path} must hold class names; the name {index} is {reprlib.repr(name)}.")
    names = [str(name) for name in names]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must hold class names, each once.")
    return names
