# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Sources of data, and the one for `datasets`: the Hub, folders, files. Needs `pip install 'eupe-hf[train]'`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from eupe_hf.extras import require

from .options import DataArguments
from .rows import file_below


_TOLD = 300  # characters of another library's message


@dataclass
class Source:
    """A kind of data set: its splits, how to load one, and whether it can be streamed.

    Args:
        arguments: `dataset`, and how to read it.
        columns: The columns to read by what they hold: "image", and "label" or "objects".
        targets: The folder beside `images/` whose files belong to the images with the same names.
    """

    arguments: DataArguments
    columns: Mapping[str, str]
    targets: str = "masks"

    @property
    def unstreamable(self) -> str:
        """Why it cannot be streamed; empty if it can."""
        return ""

    def splits(self) -> list[str]:
        """Names of the splits."""
        raise NotImplementedError

    def load(self, split: str) -> Any:
        """A split as a `datasets.Dataset`, with `--streaming` as an `IterableDataset`; its images are not decoded."""
        raise NotImplementedError

    def eval_split(self) -> str | None:
        """The split to evaluate on; `None` if a share of the training split must be held out."""
        given, train = self.arguments.eval_split, self.arguments.train_split
        return "validation" if given is None and train != "validation" and "validation" in self.splits() else given


class DataSet(Source):
    """What `datasets` reads: a Hub id, a folder of images or parquet files, or a folder that `save_to_disk` wrote."""

    @property
    def unstreamable(self) -> str:
        """A folder that `save_to_disk` wrote is not streamed."""
        return "what save_to_disk wrote is read from the disk anyway" * _is_saved(self.arguments.dataset)

    def splits(self) -> list[str]:
        """Names of the splits."""
        dataset = self.arguments.dataset
        with _naming(dataset):
            if _is_saved(dataset):
                return list(_saved(dataset))
            return require("datasets").get_dataset_split_names(dataset, self.arguments.dataset_config)

    def load(self, split: str) -> Any:
        """A split, as `load_split` gives it."""
        given = self.arguments
        return load_split(given.dataset, split, self.columns, given.dataset_config, given.limit, given.streaming)


def load_split(
    dataset: str,
    split: str,
    columns: Mapping[str, str],
    config: str | None = None,
    limit: int | None = None,
    streaming: bool = False,
    image_folder: str | None = None,
) -> Any:
    """Load a split of a data set, its images not decoded, so that `Rows` can name an unreadable one.

    Args:
        dataset: A Hub id; a folder of images or parquet files, or one that `save_to_disk` wrote; or one JSON or
            parquet file, which is the split.
        split: Name of the split.
        columns: The columns that you need by what they hold: "image", "label", ... If "image" is part of the key, the
            column may also hold paths.
        config: Configuration of the data set, if it has several.
        limit: Take this many rows, evenly spaced, so that a data set sorted by class keeps all its classes; of a
            stream take the first.
        streaming: Give a `datasets.IterableDataset` instead of a `datasets.Dataset`.
        image_folder: Where the images are if a column holds paths, which then must not lead out of it, or URLs.

    Raises:
        ValueError: The data set, the split or a column was not found, the split is empty, or a path leads elsewhere.
    """
    datasets = require("datasets")
    with _naming(dataset):
        data = _open(dataset, split, config, streaming)
    for key, column in columns.items():
        if column not in data.column_names:
            hint = " A folder of images has labels if it has one folder per class, at least two." * (key == "label")
            raise ValueError(
                f"The data set {dataset} has no column {column!r} for the {key.replace('_', ' ')}; it has "
                f"{', '.join(data.column_names)}.{hint}"
            )
        is_path = "image" in key and getattr(data.features[column], "dtype", None) in ("string", "large_string")
        if is_path and image_folder is not None:
            place = partial(_placed, column=column, folder=Path(image_folder))
            features = datasets.Features({**data.features, column: datasets.Image(decode=False)})
            data = data.map(place, with_indices=True, input_columns=column, features=features)
        elif is_path or isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    if streaming:
        return data if limit is None else data.take(limit)
    if not len(data):
        raise ValueError(f"The split {split!r} of {dataset} is empty.")
    return data.select(evenly(range(len(data)), limit))


def _open(dataset: str, split: str, config: str | None, streaming: bool) -> Any:
    if _is_saved(dataset):
        saved = _saved(dataset)
        if split not in saved:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
        return saved[split]
    path, kinds = Path(dataset), {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
    kind = kinds.get(path.suffix) if path.is_file() else None
    for file in [path] if kind == "json" else path.glob("*.json*") if path.is_dir() else ():
        with file.open("rb") as stream:
            if stream.read(64).lstrip().startswith(b"null"):  # pyarrow would end the process
                raise ValueError(f"{file.name} begins with null: each line must be a JSON object.")
    files = {} if kind is None else {"data_files": {split: dataset}}
    data = require("datasets").load_dataset(kind or dataset, config, split=split, streaming=streaming, **files)
    return data._resolve_features() if streaming else data  # reads a row if nothing else names the columns


def _placed(name: str | None, row: int, column: str, folder: Path) -> dict[str, Any]:
    """The cell of a row that names a file as `datasets` has images; URLs are not changed."""
    if not name:
        return {column: None}
    try:
        return {column: {"bytes": None, "path": name if "://" in name else file_below(name, folder)}}
    except ValueError as error:
        raise ValueError(f"Row {row}, {column!r}: {error}") from error


def _is_saved(dataset: str) -> bool:
    return any((Path(dataset) / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _saved(dataset: str) -> dict[str, Any]:
    saved = require("datasets").load_from_disk(dataset)
    return saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}


@contextmanager
def _naming(dataset: str) -> Iterator[None]:
    """Name the data set in what `datasets` raises, and the cause, which its own message may leave out."""
    expected = (OSError, ValueError, RuntimeError, TypeError, KeyError, require("datasets").exceptions.DatasetsError)
    try:
        yield
    except expected as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        words = dict.fromkeys(" ".join(str(one).split()) for one in (error, cause))
        told = ": ".join(line[:_TOLD] + "..." * (len(line) > _TOLD) for line in words)
        raise ValueError(f"The data set {dataset} cannot be loaded: {told}") from error


def read_json(path: Path) -> Any:
    """What a JSON file in UTF-8 holds, with or without a byte order mark.

    Raises:
        ValueError: It is not text, not JSON, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError(f"{path} is JSON that is nested too deep.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def evenly(items: Sequence[Any], limit: int | None) -> list[Any]:
    """This many of the items, evenly spaced; all of them without a limit."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]
