# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed checkpoints: bytes, keys, tensors, pickles, configurations, indices, what lies where a file should."""

import collections
import functools
import io
import json
import math
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from campaign import UnmadeError
from conftest import random_state
from json_changes import DEEP
from safetensors.torch import load_file, save, save_file

from eupe_hf import EupeConfig, variant_config
from eupe_hf.conversion import layouts
from eupe_hf.conversion.checkpoints import dinov3_config
from eupe_hf.conversion.layouts import StateDict, from_eupe
from eupe_hf.variants import VARIANTS


NAMES = {"vit": "eupe-t", "convnext": "eupe-convnext-t"}
# Two of the six, in the process of the cases alone, so small that thousands of conversions take minutes.
_TINY = {
    "vit": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 4},
    "convnext": {"depths": [1, 1, 2, 1], "hidden_sizes": [8, 16, 24, 32]},
}
LAYOUTS = ("raw", "dinov3", "eupe")
CONTAINERS = ("pt", "legacy", "safetensors")
TASKS = ("convert", "convert variant", "raw", "dinov3", "info", "from_pretrained")


def shrink() -> None:
    """Make two of the six models tiny in this process."""
    for family, fields in _TINY.items():
        VARIANTS[NAMES[family]].config.update(fields)
    layouts._published_shapes.cache_clear()


@dataclass(frozen=True)
class Change:
    """A checkpoint with one change, and what reads it.

    Args:
        what: The kind of change, one of `CHANGES`.
        value: Its details.
        family: Of the model.
        layout: Of the checkpoint.
        container: Of the file: torch's zip, torch's old format, or safetensors.
        task: What reads it.
        old: Whether a good model is already where the output goes.
        where: A number from 0 to 1 that picks a byte, a key, a tensor.
    """

    what: str
    value: Any = None
    family: str = "vit"
    layout: str = "raw"
    container: str = "pt"
    task: str = "convert"
    old: bool = True
    where: float = 0.5


def config_of(family: str) -> EupeConfig:
    return variant_config(NAMES[family])  # a new one each time: models write their dtype into it


@functools.cache
def truth(family: str, seed: int = 1) -> StateDict:
    """The tensors by their names in `EupeModel`."""
    return random_state(config_of(family), "eupe", seed)


def _state(case: Change) -> StateDict:
    state = dict(truth(case.family))
    return {key: t.clone() for key, t in from_eupe(state, config_of(case.family), case.layout).items()}


def _pick(case: Change, items: Any) -> Any:
    items = sorted(items)
    return items[min(int(case.where * len(items)), len(items) - 1)]


def _saved(state: Any, container: str) -> bytes:
    if container == "safetensors":
        return save(state, {"format": "pt"})
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=container == "pt")
    return file.getvalue()


# ---- the changes: each writes what is read, and gives the tensors that a reader must find, if it finds any ----


def _write(case: Change, folder: Path, content: bytes | None = None, state: Any = None) -> Path:
    """The checkpoint as a file, or as a folder with its configuration; the path to give to a reader."""
    if content is None:
        content = _saved(_state(case) if state is None else state, _container(case))
    if _container(case) != "safetensors":
        name = "source.pt" if case.where < 0.7 else "source.bin"
        (folder / name).write_bytes(content)
        return folder / name
    place = folder / "source"
    place.mkdir(exist_ok=True)
    if case.layout != "raw":
        config = config_of(case.family) if case.layout == "eupe" else dinov3_config(config_of(case.family))
        if case.layout == "eupe":
            config = EupeConfig.from_dict(config.to_dict() | {"architectures": ["EupeModel"]})
        config.save_pretrained(place)
    (place / "model.safetensors").write_bytes(content)
    return place


def _container(case: Change) -> str:
    """A folder has its weights in safetensors."""
    return case.container if case.layout == "raw" else "safetensors"


