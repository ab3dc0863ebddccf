# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Adapters that are damaged or meant to do harm: names, tensors and fields are checked before peft sees them."""

import json
import re
import time
from pathlib import Path

import peft
import pytest
import torch
from lora_common import BY_FAMILY, answer, save_bases, saved_adapter, trained
from modeling_common import tiny_config
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

from eupe_hf import EupeForImageClassification
from eupe_hf.lora import load_peft_model, lora_config
from eupe_hf.models.reading_eupe_adapter import is_quick


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory)


LOADS = (EupeForImageClassification.from_pretrained, AutoModelForImageClassification.from_pretrained, load_peft_model)


@pytest.mark.parametrize(
    "name",
    ["config.shape", "device.lora_A.weight", "forward.lora_B.weight", "__dict__", "eupe.norm", "eupe..norm.weight",
     "eupe.config.hidden_size", "eupe.forward.__globals__", "eupe.norm.weight.data", "head.classifier", "", "."],
)  # fmt: skip
def test_names_of_tensors_are_looked_up_among_parameters(name: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), f"base_model.model.{name}": torch.ones(2, 2)}, file)
    for load in LOADS:
        with pytest.raises(ValueError, match=r"adapter does not fit this .*, which the model does not have\."):
            load(folder)


@BY_FAMILY
@pytest.mark.parametrize("kind", ["lora_A", "lora_B", "head"])
def test_tensors_of_other_ranks_and_values_are_refused(
    family: str, kind: str, tmp_path: Path, bases: dict[str, Path]
) -> None:
    folder = saved_adapter(family, bases[family], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if kind in name and name.endswith(".weight"))
    one = tensors[name]
    wrong = {
        r" is \[\] in it": one.flatten()[0], r" is \[\d+\] in it": one.flatten(),
        r" is \[1, \d+, \d+\] in it": one[None],
        r" is \[\d+, \d+, 1, 1, 1\] in it": one[..., None, None, None], r" is \[\d+, \d+\] in it": one.repeat(2, 2),
        " holds NaN or infinite values": one * float("nan"), r" is of torch\.int8": one.to(torch.int8),
        r" is of torch\.float8_e4m3fn": one.to(torch.float8_e4m3fn), r" is of torch\.complex64": one + 0j,
    }  # fmt: skip
    for message, tensor in wrong.items():
        save_file({**tensors, name: tensor.contiguous()}, file)
        for load in LOADS:
            with pytest.raises(ValueError, match=rf"adapter.*{message}"):
                load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("target_modules", "(([a-z._0-9]+)+)+X"), ("exclude_modules", "(?:.|.)" * 25 + "X"), ("target_modules", ".*" * 9),
     ("rank_pattern", {"(a|a)*X": 2}), ("alpha_pattern", {"(?P<n>.+)+(?P=n)X": 1}), ("modules_to_save", ["(.*)*X"]),
     ("layers_pattern", "(.+)+X"), ("target_modules", "("), ("megatron_config", {"a": 1}),
     ("layer_replication", [[0, 9]]),
     ("r", 10**9), ("r", "2"), ("r", True), ("r", None), ("lora_alpha", "**16**"), ("lora_alpha", float("nan")),
     ("peft_type", "IA3"), ("bias", []), ("use_dora", 1), ("lora_dropout", 2), ("base_model_name_or_path", ["a"])],
)  # fmt: skip
def test_fields_are_checked_before_peft_reads_them(
    field: str, value: object, tmp_path: Path, bases: dict[str, Path]
) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    for load in LOADS:
        with pytest.raises(ValueError, match=rf"adapter_config\.json(: '{field}' must be| has no '{field}')"):
            load(folder)


def test_rank_that_the_weights_do_not_have_is_not_built(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank_pattern": {"q_proj": 1_000_000}}))
    for load in LOADS:
        with pytest.raises(ValueError, match=r"says rank 1000000, and its weights have at most 2"):
            load(folder)


def test_patterns_that_people_write_are_read() -> None:
    model = EupeForImageClassification(tiny_config("vit"))
    patterns = (
        lora_config(model, r=2).target_modules, r".*\.(q_proj|v_proj)", r".*\.layers\.[0-5]\..*q_proj", "all-linear",
        r"(?:.*\.)?language_model\..*\.(?:q_proj|o_proj)|(?:model\.vision_tower\.)encoder\.(?:layers|stages)\..*\.(?:q_proj)",
        r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$", r"model\.layers\.\d+\.(mlp|attn)\.(up|down)_proj",
    )  # fmt: skip
    for pattern in patterns:
        assert is_quick(pattern), pattern
    name = "model.vision_tower.encoder.layers.10.attention.q_proj"
    slowest = ".*.*.*(e|n|en|co|ncod)(l|la|lay|ay)X"
    assert is_quick(slowest)
    start = time.perf_counter()
    assert re.fullmatch(slowest, name) is None
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    "kind", [{"bias": "lora_only"}, {"rank_pattern": {"q_proj": 4}}, {"lora_bias": True}], ids=str
)
def test_own_configurations_of_peft_load(kind: dict, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases["vit"], num_labels=3)
    wrapped = trained(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], modules_to_save=["head"], **kind)
    )
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(answer(EupeForImageClassification.from_pretrained(tmp_path, num_labels=3)), answer(wrapped))
