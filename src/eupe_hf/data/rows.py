# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a `datasets` data set as images, labels and maps, read one by one, with errors that name the row."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset
from transformers.utils import logging


logger = logging.get_logger(__name__)


class UnreadableError(ValueError):
    """A row whose image or map cannot be read."""


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
    >>> from eupe_hf.data.rows import Rows

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
