# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a `datasets` data set as images, labels and maps, read one by one, with errors that name the row."""

import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset, get_worker_info
from transformers.utils import logging

from .metrics import require


logger = logging.get_logger(__name__)

_NAMED = 10  # rows that are named as unreadable; others are only counted


class UnreadableError(ValueError):
    """A row whose image or map cannot be read."""


def hand_over(batch: torch.Tensor) -> torch.Tensor | np.ndarray:
    """A batch as a loader's worker should return it: in shared memory, or where that is full, as an array.

    An array goes through a pipe, which takes longer. torch itself would try shared memory only after the worker has
    let go of the batch, where the error is lost and the main process waits for ever: in a container, which has 64 MB
    unless somebody says otherwise, with the third batch.

    Args:
        batch: On the CPU. Outside of a worker it is returned as it is.

    Returns:
        The same values; `torch.as_tensor` makes a tensor of either. The loader needs a `collate_fn`: its default makes
        tensors of arrays, in the worker.
    """
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except RuntimeError:
        return batch.numpy()


def load_split(
    dataset: str,
    split: str,
    columns: Mapping[str, str],
    config: str | None = None,
    limit: int | None = None,
    streaming: bool = False,
    image_folder: str | None = None,
) -> Any:
    """Load a split of a data set.

    Args:
        dataset: A Hub id; a folder: of images, of parquet files, or written by `save_to_disk`; or one JSON or parquet
            file, which is the split.
        split: Name of the split.
        columns: The columns that are needed, by what they are: "image", "label", ... Those whose key holds "image" may
            also be paths.
        config: Configuration of the data set, if it has several.
        limit: Take this many rows, evenly spaced, so that a data set sorted by class is not cut to its first classes;
            of a stream the first.
        streaming: Read rows only when they are asked for, one after another.
        image_folder: Where the images are whose column holds paths.

    Returns:
        A `datasets.Dataset`, or with `streaming` a `datasets.IterableDataset`, its images not yet decoded, so that
        `Rows` can name an unreadable one.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: No such data set, split or column, or no row.
    """
    datasets = require("datasets")
    try:
        data = _load(dataset, split, config, streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"The data set {dataset} cannot be loaded: {' '.join(str(error).split())}") from error
    for key, column in columns.items():
        if column not in data.column_names:
            hint = " A folder of images has labels where it has one folder per class, at least two." * (key == "label")
            raise ValueError(
                f"The data set {dataset} has no column {column!r} for the {key.replace('_', ' ')}; it has "
                f"{', '.join(data.column_names)}.{hint}"
            )
        feature = data.features[column]
        if image_folder is not None and "image" in key and feature == datasets.Value("string"):
            data = data.map(lambda row, name=column: {name: row[name] and str(Path(image_folder) / row[name])})
        if isinstance(feature, datasets.Image) or ("image" in key and feature == datasets.Value("string")):
            data = data.cast_column(column, datasets.Image(decode=False))
    if streaming:
        return data if limit is None else data.take(limit)
    if not len(data):
        raise ValueError(f"The split {split!r} of {dataset} is empty.")
    count = min(limit or len(data), len(data))
    return data.select([i * len(data) // count for i in range(count)])


def _load(dataset: str, split: str, config: str | None, streaming: bool) -> Any:
    datasets = require("datasets")
    path = Path(dataset)
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        if streaming:
            raise ValueError("what save_to_disk wrote is read from the disk anyway, and is not streamed.")
        saved = datasets.load_from_disk(dataset)
        saved = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if split not in saved:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
        return saved[split]
    kind = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(path.suffix) if path.is_file() else None
    files = {} if kind is None else {"data_files": {split: dataset}}
    data = datasets.load_dataset(kind or dataset, config, split=split, streaming=streaming, **files)
    return data._resolve_features() if streaming else data  # reads a row where nothing else tells the columns


class Classes(dict):
    """Class ids by label, with a sentence for a label that is none."""

    def __missing__(self, label: Any) -> int:
        raise ValueError(f"A row has {self.beyond(label)}")

    def beyond(self, label: Any) -> str:
        """What to say about such a label."""
        known = list(self)
        listed = ", ".join(map(repr, known if len(known) <= 5 else [*known[:3], "...", known[-1]]))
        return f"the label {label!r}, which is beyond the {len(known)} classes: {listed}."


class Rows(Dataset):
    """What `load_split` gives, row by row as tuples in the order of `columns`.

    Images come as PIL images, label and depth maps, stored as images, npy files or nested lists, as tensors of their
    own dtype, "objects" as they are, other numbers as float64 tensors with NaN for None.

    Args:
        data: The split.
        columns: The columns, by what they are.
        classes: Class ids by label, where "label" is a class and not a map.

    Example:

    ```python
    >>> from eupe_hf.data import Rows

    >>> Rows([{"boxes": [0, 0, 4, None]}], {"box": "boxes"})[0]
    (tensor([0., 0., 4., nan], dtype=torch.float64),)

    ```
    """

    def __init__(self, data: Any, columns: Mapping[str, str], classes: Mapping[Any, int] | None = None):
        self.data, self.columns, self.classes = data, columns, classes

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if row >= len(self.data):
            raise IndexError(row)  # ends a for loop
        return self.read(self.data[row], f"Row {row}")

    def read(self, values: Mapping[str, Any], name: str) -> tuple[Any, ...]:
        """The cells of a row, in the order of `columns`; `name` is what an error calls it."""
        return tuple(self._read(key, values[column], f"{name}, {column!r}") for key, column in self.columns.items())

    def select(self, rows: Sequence[int]) -> "Rows":
        """These rows alone."""
        return Rows(self.data.select(rows), self.columns, self.classes)

    def name(self, row: int) -> str:
        """The file of a row's last image or map, or the number of the row."""
        paths = [value["path"] for value in self.data[row].values() if isinstance(value, dict) and value.get("path")]
        return paths[-1] if paths else f"row {row}"

    def _read(self, key: str, value: Any, name: str) -> Any:
        if "image" in key:
            return read_image(value, name)
        if key == "label" and self.classes is not None:
            return self.classes[value]
        if key == "objects":
            return value
        if isinstance(value, dict):
            is_array = str(value.get("path")).lower().endswith(".npy")
            return torch.from_numpy(_array(value, name) if is_array else np.array(read_image(value, name)))
        try:
            return torch.from_numpy(np.array(value, dtype=None if key == "label" else float))
        except (TypeError, ValueError) as error:
            raise UnreadableError(f"{name} is no array of numbers: {error}") from error


def accept(name: str, cells: tuple[Any, ...]) -> None:
    """A check that finds no fault with any row."""


class Stream(Rows):
    """Rows that are read while they are trained on: over and over, each time in another order, for ever.

    There is one row at a time: `stream[position]` is the one whose position `positions` gave last. Unreadable rows are
    left out and counted.

    Args:
        data: A `datasets.IterableDataset`.
        columns: The columns, by what they are.
        classes: Class ids by label.
        seed: Of the order.
        buffer: Rows among which the next one is chosen at random. Files are shuffled as well.
        strict: Refuse unreadable rows instead.
    """

    def __init__(
        self,
        data: Any,
        columns: Mapping[str, str],
        classes: Mapping[Any, int] | None = None,
        seed: int = 0,
        buffer: int = 1000,
        strict: bool = False,
    ):
        super().__init__(data, columns, classes)
        self.seed, self.buffer, self.strict = seed, buffer, strict
        self.check: Callable[[str, tuple[Any, ...]], Any] = accept
        self.position, self.cells = -1, ()
        self.divide(0, 1, 1)

    def divide(self, process: int, processes: int, workers: int) -> None:
        """From now on give the rows of one of so many processes, each with so many workers."""
        self.process, self.processes, self.workers = process, processes, workers
        self.skipped = torch.zeros(workers, dtype=torch.int64).share_memory_()  # counted by each worker for itself

    def shuffled(self, turn: int) -> Any:
        """The data set in its order of one of its turns, the same in all processes."""
        (seed,) = np.random.SeedSequence((self.seed, turn)).generate_state(1)
        return self.data.shuffle(seed=int(seed), buffer_size=self.buffer)

    def first(self, count: int, shuffled: bool = False) -> Rows:
        """So many rows of the data set, kept in memory, not yet decoded."""
        rows = list((self.shuffled(0) if shuffled else self.data).take(count))
        if not rows:
            raise ValueError("The stream is empty.")
        data = require("datasets").Dataset.from_list(rows, features=self.data.features)
        return Rows(data, self.columns, self.classes)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if row != self.position:
            raise IndexError(f"A stream has one row at a time, now {self.position}, not {row}.")
        return self.cells

    def positions(self) -> Iterator[int]:
        """The positions of all readable rows of this worker, for ever; no two workers or processes share one."""
        split = require("datasets.distributed").split_dataset_by_node
        worker = get_worker_info()
        index = worker.id if worker is not None else 0
        step = self.processes * self.workers
        position = self.process * self.workers + index - step
        for turn in itertools.count():
            seen = kept = 0
            for values in split(self.shuffled(turn), self.process, self.processes):
                seen, position = seen + 1, position + step
                paths = [value["path"] for value in values.values() if isinstance(value, dict) and value.get("path")]
                name = paths[-1] if paths else f"row {seen} of the stream"
                try:
                    self.cells = self.read(values, name)
                except UnreadableError as error:
                    self._skip(error, index)
                    continue
                self.check(name, self.cells)
                self.position, kept = position, kept + 1
                yield position
            if not seen:
                return  # there are fewer files than workers
            if not kept:
                raise ValueError(f"None of {seen} rows can be read, nor any other of this turn.")

    def _skip(self, error: UnreadableError, worker: int) -> None:
        if self.strict:
            raise error
        self.skipped[worker] += 1
        if self.skipped[worker] <= _NAMED:
            logger.warning(f"Skipped a row. {error}")


def read_image(value: Any, name: str) -> PIL.Image.Image:
    """Decode an image.

    Args:
        value: As `datasets` has it undecoded: a dictionary with its "bytes", or its "path".
        name: Where it stands, for the message.

    Raises:
        ValueError: It cannot be read.
    """
    if not isinstance(value, dict):
        raise UnreadableError(f"{name} is no image but of type {type(value).__name__}.")
    try:
        image = PIL.Image.open(_file(value))
        image.load()
        return image
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise UnreadableError(f"{name} ({value['path'] or 'no file name'}) cannot be read: {error}") from error


def _file(value: Mapping[str, Any]) -> Any:
    """What a reader can open: bytes, or the path of a file on this machine."""
    if value["bytes"] is not None:
        return io.BytesIO(value["bytes"])
    if "://" not in value["path"]:
        return value["path"]
    import fsspec  # comes with `datasets`; opens files on the Hub, and in archives

    with fsspec.open(value["path"], "rb") as file:
        return io.BytesIO(file.read())


def _array(value: dict[str, Any], name: str) -> np.ndarray:
    try:
        array = np.load(_file(value), allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # torch takes the machine's byte order alone
    except (EOFError, OSError, ValueError, AttributeError) as error:
        raise UnreadableError(f"{name} ({value['path']}) cannot be read: {error}") from error


__all__ = ["Classes", "Rows", "Stream", "UnreadableError", "accept", "hand_over", "load_split", "read_image"]
