# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows of a `datasets` data set as images, labels and maps, read one by one, with errors that name the row.

What a cell holds is checked here, whatever file it comes from.
"""

import io
import math
import os
import reprlib
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

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
_LABELS = (str, int, float, type(None))  # a missing one is unknown
_LARGEST = 2.0**1000  # what a float holds
_INT64 = np.iinfo(np.int64).max
# what numpy raises for files that are no arrays: most of it where it evaluates the header
_NO_ARRAY = (
    EOFError, OSError, ValueError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError,
    tokenize.TokenError,
)  # fmt: skip


class UnreadableError(ValueError):
    """A row whose image or map cannot be read."""


class Classes(dict):
    """Class ids by label; an unknown label raises an error that lists the known ones."""

    def __missing__(self, label: Any) -> int:
        raise ValueError(f"A row has {self.beyond(label)}")

    def beyond(self, label: Any) -> str:
        """What to say about an unknown label."""
        known = [reprlib.repr(name) for name in self]
        listed = ", ".join(known if len(known) <= 5 else [*known[:3], "...", known[-1]])
        is_text, hint = isinstance(label, str), ""
        if label is not None and self and not any(isinstance(name, str) == is_text for name in self):
            one, others = ("text", "numbers") if is_text else ("a number", "text")
            hint = f" The label is {one}, the classes are {others}: write both one way."
        return f"the label {reprlib.repr(label)}, which is beyond the {len(known)} classes: {listed}.{hint}"


def class_id(classes: Mapping[Any, int], label: Any, name: str) -> int:
    """The class id of a label.

    Raises:
        ValueError: The label is unknown, or is neither text nor a number; the message begins with `name`.
    """
    if not isinstance(label, _LABELS):
        raise ValueError(f"{name} has the label {reprlib.repr(label)}: a class is text or a number.")
    if label not in classes:
        raise ValueError(f"{name} has {Classes(classes).beyond(label)}")
    return classes[label]


class Rows(Dataset):
    """A split as `load_split` gives it, row by row as tuples in the order of `columns`.

    "image" is a PIL image. "label" is a class id if there are `classes`; otherwise it is a label or depth map, stored
    as an image, an npy file or nested lists, and becomes a tensor of its own dtype. "objects" stay as they are. Other
    numbers become float64 tensors, None becomes NaN.

    Args:
        data: The split.
        columns: The columns by what they hold.
        classes: Class ids by label.
        numbers: What messages call the rows; by default 0, 1, ...

    Example:

    ```python
    >>> from eupe_hf.data.rows import Rows

    >>> Rows([{"boxes": [0, 0, 4, None]}], {"box": "boxes"})[0]
    (tensor([0., 0., 4., nan], dtype=torch.float64),)

    ```
    """

    def __init__(
        self,
        data: Any,
        columns: Mapping[str, str],
        classes: Mapping[Any, int] | None = None,
        numbers: Sequence[int] | None = None,
    ):
        self.data, self.columns, self.classes = data, columns, classes
        self.numbers = range(len(data)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if row >= len(self.data):
            raise IndexError(row)  # ends a for loop
        return read_row(self.data[row], self.columns, self.classes, f"Row {self.numbers[row]}")

    def select(self, rows: Sequence[int] | np.ndarray) -> "Rows":
        """These rows alone, which keep the numbers that messages call them by."""
        return Rows(self.data.select(rows), self.columns, self.classes, [self.numbers[row] for row in rows])

    def name(self, row: int) -> str:
        """The file of the last image or map of a row, or the number of the row."""
        return row_name(self.data[row], f"row {self.numbers[row]}")

    def labels(self, dataset: str) -> list[Any]:
        """The labels of all rows, which must be classes.

        Raises:
            ValueError: One is neither text nor a number. The message names the row, and the data set as given here.
        """
        labels = list(self.data[self.columns["label"]])
        for row, label in enumerate(labels):
            if not isinstance(label, _LABELS):
                class_id({}, label, f"{dataset}, {self.name(row)},")
        return labels


def row_name(values: Mapping[str, Any], default: str) -> str:
    """The file of the last image or map of a row, or `default`."""
    paths = [value.get("path") for value in values.values() if isinstance(value, dict)]
    return next((path for path in reversed(paths) if path and isinstance(path, str)), default)


def read_row(
    values: Mapping[str, Any], columns: Mapping[str, str], classes: Mapping[Any, int] | None, name: str
) -> tuple[Any, ...]:
    """The cells of a row as `Rows` gives them; an `UnreadableError` calls the row `name`."""
    return tuple(_read(key, values[column], classes, f"{name}, {column!r}") for key, column in columns.items())


def _read(key: str, value: Any, classes: Mapping[Any, int] | None, name: str) -> Any:
    if "image" in key:
        # a column in which one cell is not text is not cast to images
        return read_image({"path": value} if isinstance(value, str) else value, name)
    if key == "label" and classes is not None:
        return class_id(classes, value, name)
    if key == "objects":
        return value
    if isinstance(value, dict):
        is_array = str(value.get("path")).lower().endswith(".npy")
        return _tensor(_array(value, name) if is_array else np.array(_decoded(value, name)), name)
    try:
        return _tensor(np.array(value, dtype=None if key == "label" else float), name)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableError(f"{name} is not an array of numbers: {reprlib.repr(value)}.") from error


def object_fault(box: Any, category: Any, crowd: Any) -> str:
    """What is wrong with the types of an object's fields; empty if nothing is."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"has the bbox {reprlib.repr(box)}: it must be four numbers, left, top, width, height in pixels."
    if not isinstance(category, str) and not _is_number(category):
        return f"has the category {reprlib.repr(category)}: it must be text or a number."
    if not isinstance(crowd, (bool, int, float, type(None))) or crowd not in (None, 0, 1):
        return f"has the iscrowd {reprlib.repr(crowd)}: it must be 0 or 1."
    return ""


