# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a `datasets` data set as images, labels and maps, read one by one, with errors that name the row."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from huggingface_hub import is_offline_mode
from torch.utils.data import Dataset

from eupe_hf.models.image_processing_eupe_reading import (
    MAX_DOWNLOAD_BYTES,
    check_is_file,
    decode_image,
    download_image,
    read_pixels,
    upright_size,
)


_PROTOCOLS = {"hf", "http", "https", "tar", "zip"}  # of files that `datasets` names where they are
_SURE_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}  # every image of these becomes pixel values
_NETWORK = {"hf", "http", "https"}


class UnreadableError(ValueError):
    """A row whose image or map cannot be read."""


class Classes(dict):
    """Class ids by label; an unknown label raises an error that lists the known ones."""

    def __missing__(self, label: Any) -> int:
        raise ValueError(f"A row has {self.beyond(label)}")

    def beyond(self, label: Any) -> str:
        """What to say about an unknown label."""
        known = [repr(name) for name in self]
        listed = ", ".join(known if len(known) <= 5 else [*known[:3], "...", known[-1]])
        return f"the label {label!r}, which is beyond the {len(known)} classes: {listed}."


class Rows(Dataset):
    """A split as `load_split` gives it, row by row as tuples in the order of `columns`.

    "image" is a PIL image. "label" is a class id if there are `classes`; otherwise it is a label or depth map, stored
    as an image, an npy file or nested lists, and becomes a tensor of its own dtype. "objects" stay as they are. Other
    numbers become float64 tensors, None becomes NaN.

    Args:
        data: The split.
        columns: The columns by what they hold.
        classes: Class ids by label.

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
        return read_row(self.data[row], self.columns, self.classes, f"Row {row}")

    def select(self, rows: Sequence[int] | np.ndarray) -> "Rows":
        """These rows alone."""
        return Rows(self.data.select(rows), self.columns, self.classes)

    def name(self, row: int) -> str:
        """The file of the last image or map of a row, or the number of the row."""
        return row_name(self.data[row], f"row {row}")


def row_name(values: Mapping[str, Any], default: str) -> str:
    """The file of the last image or map of a row, or `default`."""
    paths = [value["path"] for value in values.values() if isinstance(value, dict) and value.get("path")]
    return paths[-1] if paths else default


def read_row(
    values: Mapping[str, Any], columns: Mapping[str, str], classes: Mapping[Any, int] | None, name: str
) -> tuple[Any, ...]:
    """The cells of a row as `Rows` gives them; an `UnreadableError` calls the row `name`."""
    return tuple(_read(key, values[column], classes, f"{name}, {column!r}") for key, column in columns.items())


def _read(key: str, value: Any, classes: Mapping[Any, int] | None, name: str) -> Any:
    if "image" in key:
        return read_image(value, name)
    if key == "label" and classes is not None:
        return classes[value]
    if key == "objects":
        return value
    if isinstance(value, dict):
        is_array = str(value.get("path")).lower().endswith(".npy")
        return torch.from_numpy(_array(value, name) if is_array else np.array(_decoded(value, name)))
    try:
        return torch.from_numpy(np.array(value, dtype=None if key == "label" else float))
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{name} is not an array of numbers: {error}") from error


def read_image(value: Any, name: str) -> PIL.Image.Image:
    """Decode an image that `datasets` left as a dictionary with "bytes" or "path"; an error calls it `name`.

    Raises:
        UnreadableError: It cannot be read, or has values that no image processor takes, such as metres.
    """
    image = _decoded(value, name)
    if image.mode not in _SURE_MODES:
        try:
            read_pixels(image, f"{name} ({value['path'] or 'no file name'})")
        except ValueError as error:
            raise UnreadableError(str(error)) from error
    return image


def _decoded(value: Any, name: str) -> PIL.Image.Image:
    if not isinstance(value, dict):
        raise UnreadableError(f"{name} is not an image but of type {type(value).__name__}.")
    try:
        return decode_image(_file(value))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{name} ({value['path'] or 'no file name'}) cannot be read: {error}") from error


def image_size(image: PIL.Image.Image | torch.Tensor) -> tuple[int, int]:
    """Height and width in pixels of a PIL image with EXIF rotation undone, or of a tensor (C, H, W)."""
    return (image.shape[1], image.shape[2]) if isinstance(image, torch.Tensor) else upright_size(image)


def _file(value: Mapping[str, Any]) -> str | bytes:
    """The content of the file, or its path on this machine; a ValueError or OSError if there is neither."""
    if value["bytes"] is not None:
        return value["bytes"]
    path = value["path"]
    if "://" not in path:
        check_is_file(path)
        return path
    protocols = {part.partition("://")[0] for part in path.split("::") if "://" in part}
    if unknown := protocols - _PROTOCOLS:
        raise ValueError(f"{min(unknown)}:// is not among {', '.join(sorted(_PROTOCOLS))}")
    if protocols & _NETWORK and is_offline_mode():
        raise ValueError("it is on the network, and HF_HUB_OFFLINE is set")
    if path.startswith(("http://", "https://")):
        return download_image(path)
    import fsspec  # comes with `datasets`; opens files on the Hub and in archives

    with fsspec.open(path, "rb") as file:
        content = file.read(MAX_DOWNLOAD_BYTES + 1)
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"more than {MAX_DOWNLOAD_BYTES:,} bytes")
    return content


def _array(value: dict[str, Any], name: str) -> np.ndarray:
    try:
        source = _file(value)
        array = np.load(io.BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False)
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # torch takes only the machine's byte order
    except (EOFError, OSError, ValueError, AttributeError) as error:
        raise UnreadableError(f"{name} ({value['path']}) cannot be read: {error}") from error
