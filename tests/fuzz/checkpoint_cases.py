# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed checkpoints, read by the command and by `from_pretrained`: what is drawn, and how it is judged."""

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from campaign import WrongError, building, eupe, scratch, snapshot
from checkpoint_changes import CHANGES, CONTAINERS, DTYPES, LAYOUTS, NAMES, TASKS, TENSORS, Change, config_of, truth
from conftest import build_model
from hypothesis import strategies as st
from json_changes import JSON

from eupe_hf import EupeConfig, EupeForImageClassification, EupeModel
from eupe_hf.conversion.checkpoints import load_checkpoint
from eupe_hf.conversion.layouts import StateDict


# ---- judging ----


def check(case: Change, names: list[str]) -> None:
    """Make the checkpoint, have it read, and compare what was loaded with what is there."""
    if case.task == "from_pretrained":  # which takes this package's folders alone
        case = replace(case, layout="eupe", container="safetensors")
    with scratch() as folder:
        with building():
            source, found = CHANGES[case.what](case, folder)
            output = folder / "out"
            if case.old and case.task != "raw":
                model_of(case.family, 7).save_pretrained(output)
            before = snapshot(folder) if case.value != "device" else {}
        names += [source.name, os.fsencode(source.name).decode("utf-8", "backslashreplace"), "config.json"]
        names += [str(source)]
        target = output / "EUPE.pt" if case.task == "raw" else output
        try:
            loaded = _read(case, source, target)
        except (OSError, ValueError) as error:
            if before and snapshot(folder) != before:
                changed = sorted(set(snapshot(folder).items()) ^ set(before.items()))
                raise WrongError(f"refused, and changed {changed[0][0]}: {error}") from error
            is_folder = source.is_dir() or case.task != "from_pretrained"  # which reads no file
            if isinstance(found, dict) and (
                case.what in ("index", "keys") or (case.value == ("twin", False) and is_folder)
            ):
                raise RuntimeError(f"refused, and it is right: {error}") from error
            raise
        if (folder / "ran").exists():
            raise WrongError("code of the file ran")
        strange = {path.name for path in folder.iterdir() if path.name.startswith(".")}
        if strange:
            raise WrongError(f"left {sorted(strange)} behind")
        _compare(case, loaded, found)


@functools.cache
def model_of(family: str, seed: int) -> EupeModel:
    return build_model(truth(family, seed), config_of(family))


def _read(case: Change, source: Path, output: Path) -> StateDict | None:
    """Run what the case asks for; the tensors that came out, by their names in `EupeModel`."""
    task = case.task
    if task == "info":
        eupe("info", source)
        return None
    if task == "from_pretrained":
        EupeForImageClassification.from_pretrained(source)  # with a head that is new
        return EupeModel.from_pretrained(source).state_dict()
    if task in ("convert", "convert variant"):
        options = ["--variant", NAMES[case.family]] if task == "convert variant" else []
        eupe("convert", source, output, *options)
        return EupeModel.from_pretrained(output, dtype="auto").state_dict()
    eupe("convert", source, output, "--to", task)
    return load_checkpoint(output).state


def _compare(case: Change, loaded: StateDict | None, found: Any) -> None:
    if loaded is None or found == "file":
        return
    if found is None:
        raise WrongError("it loads, and it should be refused")
    if loaded.keys() != found.keys():
        raise WrongError(f"other tensors: {sorted(loaded.keys() ^ found.keys())[:3]}")
    for key, tensor in found.items():
        if loaded[key].dtype != tensor.dtype or not torch.equal(loaded[key], tensor):
            raise WrongError(f"{key} is not what the file holds: {loaded[key].dtype}, {tuple(loaded[key].shape)}")


# ---- what is drawn ----