def _bytes(case: Change, folder: Path) -> tuple[Path, Any]:
    """Cut, flip, overwrite, insert. What safetensors then holds is what its own reader finds; torch's zip has CRCs."""
    content = bytearray(_saved(_state(case), _container(case)))
    at = min(int(case.where * len(content)), len(content) - 1)
    if case.value == "truncate":
        content = content[:at]
    elif case.value == "flip":
        content[at] ^= 1 << (at % 8)
    elif case.value == "zeros":
        content[at:] = bytes(len(content) - at)
    elif case.value == "insert":
        content[at:at] = b"\0\1\2\3"
    elif case.value == "twice":
        content = bytearray(bytes(content) * 2)
    elif case.value == "text":
        content = bytearray(b"<!DOCTYPE html><html><body>404: not found</body></html>\n" * 20)
    elif case.value == "length":
        content[:8] = struct.pack("<Q", int(case.where * 2**63))
    path = _write(case, folder, bytes(content))
    if case.value == "twice" and _container(case) == "pt":  # a zip is found from its end: the second one is whole
        return path, truth(case.family)
    if _container(case) == "safetensors":
        try:
            return path, _read_ours(case, load_file(path / "model.safetensors"))
        except Exception:  # whatever: then nothing may be loaded
            return path, None
    # torch's old format has no checksums: a change within a tensor's values cannot be seen
    return path, "file" if _container(case) == "legacy" else truth(case.family)


def _read_ours(case: Change, state: StateDict) -> StateDict | None:
    try:
        return layouts.to_eupe(state, config_of(case.family), case.layout)[0]
    except (ValueError, LookupError, RuntimeError):
        return None


def _header(case: Change, folder: Path) -> tuple[Path, Any]:
    """A safetensors header that lies."""
    state = _state(case)
    content = save(state)
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    key = _pick(case, header)
    text = None
    if case.value == "million keys":
        one = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
        header |= {f"extra.{i}": one for i in range(1_000_000)}
    elif case.value == "deep":
        text = '{"a":' + DEEP.decode()
    elif case.value == "not an object":
        text = "[1, 2, 3]"
    elif isinstance(case.value, tuple):
        field, value = case.value
        header[key] = {**header[key], field: value}
    text = json.dumps(header) if text is None else text
    raw = text.encode()
    case = replace(case, container="safetensors")
    return _write(case, folder, struct.pack("<Q", len(raw)) + raw + data), truth(case.family)


def _keys(case: Change, folder: Path) -> tuple[Path, Any]:
    """Keys that are dropped, renamed, added, prefixed; containers."""
    state: Any = _state(case)
    key, found = _pick(case, state), truth(case.family)
    if case.value == "drop":
        state.pop(key)
        found = None
    elif case.value == "rename":
        state[key + "x"] = state.pop(key)
        found = None
    elif case.value == "add":
        state["one.more.weight"] = torch.zeros(3)
        # `from_pretrained` passes over what may be of a head, a conversion over nothing
        found = found if case.task == "from_pretrained" else None
    elif case.value == "prefix":
        prefix = ("module.", "backbone.", "teacher.", "module.backbone.")[int(case.where * 3.99)]
        state = {prefix + name: tensor for name, tensor in state.items()}
        found = None if case.task == "from_pretrained" else found  # transformers takes names as they are
    elif case.value == "projectors":
        state["projectors.heads.x.0.weight"] = torch.ones(4, 4)
    elif _container(case) != "safetensors":
        state = _contained(case.value, state)
        found = truth(case.family) if case.value in _WHOLE else None
    return _write(case, folder, state=state), found


# Containers of all tensors, with what is no tensor beside them.
_WHOLE = ("model", "nested", "cycle beside", "ordered", "deep", "of other things")


def _contained(how: str, state: Any) -> Any:
    if how == "itself":
        loop: dict[str, Any] = {}
        loop["model"] = loop
        return loop
    if how == "each other":
        one: dict[str, Any] = {}
        two = {"state_dict": one}
        one["model"] = two
        return one
    if how == "cycle beside":
        around: dict[str, Any] = {"model": state, "epoch": 3}
        around["optimizer"] = around
        return around
    if how == "deep":
        for _ in range(300):
            state = {"model": state}
        return state
    if how == "ordered":
        return collections.OrderedDict(state)
    if how == "list":
        return list(state.values())
    if how == "keys of numbers":
        return dict(enumerate(state.values()))
    if how == "nothing":
        return {}
    if how == "tensor":
        return next(iter(state.values()))
    if how == "of other things":
        return {**state, "epoch": 3, 5: "five"}
    return {"model": {"state_dict": state}} if how == "nested" else {"model": state, "optimizer": {"lr": 0.1}}


DTYPES = ("float16", "bfloat16", "float64", "int8", "int64", "bool", "complex64", "float8_e4m3fn", "float8_e5m2")
DTYPES += ("uint16", "uint64")


