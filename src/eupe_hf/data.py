# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a `datasets` data set as images, labels and maps, read one by one, with errors that name the row."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from .metrics import require


def load_split(
    dataset: str, split: str, columns: Mapping[str, str], config: str | None = None, limit: int | None = None
) -> Any:
    """Load a split of a data set.

    Args:
        dataset: A Hub id, or a folder: of images, of parquet files, or written by `save_to_disk`.
        split: Name of the split.
        columns: The columns that are needed, by what they are: "image", "label", ... Those whose key holds "image" may
            also be paths.
        config: Configuration of the data set, if it has several.
        limit: Take this many rows, evenly spaced, so that a data set sorted by class is not cut to its first classes.

    Returns:
        A `datasets.Dataset`, its images not yet decoded, so that `Rows` can name an unreadable one.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: No such data set, split or column, or no row.
    """
    datasets = require("datasets")
    try:
        if any((Path(dataset) / name).is_file() for name in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(dataset)
            saved = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            if split not in saved:
                raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
            data = saved[split]
        else:
            data = datasets.load_dataset(dataset, config, split=split)
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
        if isinstance(feature, datasets.Image) or ("image" in key and feature == datasets.Value("string")):
            data = data.cast_column(column, datasets.Image(decode=False))
    if not len(data):
        raise ValueError(f"The split {split!r} of {dataset} is empty.")
    count = min(limit or len(data), len(data))
    return data.select([i * len(data) // count for i in range(count)])


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
        values = self.data[row]
        return tuple(self._read(key, values[column], f"Row {row}, {column!r}") for key, column in self.columns.items())

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
            raise ValueError(f"{name} is no array of numbers: {error}") from error


def read_image(value: Any, name: str) -> PIL.Image.Image:
    """Decode an image.

    Args:
        value: As `datasets` has it undecoded: a dictionary with its "bytes", or its "path".
        name: Where it stands, for the message.

    Raises:
        ValueError: It cannot be read.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no image but of type {type(value).__name__}.")
    try:
        image = PIL.Image.open(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]))
        image.load()
        return image
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"{name} ({value['path'] or 'no file name'}) cannot be read: {error}") from error


def _array(value: dict[str, Any], name: str) -> np.ndarray:
    try:
        array = np.load(value["path"] if value["bytes"] is None else io.BytesIO(value["bytes"]), allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # torch takes the machine's byte order alone
    except (EOFError, OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} ({value['path']}) cannot be read: {error}") from error


__all__ = ["Rows", "load_split", "read_image"]