def _is_number(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
    return is_whole or isinstance(value, float)


def read_image(value: Any, name: str) -> PIL.Image.Image:
    """Decode an image that `datasets` left as a dictionary with "bytes" or "path"; an error calls it `name`.

    Raises:
        UnreadableError: It cannot be read, or has values that no image processor takes, such as metres.
    """
    image = _decoded(value, name)
    if image.mode not in _SURE_MODES:
        try:
            read_pixels(image, f"{name} ({_path(value)})")
        except ValueError as error:
            raise UnreadableError(str(error)) from error
    return image


def _decoded(value: Any, name: str) -> PIL.Image.Image:
    if not isinstance(value, dict):
        raise UnreadableError(f"{name} is not an image but of type {type(value).__name__}.")
    _check_cell(value, name)
    try:
        return decode_image(_file(value))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{name} ({_path(value)}) cannot be read: {error}") from error


def file_below(name: str, folder: Path) -> str:
    """The path of a file that data name, relative to a folder or absolute.

    Raises:
        ValueError: It leads out of the folder, or is a URL. Links are followed: the owner of the folder put them
            there.
    """
    path = os.path.normpath(folder / name)  # without "..", which would lead elsewhere from a link
    place, root = (Path(os.path.normpath(Path(each).absolute())) for each in (path, folder))
    if "://" in name or not place.is_relative_to(root):
        raise ValueError(
            f"{name[:80]!r} is not a file below {root}, and is not opened: name the folder of the images."
        )
    return path


def image_size(image: PIL.Image.Image | torch.Tensor) -> tuple[int, int]:
    """Height and width in pixels of a PIL image with EXIF rotation undone, or of a tensor (C, H, W)."""
    return (image.shape[1], image.shape[2]) if isinstance(image, torch.Tensor) else upright_size(image)


def _file(value: Mapping[str, Any]) -> str | bytes:
    """The content of the file, or its path on this machine; a ValueError or OSError if there is neither."""
    if value.get("bytes") is not None:
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


def _path(value: Mapping[str, Any]) -> str:
    """What messages call the file of a cell."""
    return value.get("path") or "no file name"


def _check_cell(value: Mapping[str, Any], name: str) -> None:
    """Refuse a cell that holds neither the bytes of a file nor its path."""
    content, path = value.get("bytes"), value.get("path")
    if not isinstance(content, bytes) and (content is not None or not path or not isinstance(path, str)):
        raise UnreadableError(
            f"{name} is no file: it must have either 'bytes' or, as text, 'path', got {reprlib.repr(value)}."
        )


def _array(value: dict[str, Any], name: str) -> np.ndarray:
    _check_cell(value, name)
    try:
        source = _file(value)
        with io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb") as stream:
            _check_size(stream)
            stream.seek(0)
            return np.load(stream, allow_pickle=False)
    except _NO_ARRAY as error:
        raise UnreadableError(f"{name} ({_path(value)}) cannot be read: {error}") from error


def _check_size(stream: BinaryIO) -> None:
    """Refuse an npy file that is shorter than its header says, before numpy reserves the memory."""
    version = np.lib.format.read_magic(stream)
    is_first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    needed, there = math.prod(shape) * dtype.itemsize, -stream.tell() + stream.seek(0, io.SEEK_END)
    if min(shape, default=0) < 0 or needed > there:
        raise ValueError(f"its header says {shape} of {dtype}, {needed:,} bytes, and it has {there:,}.")


def _tensor(array: np.ndarray, name: str) -> torch.Tensor:
    """A map of real numbers, in a type that torch computes with."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise UnreadableError(f"{name} is not an array of numbers but of {array.dtype}.")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # of these torch knows hardly more than the names
        if array.dtype.itemsize == 8 and array.size and array.max() > _INT64:
            raise UnreadableError(f"{name} holds {array.max()}: the highest whole number is {_INT64}.")
        array = array.astype(np.int64)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))  # torch takes no other order