def _dtype(case: Change, folder: Path) -> tuple[Path, Any]:
    """One tensor, or all, in another number format; all of one that models have is right."""
    state, (dtype, which) = _state(case), case.value
    keys = list(state) if which == "all" else [_pick(case, state)]
    for key in keys:
        state[key] = state[key].to(getattr(torch, dtype))
    found = None
    if which == "all" and dtype in ("float16", "bfloat16", "float64"):
        found = {key: tensor.to(getattr(torch, dtype)) for key, tensor in truth(case.family).items()}
    if which == "one" and keys[0].endswith("bias_mask"):  # zeros and ones that no model keeps
        found = truth(case.family)
    if which == "one" and case.task == "from_pretrained" and dtype in ("float16", "bfloat16", "float64"):
        found = "file"  # transformers gives all weights the number format of the model, as with parts kept in float32
    return _write(case, folder, state=state), found


def _tensor(case: Change, folder: Path) -> tuple[Path, Any]:
    """One tensor of another shape, value or kind; or one of the distillation adapters, which are kept as they are."""
    how, of_projector = case.value
    state, found = _state(case), truth(case.family)
    key = "projectors.a.weight" if of_projector else _pick(case, state)
    tensor = torch.randn(6, 4) if of_projector else state[key]
    made = _made(how, tensor)
    if how in ("twin", "view") and not of_projector:  # values are there, in storage that keys share
        other = next((name for name in state if name != key and state[name].shape == tensor.shape), None)
        if other is None:
            raise UnmadeError("no other tensor of this shape")
        whole = torch.stack([state[key], state[other]])
        state[key], state[other] = whole[0], whole[1]
        if how == "twin":
            state["projectors.twin"] = state[key]
    else:
        state[key] = made
    if (
        not of_projector
        and how not in ("twin", "view", "parameter", "strided")
        and not (
            how == "flat" and tensor.ndim == 1  # as it was
        )
    ):
        found = None
    container = "pt" if case.container == "safetensors" else case.container
    return _write(replace(case, layout="raw", container=container), folder, state=state), found


def _made(how: str, tensor: torch.Tensor) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "nan": lambda: tensor * math.nan, "infinite": lambda: tensor + math.inf, "flat": lambda: tensor.flatten(),
        "wider": lambda: torch.cat([tensor, tensor]), "empty": lambda: tensor[:0], "scalar": lambda: torch.tensor(1.0),
        "axis": lambda: tensor[None], "sparse": lambda: tensor.to_sparse(), "meta": lambda: tensor.to("meta"),
        "csr": lambda: tensor.flatten(1).to_sparse_csr() if tensor.ndim > 1 else tensor.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        "huge stride": lambda: torch.zeros(1).expand(100_000, 100_000),
        "parameter": lambda: torch.nn.Parameter(tensor), "strided": lambda: torch.stack([tensor, tensor], -1)[..., 0],
        "negative": lambda: tensor.conj() if tensor.is_complex() else torch.view_as_complex(
            torch.stack([tensor, tensor], -1)).conj(),
        "text": lambda: "a weight", "none": lambda: None, "numbers": lambda: tensor.tolist(),
        "twin": lambda: tensor, "view": lambda: torch.cat([tensor, tensor])[: len(tensor)],
    }  # fmt: skip
    return makers[how]()


TENSORS = (
    "nan", "infinite", "flat", "wider", "empty", "scalar", "axis", "sparse", "csr", "meta", "quantized", "huge stride",
    "parameter", "strided", "negative", "text", "none", "numbers", "twin", "view",
)  # fmt: skip


