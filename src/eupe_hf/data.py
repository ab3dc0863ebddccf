# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a `datasets` data set as images, labels and maps, read one by one, with errors that name the row."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.utils.data import Dataset

from .metrics import require


def load_split(
    dataset: str,
    split: str,
    columns: Mapping[str, str],
    config: str | None = None,
    limit: int | None = None,
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
        limit: Take this many rows, evenly spaced, so that a data set sorted by class is not cut to its first classes.
        image_folder: Where the images are whose column holds paths.

    Returns:
        A `datasets.Dataset`, its images not yet decoded, so that `Rows` can name an unreadable one.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: No such data set, split or column, or no row.
    """
    datasets = require("datasets")
    try:
        data = _load(dataset, split, config)
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
    if not len(data):
        raise ValueError(f"The split {split!r} of {dataset} is empty.")
    count = min(limit or len(data), len(data))
    return data.select([i * len(data) // count for i in range(count)])


def _load(dataset: str, split: str, config: str | None) -> Any:
    datasets = require("datasets")
    path = Path(dataset)
    kind = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(path.suffix)
    if kind is not None and path.is_file():
        return datasets.load_dataset(kind, data_files={split: dataset}, split=split)
    if not any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return datasets.load_dataset(dataset, config, split=split)
    saved = datasets.load_from_disk(dataset)
    saved = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    if split not in saved:
        raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
    return saved[split]


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

    def _read(self, key: str, value: Any, name: str) -> Any:
        if "image" in key:
            return _image(value, name)
        if key == "label" and self.classes is not None:
            return self.classes[value]
        if key == "objects":
            return value
        if isinstance(value, dict):
            is_array = str(value.get("path")).lower().endswith(".npy")
            return torch.from_numpy(_array(value, name) if is_array else np.array(_image(value, name)))
        try:
            return torch.from_numpy(np.array(value, dtype=None if key == "label" else float))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} is no array of numbers: {error}") from error


def _image(value: Any, name: str) -> PIL.Image.Image:
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


__all__ = ["Rows", "load_split"]
