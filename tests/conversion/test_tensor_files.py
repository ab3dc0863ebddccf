# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Files of tensors from outside: what loads, and what is refused in one sentence with the file and the key."""

import json
import os
import pickle
import shutil
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_same_bits, random_state, tiny_config
from safetensors.torch import save_file

from eupe_hf import CheckpointError
from eupe_hf.conversion import convert_checkpoint
from eupe_hf.conversion.checkpoints import Checkpoint, save_model_folder
from eupe_hf.conversion.tensor_files import read_state_dict


CONFIG = tiny_config("vit")
STATE = random_state(CONFIG)
INDEX, FIRST, SECOND = (
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
)


def refused(path: Path) -> str:
    """The one sentence with which a file is refused, within two seconds and without a warning beside it."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointError) as caught:
            read_state_dict(path)
    assert time.process_time() - start < 2
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


# ---- containers ----


def endless(*keys: str) -> dict[str, Any]:
    """Containers in each other, of which the last holds the first."""
    first: dict[str, Any] = {}
    inner = first
    for key in keys[:-1]:
        inner[key] = {}
        inner = inner[key]
    inner[keys[-1]] = first
    return first


@pytest.mark.parametrize("keys", [["model"], ["model", "state_dict"], ["teacher", "model", "state_dict", "model"]])
def test_containers_that_hold_each_other_are_refused(keys: list[str], tmp_path: Path) -> None:
    torch.save(endless(*keys), tmp_path / "endless.pt")
    assert "its containers hold each other" in refused(tmp_path / "endless.pt")


def test_deep_containers_are_read_to_the_end(tmp_path: Path) -> None:
    state: Any = STATE
    for i in range(100):
        state = {("model", "state_dict", "teacher")[i % 3]: state}
    torch.save(state, tmp_path / "deep.pt")
    assert_same_bits(read_state_dict(tmp_path / "deep.pt"), STATE)


def test_key_that_is_no_name_is_refused(tmp_path: Path) -> None:
    torch.save({"module." * 100_000 + "x": torch.ones(1)}, tmp_path / "long.pt")  # one prefix a pass would take hours
    assert "holds a key of 700,001 characters ('module." in refused(tmp_path / "long.pt")


def test_file_of_too_many_entries_is_refused(tmp_path: Path) -> None:
    torch.save(dict.fromkeys(map(str, range(400_000))), tmp_path / "many.pt")
    assert "describes its tensors in" in refused(tmp_path / "many.pt")


# ---- kinds of tensors ----

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # quantized tensors are going away in torch
    QUANTIZED = torch.quantize_per_tensor(torch.ones(32), 0.1, 0, torch.qint8)
KINDS = {
    "sparse": (torch.eye(32)[0].to_sparse(), "is a sparse tensor: save it dense"),
    "sparse rows": (torch.eye(32).to_sparse_csr(), "is a sparse tensor: save it dense"),
    "quantized": (QUANTIZED, "is a quantized tensor: save it dense"),
    "meta": (torch.ones(32, device="meta"), "is a meta tensor: save it dense"),
    "complex": (torch.ones(32, dtype=torch.complex64), "has the number format torch.complex64"),
    "float8": (torch.ones(32).to(torch.float8_e5m2), "has the number format torch.float8_e5m2"),
    "float8, the other": (torch.ones(32).to(torch.float8_e4m3fn), "has the number format torch.float8_e4m3fn"),
    "40 GB of one value": (torch.ones(1).expand(10**10), "they repeat values that are stored once"),
}


@pytest.mark.parametrize("key", ["norm.weight", "projectors.head.weight"])
@pytest.mark.parametrize(("tensor", "message"), KINDS.values(), ids=KINDS)
def test_tensor_of_another_kind_is_refused_by_its_key(
    tensor: torch.Tensor, message: str, key: str, tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({**STATE, key: tensor}, tmp_path / "odd.pt")
    found = refused(tmp_path / "odd.pt")
    assert message in found and repr(key) in found


def test_safetensors_of_float8_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({key: tensor.to(torch.float8_e4m3fn) for key, tensor in STATE.items()}, file)
    assert "number format torch.float8_e4m3fn, in which no model computes" in refused(file)


SHARED = {
    "one tensor": lambda base: (base[:32], base[:32]),
    "overlap": lambda base: (base[:32], base[16:48]),
    "one inside": lambda base: (base[:64].view(2, 32)[0], base[8:40]),
    "every second": lambda base: (base[0:64:2], base[1:64:2]),
    "turned": lambda base: (base[:32], base[:32].flip(0)),
    "one repeated value": lambda base: (base[:1].expand(32), base[:32]),
}


@pytest.mark.parametrize("views", SHARED.values(), ids=SHARED)
def test_tensors_that_share_memory_load_and_are_converted(views: Callable, tmp_path: Path) -> None:
    folder = save_model_folder(Checkpoint(STATE, CONFIG, "eupe", None, {}), tmp_path / "source")
    one, other = views(torch.arange(64.0))
    state = {**STATE, "encoder.layers.0.norm1.weight": one, "encoder.layers.1.norm1.weight": other}
    (folder / "model.safetensors").unlink()
    torch.save({**state, "projectors.a": one, "projectors.b": other}, folder / "shared.pt")
    found = read_state_dict(folder / "shared.pt")
    assert_same_bits({key: found[key] for key in state}, state)
    assert all(tensor.is_contiguous() for tensor in found.values())
    done = convert_checkpoint(folder / "shared.pt", tmp_path / "ours", keep_projectors=True)
    assert_same_bits(read_state_dict(done.output), state)
    assert_same_bits(
        read_state_dict(done.output / "projectors.safetensors"), {"projectors.a": one, "projectors.b": other}
    )


# ---- torch's files ----


def test_changed_byte_in_a_torch_file_is_found(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "whole.pt")
    content = bytearray((tmp_path / "whole.pt").read_bytes())
    start = content.index(STATE["norm.weight"].numpy().tobytes())
    content[start + 5] ^= 1  # a value that stays plausible
    (tmp_path / "changed.pt").write_bytes(content)
    assert "is damaged: the checksum of" in refused(tmp_path / "changed.pt")


def test_torch_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "plain.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same_bits(read_state_dict(tmp_path / "plain.pt"), STATE)


def test_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert "is a compressed archive" in refused(tmp_path / "packed.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\3\4" + b"\0" * 100)
    assert "truncated or damaged" in refused(tmp_path / "cut.pt")


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(6))
def test_harmful_pickle_is_refused_in_one_sentence_alone(protocol: int, tmp_path: Path) -> None:
    content = {**STATE, "x": Payload(tmp_path / "ran")}
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"x": content["x"]}, protocol))
    refused(tmp_path / "plain.pt")
    if protocol == 2:  # torch's own
        torch.save(content, tmp_path / "zip.pt")
        assert "reading it would run code from the file" in refused(tmp_path / "zip.pt")
    assert not (tmp_path / "ran").exists()


# ---- shards ----


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A tiny ViT in two shards, with its configuration."""
    folder = tmp_path / "sharded"
    CONFIG.save_pretrained(folder)
    keys = sorted(STATE)
    shard_of = {key: FIRST if i < 20 else SECOND for i, key in enumerate(keys)}
    for name in (FIRST, SECOND):
        save_file({key: STATE[key] for key in keys if shard_of[key] == name}, folder / name, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    return folder


def change(folder: Path, edit: Callable[[dict], None]) -> Path:
    """Edit the index of a folder. Returns the index."""
    values = json.loads((folder / INDEX).read_text())
    edit(values)
    (folder / INDEX).write_text(json.dumps(values))
    return folder / INDEX


def refused_index(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_shards_are_read_as_one_and_links_are_followed(sharded: Path, tmp_path: Path) -> None:
    assert_same_bits(read_state_dict(sharded), STATE)
    blob = (sharded / FIRST).rename(tmp_path / "blob")  # as in the cache of the Hub
    (sharded / FIRST).symlink_to(blob)
    assert_same_bits(read_state_dict(sharded), STATE)
    (sharded / FIRST).unlink()
    (sharded / FIRST).symlink_to(FIRST)  # to itself
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*model-00001"):
        read_state_dict(sharded)


MAPS = [[], ["x"], "x", None, 5, True, {"a": 5}, {"a": None}, {"a": [1]}, {"a": {"b": "c"}}]


@pytest.mark.parametrize("value", MAPS, ids=str)
def test_index_of_other_types_is_refused_by_its_field(value: Any, sharded: Path) -> None:
    change(sharded, lambda index: index.update(weight_map=value))
    assert f"{INDEX}: 'weight_map' must be an object whose entries are text, got " in refused_index(sharded)
    change(sharded, lambda index: index.pop("weight_map"))
    assert "'weight_map' must be an object whose entries are text, got nothing" in refused_index(sharded)


def test_index_without_tensors_is_refused(sharded: Path) -> None:
    change(sharded, lambda index: index.update(weight_map={}))
    assert "names no tensors" in refused_index(sharded)


OUTSIDE = [
    "../other/model.safetensors",
    "{folder}/model.safetensors",
    "sub/model.safetensors",
    "..",
    "",
    "\\\\host\\x",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_shard_outside_the_folder_is_not_opened(name: str, sharded: Path, tmp_path: Path) -> None:
    other = save_model_folder(Checkpoint(STATE, CONFIG, "eupe", None, {}), tmp_path / "other")
    shutil.copytree(other, sharded / "sub")
    name = name.format(folder=other)
    change(sharded, lambda index: index.update(weight_map=dict.fromkeys(STATE, name)))
    assert "is not the name of a file beside it, and is not opened" in refused_index(sharded)


def test_key_in_two_shards_is_refused(sharded: Path) -> None:
    first = {key: STATE[key] for key in sorted(STATE)[:20]}
    key = sorted(STATE)[-1]
    save_file({**first, key: STATE[key] * 2}, sharded / FIRST, {"format": "pt"})
    found = refused_index(sharded)
    assert f"{FIRST} holds {key!r}, for which {INDEX} names {SECOND}" in found


def test_index_that_names_other_keys_than_its_shards_is_refused(sharded: Path) -> None:
    change(sharded, lambda index: index["weight_map"].update(extra=SECOND))
    assert f"names 'extra' in {SECOND}, which lacks it" in refused_index(sharded)
    key = sorted(STATE)[0]
    change(sharded, lambda index: [index["weight_map"].pop(name) for name in ("extra", key)])
    assert f"{FIRST} holds {key!r}, for which {INDEX} names no file" in refused_index(sharded)


def test_whole_file_comes_before_an_index_as_in_transformers(sharded: Path) -> None:
    save_file({key: tensor + 1 for key, tensor in STATE.items()}, sharded / "model.safetensors", {"format": "pt"})
    assert torch.equal(read_state_dict(sharded)["norm.weight"], STATE["norm.weight"] + 1)


# ---- paths ----


def test_loop_of_links_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    with pytest.raises(FileNotFoundError, match=r"No checkpoint at .*one"):
        convert_checkpoint(tmp_path / "one", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_path_that_is_not_utf_8_is_one_sentence(tmp_path: Path) -> None:
    folder = save_model_folder(Checkpoint(STATE, CONFIG, "eupe", None, {}), tmp_path / "source")
    strange = folder.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    good = shutil.copytree(strange, tmp_path / "good")
    for checkpoint, output in ((strange, tmp_path / "ours"), (good, strange.with_name(strange.name + "2"))):
        with pytest.raises(CheckpointError, match=r"caf\\xe9.* cannot be used: its bytes are not UTF-8"):
            convert_checkpoint(checkpoint, output)
    assert sorted(tmp_path.iterdir()) == [strange, good]


def test_header_longer_than_any_models_is_refused(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = ("{" + ",".join(f'"{i}":{entry}' for i in range(80_000)) + "}").encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "has a header of" in refused(tmp_path / "model.safetensors")