class _Runs:
    """Unpickled by a reader that trusts, it makes a folder."""

    def __init__(self, function: Callable, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.arguments


def _pickle(case: Change, folder: Path) -> tuple[Path, Any]:
    """Pickles that run code; the folder "ran" says that one did."""
    mark = str(folder / "ran")
    bombs = {
        "mkdir": _Runs(os.mkdir, mark), "system": _Runs(os.system, f"mkdir '{mark}'"),
        "eval": _Runs(eval, f"__import__('os').mkdir({mark!r})"),
        "exec": _Runs(exec, f"import os; os.mkdir({mark!r})"),
        "getattr": _Runs(getattr, "a", "upper"), "load": _Runs(torch.load, mark),
    }  # fmt: skip
    how, place = case.value
    state: Any = _state(replace(case, layout="raw"))
    if place == "value":
        state["epoch"] = bombs[how]
    elif place == "beside":
        state = {"model": state, "args": bombs[how]}
    else:
        state = bombs[how]
    if case.container == "safetensors":  # a bare pickle
        content = pickle.dumps(dict.fromkeys(state, 0) | {"x": bombs[how]} if isinstance(state, dict) else state)
    else:
        content = _saved(state, case.container)
    name = "source.pt" if case.where < 0.5 else "source.safetensors"
    (folder / name).write_bytes(content)
    return folder / name, None


def _config(case: Change, folder: Path) -> tuple[Path, Any]:
    """One field of a config.json beside good weights; or all of the file."""
    case = replace(case, layout="eupe")
    path = _write(case, folder)
    file, (field, value) = path / "config.json", case.value
    if value == "DEEP":
        file.write_bytes(DEEP)
    elif field == "":
        file.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    else:
        content = json.loads(file.read_text())
        content[field] = value
        text = json.dumps(content).replace('"NESTED"', "[" * 900 + "]" * 900)
        file.write_text(text)
    return path, truth(case.family)


def _index(case: Change, folder: Path) -> tuple[Path, Any]:
    """The weights in shards, with an index that is right, or lies."""
    case = replace(case, layout="eupe" if case.layout == "raw" else case.layout)
    path, state = _write(case, folder), _state(case)
    (path / "model.safetensors").unlink()
    keys, outside = sorted(state), folder / "canary"
    outside.mkdir()
    shards = {"a.safetensors": keys[::2], "b.safetensors": keys[1::2]}
    for name, inside in shards.items():
        save_file({key: state[key] for key in inside}, path / name, {"format": "pt"})
    save_file({key: state[key] for key in keys[1::2]}, outside / "model.safetensors", {"format": "pt"})
    weight_map: Any = {key: name for name, inside in shards.items() for key in inside}
    index: Any = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    how: Any = case.value
    found: Any = None
    if how == "right":
        found = truth(case.family)
    elif how == "outside":
        weight_map |= dict.fromkeys(shards["b.safetensors"], "../canary/model.safetensors")
    elif how == "absolute":
        weight_map |= dict.fromkeys(shards["b.safetensors"], str(outside / "model.safetensors"))
    elif how == "linked":  # as in the Hub's cache: a link is fine where the name stays inside
        (path / "b.safetensors").unlink()
        (path / "b.safetensors").symlink_to(outside / "model.safetensors")
        outside.rename(folder / "blobs")
        (path / "b.safetensors").unlink()
        (path / "b.safetensors").symlink_to(folder / "blobs" / "model.safetensors")
        found = truth(case.family)
    elif how == "twice":
        save_file({key: state[key] + 1 for key in keys}, path / "b.safetensors", {"format": "pt"})
    elif how == "missing":
        (path / "b.safetensors").unlink()
    elif how == "a key too many":
        weight_map["one.more"] = "a.safetensors"
    else:
        index = how(index) if callable(how) else {**index, "weight_map": how}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path, found


def _place(case: Change, folder: Path) -> tuple[Path, Any]:
    """Something else than a file where the file should be."""
    source = folder / "source"
    if case.value == "loop":
        (folder / "source.pt").symlink_to(folder / "source.pt")
        return folder / "source.pt", None
    if case.value == "loop of two":
        (folder / "source.pt").symlink_to(folder / "other.pt")
        (folder / "other.pt").symlink_to(folder / "source.pt")
        return folder / "source.pt", None
    if case.value == "pipe":
        os.mkfifo(folder / "source.pt")
        return folder / "source.pt", None
    source.mkdir()
    if case.value == "pipe inside":
        os.mkfifo(source / "model.safetensors")
    elif case.value == "folder inside":
        (source / "model.safetensors").mkdir()
    elif case.value == "device":
        (source / "model.safetensors").symlink_to("/dev/zero")
    elif case.value == "not utf-8":
        path = Path(os.fsdecode(os.fsencode(folder) + b"/source\xff\xfe.pt"))
        path.write_bytes(_saved(_state(case), "pt" if case.container == "safetensors" else case.container))
        return (path, truth(case.family)) if case.layout == "raw" else (path, None)
    elif case.value == "empty file":
        (source / "model.safetensors").touch()
    elif case.value == "long":
        return folder / ("x" * 300 + ".pt"), None
    return source, None


CHANGES: dict[str, Callable[[Change, Path], tuple[Path, Any]]] = {
    "bytes": _bytes, "header": _header, "keys": _keys, "dtype": _dtype, "tensor": _tensor, "pickle": _pickle,
    "config": _config, "index": _index, "place": _place,
}  # fmt: skip