_FIELDS = [
    *sorted(EupeConfig().to_dict()), "id2label", "label2id", "num_labels", "dtype", "torch_dtype", "auto_map",
    "attn_implementation", "to_dict",
    "quantization_config", "rope_parameters", "output_attentions", "architectures", "model_type", "out_indices",
    "out_features", "depths", "hidden_sizes", "problem_type", "_name_or_path", "__class__", "from_dict",
    "tie_word_embeddings",
]  # fmt: skip
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bytes": st.sampled_from(["truncate", "flip", "flip", "flip", "zeros", "insert", "twice", "text", "length"]),
    "header": st.tuples(
        st.sampled_from(["dtype", "shape", "data_offsets", "more"]),
        st.sampled_from(["F8_E4M3", "F32", "I64", "BOOL", "X", [0, 4], [2**62, 2**62], [0], [], [8, 0]]) | JSON,
    ),
    "keys": st.sampled_from([
        "drop", "rename", "add", "prefix", "projectors", "itself", "each other", "cycle beside", "deep", "ordered",
        "list", "keys of numbers", "nothing", "tensor", "of other things", "model", "nested",
    ]),
    "dtype": st.tuples(st.sampled_from(DTYPES), st.sampled_from(["one", "all"])),
    "tensor": st.tuples(st.sampled_from(TENSORS), st.booleans()),
    "pickle": st.tuples(
        st.sampled_from(["mkdir", "system", "eval", "exec", "getattr", "load"]),
        st.sampled_from(["value", "beside", "whole"]),
    ),
    "config": st.tuples(st.sampled_from(_FIELDS), JSON) | st.tuples(st.just(""), JSON | st.binary(max_size=20)),
    "index": st.sampled_from(["right", "outside", "absolute", "linked", "twice", "missing", "a key too many"]) | JSON,
    "place": st.sampled_from([
        "loop", "loop of two", "pipe", "pipe inside", "folder inside", "device", "not utf-8", "empty file", "long",
        "empty folder",
    ]),
}  # fmt: skip
CASES: st.SearchStrategy[Change] = st.sampled_from([*CHANGES, "bytes", "tensor", "config", "config"]).flatmap(
    lambda what: st.builds(
        Change, what=st.just(what), value=_VALUES[what], family=st.sampled_from(sorted(NAMES)),
        layout=st.sampled_from(LAYOUTS), container=st.sampled_from(CONTAINERS), task=st.sampled_from(TASKS),
        old=st.booleans(), where=st.floats(0, 0.999),
    )
)  # fmt: skip

# What was found by hand and by earlier campaigns, once for each.
KNOWN = [
    *(Change("keys", how) for how in ("itself", "each other", "cycle beside", "deep", "prefix", "nested")),
    Change("header", "million keys"), Change("header", "deep"), Change("header", "not an object"),
    *(Change("config", (field, value)) for field, value in (
        ("num_hidden_layers", 100_000), ("num_labels", 10_000_000), ("id2label", [1, 2]), ("id2label", "x"),
        ("dtype", 5), ("dtype", {"a": 1}), ("auto_map", "x"), ("auto_map", [1]), ("attn_implementation", 7),
        ("quantization_config", "x"), ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("rope_parameters", 3), ("to_dict", 1), ("output_attentions", True), ("image_size", "NESTED"),
        ("num_hidden_layers", 2), ("", "DEEP"), ("", b"\xff\xfe{}"), ("", []), ("", {}), ("", b""),
    )),
    *(Change("config", (field, value), task="convert variant") for field, value in (
        ("num_attention_heads", 4), ("rope_theta", 10.0), ("layer_norm_eps", 0.1), ("hidden_act", "relu"),
        ("num_hidden_layers", 2),
    )),
    *(Change("config", (field, value), task="from_pretrained") for field, value in (
        ("num_hidden_layers", 2), ("id2label", "x"), ("num_labels", 10_000_000), ("quantization_config", {}),
    )),
    *(Change("dtype", (dtype, which), layout="eupe", task=task) for dtype in ("float8_e4m3fn", "float8_e5m2", "int64")
      for which in ("one", "all") for task in ("convert", "from_pretrained")),
    *(Change("dtype", (dtype, "all")) for dtype in ("float8_e5m2", "float8_e4m3fn")),
    *(Change("tensor", (how, of_projector)) for of_projector in (False, True)
      for how in ("sparse", "csr", "meta", "quantized", "huge stride", "twin", "view", "nan")),
    Change("tensor", ("nan", False), task="from_pretrained"),
    *(Change("index", how, layout="eupe", task=task) for task in ("convert", "from_pretrained") for how in (
        "right", "outside", "absolute", "linked", "twice", "missing", [], "x", None, 5, {"a": 1}, {"a": None},
    )),
    *(Change("pickle", (how, place), container=container) for how in ("system", "mkdir")
      for place in ("value", "whole") for container in CONTAINERS),
    *(Change("place", how) for how in ("loop", "loop of two", "pipe", "pipe inside", "device", "not utf-8", "long")),
    *(Change("bytes", "flip", container="pt", where=where) for where in (0.3, 0.5, 0.7)),
    Change("bytes", "zeros", layout="eupe", where=0.8), Change("bytes", "truncate", layout="eupe", where=0.8),
]  # fmt: skip
