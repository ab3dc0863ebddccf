# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The one place where files from outside are read: JSON, headers of safetensors files, fields and names in them.

Whatever a file holds, each function returns what it promises or raises one `CheckpointError` with the file's name and
the field. Nothing waits for a pipe, follows a name out of its folder, or takes memory or time that the file's own size
does not account for. It needs the standard library alone.
"""

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin


MAX_JSON_BYTES = 16 << 20  # a configuration with the names of a hundred thousand classes has 5 MB
MAX_HEADER_BYTES = 4 << 20  # about 30,000 tensors; our largest model has 500
MAX_DEPTH = 32  # of lists and objects in each other; configurations have 5
_WORDS = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object", list: "a list",
    type(None): "null",
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint, or a file that belongs to one, that is not what it should be.

    The message names the file, and the key or field, and says what to do.
    """


class StoredTensor(NamedTuple):
    """What the header of a safetensors file says of a tensor: its `dtype` as "F32", "BF16", ..., and its shape."""

    dtype: str
    shape: tuple[int, ...]


def _read_bytes(path: Path, start: int, count: int) -> tuple[bytes, int]:
    """At most `count` bytes of a regular file from `start`, and the size of the file."""
    check_path(path)
    # not blocking: opening a pipe would wait for its other end
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file: give the file itself.")
        file.seek(start)
        return file.read(count), status.st_size


def check_path(path: str | os.PathLike) -> Path:
    """The path, if it can be handed to libraries that take UTF-8 alone, as safetensors does.

    Raises:
        CheckpointError: It has bytes that are not UTF-8, or the locale is not UTF-8 and hides that they are.
    """
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError as error:
        shown = os.fsencode(path).decode("ascii", "backslashreplace")
        raise CheckpointError(
            f"{shown} cannot be used: its bytes are not UTF-8, or the locale is not. Rename it, or set PYTHONUTF8=1."
        ) from error
    return Path(path)


def read_json(path: str | os.PathLike, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        max_bytes: Refuse larger files, before they are read.

    Returns:
        The object. Lists and objects in it lie at most `MAX_DEPTH` deep in each other, and no name stands twice in an
        object. The types of its fields are not checked: see `get_field`.

    Raises:
        OSError: The file does not exist, or cannot be read.
        CheckpointError: It is not a regular file, too large, not UTF-8, not JSON, nested too deep, or no object.
    """
    path = Path(path)
    content, size = _read_bytes(path, 0, max_bytes + 1)
    if len(content) > max_bytes:
        raise CheckpointError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read. Is it the right file?")
    return _parse_object(content, path)


def _parse_object(content: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=_without_doubles)
    except RecursionError as error:
        raise CheckpointError(f"{path} nests its values too deep: at most {MAX_DEPTH} levels are read.") from error
    except ValueError as error:  # of the decoder, the parser and the hook
        raise CheckpointError(f"{path} is not valid JSON ({error}): download it again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {_word(values)}.")
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        below = [value.values() if isinstance(value, dict) else value for value in level]
        level = [entry for entries in below for entry in entries if isinstance(entry, (dict, list))]
    if level:
        raise CheckpointError(f"{path} nests its values too deep: at most {MAX_DEPTH} levels are read.")
    return values


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands in it twice")
    return values


def get_field(values: Mapping[str, Any], name: str, kind: Any, path: str | os.PathLike, required: bool = False) -> Any:
    """A field of an object that `read_json` read, checked for its type.

    Args:
        values: The object.
        name: The field.
        kind: `str`, `int`, `float` (which a whole number is, too), `bool`, `dict`, `list`, or a list or object of
            these, as `list[str]` and `dict[str, str]`. True and false are no numbers.
        path: The file, for the message.
        required: Refuse an object without the field.

    Returns:
        The value; `None` where the field is missing or null.

    Raises:
        CheckpointError: It has another type, or is missing though `required`. The message names file and field.
    """
    value = values.get(name)
    if value is None and not required:
        return None
    if not _is_kind(value, kind):
        found = "nothing" if name not in values else _word(value)
        raise CheckpointError(f"{path}: {name!r} must be {_kind_in_words(kind)}, got {found}.")
    return value


def _is_kind(value: Any, kind: Any) -> bool:
    plain, parts = get_origin(kind) or kind, get_args(kind)
    if isinstance(value, bool) and plain is not bool:
        return False
    if not isinstance(value, (int, float) if plain is float else plain):
        return False
    entries: Any = value.values() if isinstance(value, dict) else value
    return not parts or all(_is_kind(entry, parts[-1]) for entry in entries)


def _kind_in_words(kind: Any) -> str:
    parts = get_args(kind)
    return _WORDS[get_origin(kind) or kind] + (f" whose entries are {_kind_in_words(parts[-1])}" if parts else "")


def _word(value: Any) -> str:
    if isinstance(value, (str, int, float)):
        return f"{_WORDS[type(value)]} ({str(value)[:40]!r})"
    return _WORDS[type(value)] + (" with entries of other types" if value else "")


def file_beside(name: str, path: str | os.PathLike) -> Path:
    """The file of this name in the folder of `path`, in which the name was read.

    Raises:
        CheckpointError: The name is not that of a file in this folder: it is absolute or leads through folders. The
            file may be a link, as those in the cache of the Hub are: what lies in a folder was put there by its owner.
    """
    # both kinds of slashes and a drive's colon, on every system
    if name in ("", ".", "..") or re.search(r"[/\\:\0]", name):
        raise CheckpointError(f"{path}: {name[:80]!r} is not the name of a file beside it, and is not opened.")
    return Path(path).parent / name


def damaged(path: Path, size: int) -> CheckpointError:
    """The error for a file of weights with this many bytes that ends too early or was changed."""
    return CheckpointError(
        f"{path} ({size:,} bytes) cannot be read as a {path.suffix or 'torch'} checkpoint. It is probably truncated "
        "or damaged: download it again."
    )


def read_header(path: str | os.PathLike) -> dict[str, StoredTensor]:
    """Read the names, dtypes and shapes of the tensors in a safetensors file, without the tensors.

    Raises:
        OSError: The file does not exist, or cannot be read.
        CheckpointError: It is not a regular file, not a safetensors file, cut short, or has a header of more than
            `MAX_HEADER_BYTES`.
    """
    path = Path(path)
    content, size = _read_bytes(path, 0, 8)
    length = int.from_bytes(content, "little")
    if len(content) < 8 or length > size - 8:
        raise damaged(path, size)
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path} has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are read.")
    header = _parse_object(_read_bytes(path, 8, length)[0], path)
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name in header:
        entry = get_field(header, name, dict, path)
        shape = get_field(entry, "shape", list[int], path, required=True)
        offsets = get_field(entry, "data_offsets", list[int], path, required=True)
        tensors[name] = StoredTensor(get_field(entry, "dtype", str, path, required=True), tuple(shape))
        end = max(end, *offsets, 0)
    if 8 + length + end != size:
        raise damaged(path, size)
    return tensors
