# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed adapters: their weights, the names in them, and the two JSON files beside them."""

import functools
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from campaign import WrongError, building, eupe, scratch
from hypothesis import strategies as st
from json_changes import DEEP, JSON, changed
from lora_common import HEAD, answer, pixels, trained
from modeling_common import randomise, tiny_config
from safetensors.torch import load_file, save, save_file
from transformers import AutoModelForImageClassification

from eupe_hf import EupeForImageClassification, EupeModel
from eupe_hf.lora import load_peft_model, lora_config


_WEIGHTS, _PEFT, _OURS = "adapter_model.safetensors", "adapter_config.json", "eupe_config.json"
_ROOT = Path("/")
# where the names of a file may not lead
_NAMES = (
    "config.lora_A.weight", "forward.lora_A.weight", "device", "__dict__", "__class__.lora_B.weight", "dtype",
    "eupe.encoder.layers", "eupe.encoder.layers.0.lora_A.weight",
    "eupe.encoder.layers.99.attention.q_proj.lora_A.weight",
    "eupe.encoder.layers.0.attention.q_proj", "eupe.config.hidden_size", "head.__init__.lora_A.weight", "", ".", "..",
    "eupe.encoder.layers.0.attention.q_proj.lora_A", "generation_config.lora_A.weight", "name_or_path", "training",
    "eupe.encoder.layers.0.attention.q_proj.weight.lora_A.weight", "_modules.eupe.lora_A.weight", "a" * 400,
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """An adapter with one change, and what loads it.

    Args:
        what: "bytes", "header", "names", "tensor", or the name of a JSON file.
        value: The details.
        do: For JSON: "set", "delete", "add" or "twice".
        where: A number from 0 to 1 that picks a place.
        family: Of the base.
        task: What loads it.
    """

    what: str
    value: Any = None
    do: str = "set"
    where: float = 0.5
    family: str = "vit"
    task: str = "class"


_TASKS: dict[str, Callable[[Path], Any]] = {
    "class": EupeForImageClassification.from_pretrained,
    "auto": AutoModelForImageClassification.from_pretrained,
    "peft": lambda folder: load_peft_model(str(folder)),
    "info": lambda folder: eupe("info", folder),
    "encoder": EupeModel.from_pretrained,
}


@functools.cache
def _made(family: str) -> tuple[dict[str, bytes], torch.Tensor]:
    """The files of an adapter, as saved for a base in a folder beside it, and what the model answers."""
    with scratch() as folder:
        randomise(EupeModel(tiny_config(family))).save_pretrained(folder / "base")
        torch.manual_seed(0)
        model = EupeForImageClassification.from_pretrained(folder / "base", **HEAD)
        wrapped = trained(model, lora_config(model, r=2))
        wrapped.save_pretrained(folder / "adapter")
        files = {}
        for place in ("base", "adapter"):
            for file in (folder / place).iterdir():
                if file.suffix != ".py":
                    files[f"{place}/{file.name}"] = file.read_bytes().replace(str(folder).encode(), b"@FOLDER@")
        return files, answer(wrapped, pixels())


def _write(case: Change, folder: Path) -> Any:
    """The changed adapter; what it must answer: the true logits, anything ("file"), or nothing (None)."""
    files, logits = _made(case.family)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.replace(b"@FOLDER@", str(folder).encode()))
    weights = folder / "adapter" / _WEIGHTS
    content = bytearray(weights.read_bytes())
    state = load_file(weights)
    key = sorted(state)[min(int(case.where * len(state)), len(state) - 1)]
    at = min(int(case.where * len(content)), len(content) - 1)
    if case.what == "bytes":
        size = 8 + struct.unpack("<Q", content[:8])[0]
        if case.value == "truncate":
            content = content[:at]
        elif case.value == "flip":
            content[at] ^= 1 << (at % 8)
        elif case.value == "zeros":
            content[at:] = bytes(len(content) - at)
        elif case.value == "length":
            content[:8] = struct.pack("<Q", int(case.where * 2**63))
        elif case.value == "deep":
            content = bytearray(struct.pack("<Q", len(DEEP) + 5) + b'{"a":' + DEEP)
        else:
            content = bytearray()
        weights.write_bytes(bytes(content))
        # safetensors has no checksums: other values are the file's
        return "file" if case.value in ("flip", "zeros") and at >= size else None if case.value != "flip" else "file"
    if case.what == "names":
        prefix = "base_model.model." if case.where < 0.8 else ""
        tensor = state.pop(key) if case.do == "set" else state[key]
        if not case.value and not prefix:
            prefix = "x"
        save_file({**state, prefix + case.value: tensor.clone()}, weights)
        return None if case.do == "set" else logits
    if case.what == "tensor":
        shapes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
            "flat": torch.Tensor.flatten, "axis": lambda t: t[None], "scalar": lambda t: torch.tensor(1.0),
            "turned": lambda t: t.T.contiguous() if t.ndim == 2 else t[:1], "empty": lambda t: t[:0],
            "wider": lambda t: torch.cat([t, t]), "nan": lambda t: t * float("nan"), "int": lambda t: t.to(torch.int8),
            "float8": lambda t: t.to(torch.float8_e4m3fn), "half": lambda t: t.half(),
        }  # fmt: skip
        if case.value == "drop":
            state.pop(key)
        else:
            state[key] = shapes[case.value](state[key]).contiguous()
        weights.write_bytes(save(state))
        return "file" if case.value in ("half", "float8") else None
    file = folder / "adapter" / case.what
    if case.value == "DEEP" or isinstance(case.value, bytes):
        file.write_bytes(DEEP if case.value == "DEEP" else case.value)
    elif isinstance(case.value, tuple):
        field, value = case.value
        file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    elif case.do == "remove file":
        file.unlink()
    else:
        file.write_text(json.dumps(changed(json.loads(file.read_text()), case)[0]))
    return "file"


