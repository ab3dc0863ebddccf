# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The config.json beside weights: nothing in it is believed against them, and nothing in it ends in a traceback."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, NAMES, assert_same_bits, random_state, tiny_config
from safetensors.torch import load_file

from eupe_hf import (
    CheckpointError,
    EupeBackbone,
    EupeConfig,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeModel,
    convert_checkpoint,
    variant_config,
)
from eupe_hf.conversion.checkpoints import Checkpoint, load_checkpoint, save_layout, save_model_folder
from eupe_hf.conversion.configurations import difference_to
from eupe_hf.models.configuration_eupe_sizes import check_sizes
from eupe_hf.variants import VARIANTS


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A tiny encoder of each family, as a folder."""
    config = tiny_config(request.param)
    return save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "source")


@pytest.fixture(scope="module")
def eupe_t(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of eupe-t's size in this package's layout."""
    config = variant_config("eupe-t")
    path = tmp_path_factory.mktemp("t") / "eupe-t"
    return save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), path)


def edit(folder: Path, **values: Any) -> Path:
    """Change fields of a configuration; `...` removes one."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    return folder


def refused(call: Callable[[], object], what: str = "config.json", error: type = CheckpointError) -> str:
    """The sentence with which a call refuses what it names, within two seconds."""
    start = time.process_time()
    with pytest.raises(error) as caught:
        call()
    assert time.process_time() - start < 2
    assert what in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


# ---- sizes ----

SIZES = {
    "vit": {
        "num_hidden_layers": [1, 3, 1000, 100_000, 10**12], "hidden_size": [64, 10**12],
        "intermediate_size": [64, 10**12], "num_register_tokens": [0, 10**12], "patch_size": [8, 10**12],
        "num_channels": [1, 10**12],
    },
    "convnext": {
        "depths": [[1, 1, 1, 1], [1, 1, 2], [100_000] * 4, [10**12], [1] * 100_000],
        "hidden_sizes": [[8, 16, 24, 64], [10**12] * 4], "num_channels": [1, 10**12],
    },
}  # fmt: skip


def test_sizes_that_are_not_those_of_the_weights_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    family = EupeConfig.from_pretrained(folder).backbone_type
    text = (folder / "config.json").read_text()
    for name, values in SIZES[family].items():
        for value in values:
            (folder / "config.json").write_text(text)
            derived = {"hidden_size": ..., "patch_size": ...} if family == "convnext" else {}
            edit(folder, out_features=..., out_indices=..., **derived, **{name: value})
            there = str(json.loads(text)[name])
            found = refused(lambda: convert_checkpoint(folder, tmp_path / "ours"))
            assert f"{name} is {str(value)[:80]}" in found and f"and the weights have {there}" in found
            refused(lambda: EupeModel.from_pretrained(folder), "", ValueError)
    assert not (tmp_path / "ours").exists()


def test_fewer_blocks_than_the_weights_are_refused_by_every_class(eupe_t: Path, tmp_path: Path) -> None:
    half = edit(shutil.copytree(eupe_t, tmp_path / "half"), num_hidden_layers=6, out_features=..., out_indices=...)
    for cls in (EupeModel, EupeBackbone, EupeForImageClassification, EupeForMultiTask):
        found = refused(lambda cls=cls: cls.from_pretrained(half), "contradict its configuration")
        assert "there are 12 blocks, and num_hidden_layers is 6" in found


def test_sizes_of_a_task_model_and_of_several_tasks_are_checked(tmp_path: Path) -> None:
    EupeForImageClassification(tiny_config("vit", num_labels=3)).save_pretrained(tmp_path / "one")
    EupeForMultiTask.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "several")
    for name, cls in (("one", EupeForImageClassification), ("several", EupeForMultiTask)):
        cls.from_pretrained(tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(file.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 5'))
        found = refused(lambda cls=cls, name=name: cls.from_pretrained(tmp_path / name))
        assert "num_hidden_layers is 5, and the weights have 2" in found


@pytest.mark.parametrize("name", NAMES)
def test_published_sizes_are_those_of_their_tensors(name: str) -> None:
    config = variant_config(name)
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in EupeModel(config).state_dict().items()}
    check_sizes(config.to_dict(), shapes, "config.json")
    check_sizes(VARIANTS[name].config, shapes, "config.json")  # the rest are defaults of the family
    for field in ("num_hidden_layers", "intermediate_size", "depths"):
        if (value := getattr(config, field, None)) and field in config.to_dict():
            wrong = [*value[:-1], value[-1] + 1] if isinstance(value, list) else value + 1
            with pytest.raises(CheckpointError, match=f"config.json: {field} is "):
                check_sizes({**config.to_dict(), field: wrong}, shapes, "config.json")


def test_number_of_labels_has_a_bound(folder: Path, tmp_path: Path) -> None:
    edit(folder, num_labels=10_000_000)
    found = refused(lambda: convert_checkpoint(folder, tmp_path / "ours"))
    assert "num_labels must be at most 1,000,000, got 10000000" in found
    with pytest.raises(ValueError, match="num_labels must be at most 1,000,000"):
        EupeModel.from_pretrained(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# ---- fields of other types, and fields that are not a configuration's ----

REFUSED = {
    "id2label": [5, "x", [1], {"0": 3}], "label2id": [5, [1], {"a": "b"}], "num_labels": ["x", 1.5, True, 0, -1],
    "architectures": [5, "EupeModel", [5], {}], "out_indices": [5, "x", [99], ["a"]], "out_features": [5, ["x"]],
    "problem_type": [5, ["x"]], "model_type": [5, []], "backbone_type": ["x", 5, []], "hidden_act": [5, "x"],
    "layer_norm_eps": ["x", -1.0, 1e400], "detection_strides": [5, ["a"]], "image_size": ["x", 0, 10**12],
    "quantization_config": [5, "x", {}, {"quant_method": "bitsandbytes", "load_in_8bit": True}],
}  # fmt: skip
PASSED_OVER = {
    "dtype": [5, [1], "float99", {"a": 1}], "torch_dtype": [5, "float99"], "auto_map": [5, "x", [1], {"AutoModel": 5}],
    "attn_implementation": [5, "x", []], "_attn_implementation": [5, "x"], "rope_parameters": [5, "x", {"a": 1}],
    "to_dict": [5], "save_pretrained": [1], "output_attentions": [True, 5], "output_hidden_states": [5, "x"],
    "_name_or_path": [5, {}], "name_or_path": [5], "base_model_tp_plan": [5], "sub_configs": [{}, 5],
    "attribute_map": [5], "__class__": [5], "__dict__": [5], "stage_names": [5], "unknown": [5, {"a": [1]}],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_field_of_another_type_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    config = tiny_config("vit")
    source = save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "source")
    for value in REFUSED[name]:
        edit(source, **{name: value})
        assert name.removeprefix("out_") in refused(lambda: convert_checkpoint(source, tmp_path / "ours"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", PASSED_OVER)
def test_field_that_belongs_to_no_encoder_does_not_come_along(name: str, tmp_path: Path) -> None:
    config = tiny_config("vit")
    state = random_state(config)
    source = save_model_folder(Checkpoint(state, config, "eupe", None, {}), tmp_path / "source")
    saved = json.loads((source / "config.json").read_text())
    for value in PASSED_OVER[name]:
        edit(source, **{name: value})
        done = convert_checkpoint(source, tmp_path / "ours")
        assert_same_bits(EupeModel.from_pretrained(done.output).state_dict(), state)
        assert json.loads((done.output / "config.json").read_text()) == saved


def test_settings_of_a_head_and_its_labels_come_along(tmp_path: Path) -> None:
    labels = {0: "cat", 1: "dog", 2: "Käse"}
    config = tiny_config("vit", id2label=labels, out_indices=[1, 2], problem_type="regression", drop_path_rate=0.1)
    save_model_folder(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "source")
    found = EupeConfig.from_pretrained(convert_checkpoint(tmp_path / "source", tmp_path / "ours").output)
    assert found.id2label == labels and found.problem_type == "regression"
    assert found.out_indices == [1, 2] and found.drop_path_rate == 0.1


@pytest.mark.parametrize("depth", [40, 900, 1000, 100_000])
def test_deep_json_is_refused(depth: int, folder: Path, tmp_path: Path) -> None:
    text = '{"model_type": "eupe", "a": ' + "[" * depth + "]" * depth + "}"
    (folder / "config.json").write_text(text)
    assert "nests its values too deep" in refused(lambda: convert_checkpoint(folder, tmp_path / "ours"))


# ---- published models ----

OTHERS = {
    "num_attention_heads": 1, "rope_theta": 50.0, "layer_norm_eps": 1e-6, "hidden_act": "relu",
    "rope_periods": [1.0] * 16,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_named_variant_has_its_published_fields(name: str, eupe_t: Path, tmp_path: Path) -> None:
    source = edit(shutil.copytree(eupe_t, tmp_path / "source"), **{name: OTHERS[name]})
    with pytest.raises(CheckpointError, match=r"source is not eupe-t: its .* and should be"):
        convert_checkpoint(source, tmp_path / "ours", variant="eupe-t")
    assert not (tmp_path / "ours").exists()
    done = convert_checkpoint(source, tmp_path / "ours")  # under no name it is what its configuration says
    assert done.source.variant is None
    assert "an encoder of the size of eupe-t, but its " in done.notes[0]
    assert getattr(EupeConfig.from_pretrained(done.output), name) == OTHERS[name]


def test_fields_that_change_no_feature_are_free(eupe_t: Path, tmp_path: Path) -> None:
    free = {
        "image_size": 384,
        "drop_path_rate": 0.2,
        "pos_embed_rescale": None,
        "out_indices": [3, 12],
        "out_features": ...,
    }
    source = edit(shutil.copytree(eupe_t, tmp_path / "source"), **free)
    assert load_checkpoint(source, "eupe-t").variant is VARIANTS["eupe-t"]


@pytest.mark.parametrize("name", NAMES)
def test_each_published_configuration_differs_from_the_others_alone(name: str) -> None:
    for other, variant in VARIANTS.items():
        assert (difference_to(variant, variant_config(name)) is None) == (other == name)


def test_rounded_periods_are_those_of_the_model() -> None:
    config = variant_config("eupe-s")
    periods = 100.0 ** (2 * torch.arange(16) / 32)
    rounded = EupeConfig(**{**config.to_dict(), "rope_periods": periods.bfloat16().float().tolist()})
    assert difference_to(VARIANTS["eupe-s"], rounded) is None
    other = EupeConfig(**{**config.to_dict(), "rope_periods": (periods * 1.05).tolist()})
    assert "rotary periods are" in difference_to(VARIANTS["eupe-s"], other)


@pytest.mark.parametrize("name", ["eupe-t", "eupe-convnext-t"])
def test_dinov3_configuration_that_makes_another_encoder_is_refused(name: str, tmp_path: Path) -> None:
    config = variant_config(name)
    folder = save_layout(Checkpoint(random_state(config), config, "eupe", None, {}), tmp_path / "dinov3", "dinov3")
    assert load_checkpoint(folder, name).variant is VARIANTS[name]
    text = (folder / "config.json").read_text()
    others = {"layer_norm_eps": 1e-3, "hidden_act": "relu"}
    others |= {"rope_theta": 50.0, "num_attention_heads": 6} if name == "eupe-t" else {"depths": [3, 3, 9, 2]}
    for field, value in others.items():
        (folder / "config.json").write_text(text)
        edit(folder, **{field: value})
        found = refused(lambda: load_checkpoint(folder))
        assert "contradicts the weights beside it" in found and f"its {field} is {value}" in found
    (folder / "config.json").unlink()
    assert load_checkpoint(folder).variant is VARIANTS[name]


def test_damaged_header_is_refused_before_a_model_is_built(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    for damage in (content[:-1], content[:100], b""):
        file.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"model\.safetensors .*truncated or damaged: download it again"):
            EupeModel.from_pretrained(folder)
    file.write_bytes(content)
    assert_same_bits(EupeModel.from_pretrained(folder).state_dict(), load_file(file))
