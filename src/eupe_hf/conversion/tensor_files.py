# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The one place where tensors from outside are read: safetensors files, torch's files, and folders of shards.

Whatever a file holds, `read_state_dict` returns plain tensors that can be computed with and saved, or raises one
`CheckpointError` with the file and the key. No code from a file runs, and nothing takes more memory than the file's
size accounts for.
"""

import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from eupe_hf.models.modeling_eupe import EupeModel
from eupe_hf.models.reading_eupe import (
    CheckpointError,
    check_path,
    damaged,
    file_beside,
    get_field,
    read_header,
    read_json,
)

from .layouts import StateDict


ENCODER_PREFIX = f"{EupeModel.base_model_prefix}."  # in our own task models
# Other tools wrap a state dict in one of these keys, and put one of these prefixes before every name.
_CONTAINERS = ("model", "state_dict", "teacher")
_PREFIXES = ("module.", "backbone.", "teacher.", ENCODER_PREFIX)
# What safetensors and torch's unpickler raise on files that were cut short or have changed bytes.
_DAMAGED = (
    SafetensorError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, struct.error, pickle.PickleError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
_MAX_PICKLE_BYTES = 4 << 20  # of a zip, where tensors lie beside it: about 30,000 of them
_MAX_KEY = 500
_DTYPES = frozenset((
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
))  # fmt: skip


def read_state_dict(path: str | os.PathLike) -> StateDict:
    """Read the tensors of a file or folder by name, on the CPU, out of containers and without prefixes.

    Args:
        path: A `.safetensors`, `.pt`, `.pth` or `.bin` file; or a folder with `model.safetensors`, or its index and
            shards. Pickles are always read with `weights_only=True`, and the checksums in torch's files are compared.

    Returns:
        Dense, contiguous tensors of floats, integers or booleans, none of which shares its memory with another.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: The file is truncated or damaged, is not a checkpoint, holds code, or holds no tensors; a
            tensor is of a kind that no model computes with, or larger than the file. Or an index names files
            elsewhere, or other tensors than its shards hold.
    """
    path = Path(path)
    if path.is_dir() and not (path / SAFE_WEIGHTS_NAME).is_file() and (path / SAFE_WEIGHTS_INDEX_NAME).is_file():
        tensors = _read_shards(path / SAFE_WEIGHTS_INDEX_NAME)
    else:
        tensors = _read_tensors(path / SAFE_WEIGHTS_NAME if path.is_dir() else path)
    return strip_prefixes(tensors, _PREFIXES)


def strip_prefixes(state: StateDict, prefixes: Sequence[str]) -> StateDict:
    """Remove every prefix that all keys share, repeatedly and in any order."""
    while prefix := next((p for p in prefixes if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _read_shards(index: Path) -> StateDict:
    shard_of = get_field(read_json(index), "weight_map", dict[str, str], index, required=True)
    files = {name: file_beside(name, index) for name in sorted(set(shard_of.values()))}
    tensors: StateDict = {}
    for name, file in files.items():
        shard = _read_tensors(file)
        if strangers := [key for key in shard if shard_of.get(key) != name]:
            found = shard_of.get(strangers[0], "no file")
            raise CheckpointError(
                f"{file} holds {strangers[0]!r}, for which {index.name} names {found}: download again."
            )
        tensors |= shard
    if missing := [key for key in shard_of if key not in tensors]:
        raise CheckpointError(
            f"{index} names {missing[0]!r} in {shard_of[missing[0]]}, which lacks it: download again."
        )
    if not tensors:
        raise CheckpointError(f"{index} names no tensors: its 'weight_map' is empty.")
    return tensors


def _read_tensors(path: Path) -> StateDict:
    """The plain tensors of one file by name, out of containers."""
    loaded = _load(path)
    containers = set()
    while isinstance(loaded, Mapping):
        containers.add(id(loaded))
        inner = [loaded[key] for key in _CONTAINERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            break
        loaded = inner[0]
        if id(loaded) in containers:
            raise CheckpointError(f"{path} holds no state dict: its containers hold each other.")
    found = type(loaded).__name__
    tensors = {}
    if isinstance(loaded, Mapping):
        found = ", ".join(str(key)[:40] for key in list(loaded)[:5])
        tensors = {str(key): value for key, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no state dict: expected tensors by name, at the top or under "
            f"{', '.join(map(repr, _CONTAINERS))}; found {found or 'nothing'}."
        )
    return _plain(tensors, path)


def _plain(tensors: StateDict, path: Path) -> StateDict:
    """Check that tensors are ordinary ones, and give each its own memory."""
    size, total = path.stat().st_size, 0
    for key, tensor in tensors.items():
        if len(key) > _MAX_KEY:
            raise CheckpointError(
                f"{path} holds a key of {len(key):,} characters ({key[:40]!r}...): no tensor has such a name."
            )
        kinds = {"sparse": tensor.layout != torch.strided, "quantized": tensor.is_quantized, "meta": tensor.is_meta}
        if kind := next((kind for kind, holds in kinds.items() if holds), None):
            raise CheckpointError(f"{path}: {key!r} is a {kind} tensor: save it dense, as floating point numbers.")
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: {key!r} has the number format {tensor.dtype}, in which no model computes: save it as "
                "torch.bfloat16 or torch.float32."
            )
        total += tensor.nbytes
        if total > 2 * size:  # some may share their memory, but not all with all
            raise CheckpointError(
                f"{path} has {size:,} bytes, and its tensors up to {key!r} have {total:,}: they repeat values "
                "that are stored once. Save them with .contiguous()."
            )
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    end = 0
    for key in sorted(tensors, key=lambda key: tensors[key].data_ptr()):
        start, count = tensors[key].data_ptr(), tensors[key].nbytes
        if start < end and count:  # it begins inside another one
            tensors[key] = tensors[key].clone()
        end = max(end, start + count)
    return tensors


def _load(path: Path) -> Any:
    check_path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No checkpoint at {path}. Give the file as downloaded (for example EUPE-ViT-S.pt), a .safetensors file, "
            f"or a folder that holds {SAFE_WEIGHTS_NAME}."
        )
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) > 8 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        raise CheckpointError(
            f"{path} is a text file (it begins {head[:40].decode()!r}), not a checkpoint. If an error page or a Git "
            "LFS pointer was saved in place of the download, download it again."
        )
    try:
        # By its content too, for unfinished files: the length of a header, then the header, which is JSON.
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            read_header(path)
            return load_file(path)
        if head.startswith(b"PK"):
            _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is an error below
            # Not memory-mapped: torch's old format cannot be, and the largest of our files has 350 MB.
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except _DAMAGED as error:
        # torch's own message recommends loading the file unsafely
        if isinstance(error, pickle.UnpicklingError) and (found := re.search(r"GLOBAL (\S+)", str(error))):
            raise CheckpointError(
                f"{path} holds more than tensors ({found[1]}): reading it would run code from the file, "
                "which this package never does. Save the state dict alone: torch.save(model.state_dict(), FILE)."
            ) from error
        raise damaged(path, path.stat().st_size) from error


def _check_zip(path: Path) -> None:
    """Compare the checksums in torch's format, a zip, and refuse one that unpacks to more than it is."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
            sum(entry.file_size for entry in entries) > path.stat().st_size
        ):
            raise CheckpointError(f"{path} is a compressed archive, and torch.save writes none: unpack it first.")
        for entry in entries:
            if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path} describes its tensors in {entry.file_size:,} bytes; at most {_MAX_PICKLE_BYTES:,} are "
                    "read."
                )
        # torch can leave the checksums out: then all are 0
        if any(entry.CRC for entry in entries) and (changed := archive.testzip()) is not None:
            raise CheckpointError(f"{path} is damaged: the checksum of {changed} in it is another. Download it again.")