def check(case: Change, names: list[str]) -> None:
    """Write the adapter, load it, and compare what the model answers."""
    with scratch() as folder:
        with building():
            expected = _write(case, folder)
        names += ["adapter", "base", "/etc/passwd"]  # or the base that it was made to name
        model = _TASKS[case.task](folder / "adapter")
        if (folder / "ran").exists():
            raise WrongError("code of the file ran")
        if model is None:
            return
        if expected is None and case.task != "encoder":
            raise WrongError("it loads, and it should be refused")
        if isinstance(expected, torch.Tensor):
            found = answer(model, pixels())
            if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=1e-5):
                raise WrongError(f"the model answers {found.flatten()[:3].tolist()}")


_FIELDS = {
    _PEFT: [
        "base_model_name_or_path", "target_modules", "modules_to_save", "r", "lora_alpha", "peft_type", "task_type",
        "rank_pattern", "alpha_pattern", "auto_mapping", "revision", "layers_to_transform", "layers_pattern", "bias",
        "exclude_modules", "target_parameters", "loftq_config", "megatron_config", "use_dora", "init_lora_weights",
        "more", "runtime_config", "layer_replication", "eva_config", "corda_config", "trainable_token_indices",
        "__class__",
    ],
    _OURS: [
        "architectures", "model_type", "hidden_size", "num_hidden_layers", "num_labels", "id2label", "label2id",
        "dtype", "auto_map", "attn_implementation", "quantization_config", "image_size", "out_indices", "depths",
        "to_dict", "encoder_config", "head_dropout", "_name_or_path", "num_attention_heads",
    ],
}  # fmt: skip
_PATTERN = "(([a-z._0-9]+)+)+X"
_JSON = JSON | st.sampled_from(
    [_PATTERN, "/etc/passwd", "http://0.0.0.0:9/x", "all-linear", ["q_proj"], "LORA", "DEEP"]
)
_WHATS: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.sampled_from(["truncate", "flip", "flip", "zeros", "length", "deep", "empty"]),
    "names": st.sampled_from(_NAMES),
    "tensor": st.sampled_from([
        "flat", "axis", "scalar", "turned", "empty", "wider", "nan", "int", "float8", "half", "drop",
    ]),
    _PEFT: st.tuples(st.sampled_from(_FIELDS[_PEFT]), _JSON) | _JSON,
    _OURS: st.tuples(st.sampled_from(_FIELDS[_OURS]), _JSON) | _JSON,
}  # fmt: skip
CASES: st.SearchStrategy[Change] = st.sampled_from([*_WHATS, _PEFT, _OURS, "names"]).flatmap(
    lambda what: st.builds(
        Change, what=st.just(what), value=_WHATS[what], do=st.sampled_from(["set", "set", "delete", "add", "twice"]),
        where=st.floats(0, 0.999), family=st.sampled_from(["vit", "convnext"]), task=st.sampled_from(sorted(_TASKS)),
    )
)  # fmt: skip
KNOWN = [
    *(Change("names", name, do=do, task=task) for name in _NAMES for do, task in (("set", "class"), ("add", "peft"))),
    *(Change("tensor", how, task=task) for how in ("flat", "axis", "scalar", "nan", "drop")
      for task in ("auto", "peft")),
    *(Change("bytes", how, task=task, where=0.4) for how in ("truncate", "length", "deep")
      for task in ("auto", "peft")),
    *(Change(_PEFT, ("target_modules", _PATTERN), task=task) for task in _TASKS),
    *(Change(file, value, task=task) for file in (_PEFT, _OURS) for value in ("DEEP", b"\xff", b"[]", b"")
      for task in _TASKS),
    *(Change(_OURS, (field, value)) for field, value in (
        ("num_labels", 10_000_000), ("num_hidden_layers", 100_000), ("architectures", "x"), ("architectures", [5]),
        ("id2label", 3), ("quantization_config", 5),
    )),
    *(Change(_PEFT, (field, value)) for field, value in (
        ("base_model_name_or_path", 5), ("base_model_name_or_path", []), ("base_model_name_or_path", "\0"), ("r", "x"),
        ("peft_type", "X"), ("auto_mapping", {"parent_library": "os", "base_model_class": "system"}),
    )),
]  # fmt: skip
