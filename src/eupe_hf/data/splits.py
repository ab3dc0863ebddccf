# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The part of a data set to train on and the part to evaluate on."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from eupe_hf.extras import require

from .folders import _pairs, is_pair_folder
from .loading import load_split
from .options import DataArguments, refuse_streaming
from .rows import Rows
from .streams import as_rows


logger = logging.get_logger(__name__)


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
