# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""`from_pretrained` believes neither the configuration against the weights, nor numbers that are none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from modeling_common import FAMILIES, tiny_config
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
)
from vlm_common import make_vlm

from eupe_hf import (
    EupeBackbone,
    EupeForDepthEstimation,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForObjectDetection,
    EupeForSegmentation,
    EupeLlavaForConditionalGeneration,
    EupeLlavaModel,
    EupeModel,
    EupePyramidBackbone,
)
from eupe_hf.models.configuration_eupe_multitask import EupeMultiTaskConfig
from eupe_hf.models.configuration_eupe_pyramid import EupePyramidConfig


both_families = pytest.mark.parametrize("family", FAMILIES)
SINGLE = [
    EupeModel, EupeBackbone, EupeForImageClassification, EupeForSegmentation, EupeForDepthEstimation,
    EupeForObjectDetection, EupePyramidBackbone, EupeForMultiTask,
]  # fmt: skip
# a block that is not the last one, and the field that counts blocks
BLOCK = {"vit": ("encoder.layers.2.", "num_hidden_layers"), "convnext": ("encoder.stages.2.layers.1.", "depths")}
NUMBERS_OF = {
    "vit": "there are 3 blocks, and num_hidden_layers is 2",
    "convnext": "2 blocks in stage 2, and depths is",
}
FEWER = {"vit": {"num_hidden_layers": 2}, "convnext": {"depths": [1, 1, 1, 1]}}
MORE = {"vit": {"num_hidden_layers": 4}, "convnext": {"depths": [1, 1, 3, 1]}}
OTHER = {"vit": {"hidden_size": 48}, "convnext": {"hidden_sizes": [8, 12, 16, 24], "hidden_size": 24}}


def save(cls: type, family: str, folder: Path, **fields: Any) -> PreTrainedModel:
    config = tiny_config(family, **fields)
    if cls is EupePyramidBackbone:
        strides = [8, 16, 32] if family == "convnext" else [8, 16]
        config = EupePyramidConfig(encoder_config=config, strides=strides, hidden_size=8)
    elif cls is EupeForMultiTask:
        heads = {"parts": {"task": "segmentation", "num_labels": 2}, "far": {"task": "depth"}}
        config = EupeMultiTaskConfig(encoder_config=config, heads=heads)
    torch.manual_seed(0)
    model = cls(config).eval()
    model.save_pretrained(folder)
    return model


def configure(folder: Path, **fields: Any) -> None:
    """Change the encoder's fields in config.json; what follows from the number of blocks is left out."""
    values = json.loads((folder / "config.json").read_text())
    encoder = values.get("encoder_config") or values.get("vision_config") or values
    for part in (encoder, *values.get("heads", {}).values()):
        for derived in ("out_features", "out_indices"):
            part.pop(derived, None)
    encoder.update(fields)
    (folder / "config.json").write_text(json.dumps(values))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def find(tensors: dict[str, torch.Tensor], part: str) -> str:
    return next(key for key in sorted(tensors) if part in key)


# ---- the configuration against the weights ----


@both_families
@pytest.mark.parametrize("cls", SINGLE, ids=lambda cls: cls.__name__)
def test_more_blocks_than_the_configuration_has_are_refused(family: str, cls: type, tmp_path: Path, caplog) -> None:
    save(cls, family, tmp_path)
    configure(tmp_path, **FEWER[family])
    with pytest.raises(ValueError, match=rf"contradict its configuration: .*{BLOCK[family][0]}.*{NUMBERS_OF[family]}"):
        cls.from_pretrained(tmp_path)
    assert "LOAD REPORT" not in caplog.text
    loaded, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert info["unexpected_keys"] and isinstance(loaded, cls)
    configure(tmp_path, **MORE[family])
    with pytest.raises(ValueError, match=r"lacks .* weights of the encoder, among .*its configuration is another's"):
        cls.from_pretrained(tmp_path)


@both_families
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForImageClassification, AutoModelForSemanticSegmentation])
def test_auto_classes_refuse_them_too(family: str, auto: type, tmp_path: Path) -> None:
    save(EupeForSegmentation, family, tmp_path)
    configure(tmp_path, **FEWER[family])
    with pytest.raises(ValueError, match=f"contradict its configuration: .*{BLOCK[family][1]} is"):
        auto.from_pretrained(str(tmp_path))


@both_families
@pytest.mark.parametrize("cls", SINGLE, ids=lambda cls: cls.__name__)
def test_other_widths_are_refused_with_both_shapes(family: str, cls: type, tmp_path: Path, caplog) -> None:
    save(cls, family, tmp_path)
    configure(tmp_path, **OTHER[family])
    with pytest.raises(
        ValueError, match=r"contradict its configuration: \S+ is \[.*\] in the weights, and \["
    ) as caught:
        cls.from_pretrained(tmp_path)
    assert isinstance(caught.value, RuntimeError)  # as in transformers
    assert "LOAD REPORT" not in caplog.text
    # a new head is fine, a new encoder is not
    with pytest.raises(ValueError, match=r"lacks .* weights of the encoder"):
        cls.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


@both_families
def test_head_of_another_size_is_made_new_on_request_alone(family: str, tmp_path: Path) -> None:
    saved = save(EupeForImageClassification, family, tmp_path, num_labels=3)
    with pytest.raises(RuntimeError, match=r"head.classifier.bias is \[3\] in the weights, and \[5\] by the conf"):
        EupeForImageClassification.from_pretrained(tmp_path, num_labels=5)
    loaded = EupeForImageClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.head.classifier.out_features == 5
    assert all(torch.equal(a, b) for a, b in zip(loaded.eupe.parameters(), saved.eupe.parameters(), strict=True))


@both_families
def test_extra_weight_is_refused_and_the_head_of_another_task_is_not(family: str, tmp_path: Path) -> None:
    save(EupeForSegmentation, family, tmp_path)
    assert isinstance(EupeModel.from_pretrained(tmp_path), EupeModel)  # integers of its batch norm, too
    assert isinstance(EupeForImageClassification.from_pretrained(tmp_path), EupeForImageClassification)
    rewrite(tmp_path, lambda tensors: tensors.update({"eupe.norm.scale": torch.zeros(3)}))
    for cls in (EupeModel, EupeForSegmentation):
        with pytest.raises(ValueError, match=r"1 of them have no place in it, among them \S*norm.scale\. Correct"):
            cls.from_pretrained(tmp_path)


# ---- numbers ----


def _spoil(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        def spoil(tensors: dict[str, torch.Tensor]) -> None:
            name = find(tensors, key)
            tensors[name] = change(tensors[name])

        rewrite(folder, spoil)

    return apply


def _with_nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[-2:] = torch.tensor([float("nan"), float("inf")])
    return tensor


NUMBERS = {
    "NaN": (_with_nan, "holds 2 values that are NaN or infinite"),
    "integers": (lambda tensor: (100 * tensor).to(torch.int32), "holds numbers of type I32"),
    "float8": (lambda tensor: tensor.to(torch.float8_e4m3fn), "holds numbers of type F8_E4M3"),
    "booleans": (lambda tensor: tensor > 0, "holds numbers of type BOOL"),
}


@both_families
@pytest.mark.parametrize("part", ["encoder.", "head"])
@pytest.mark.parametrize("kind", NUMBERS)
def test_what_is_no_finite_number_is_refused(family: str, kind: str, part: str, tmp_path: Path) -> None:
    change, message = NUMBERS[kind]
    for cls in (EupeForSegmentation, EupeForMultiTask):
        folder = tmp_path / cls.__name__
        save(cls, family, folder)
        _spoil(part, change)(folder)
        for options in ({}, {"output_loading_info": True}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}):
            with pytest.raises(ValueError, match=rf"{part}\S* of {folder} {message}"):
                cls.from_pretrained(folder, **options)
    if part == "encoder.":
        with pytest.raises(ValueError, match=message):
            EupeModel.from_pretrained(folder.with_name("EupeForSegmentation"))


@both_families
def test_numbers_in_memory_and_in_torch_files_are_checked(family: str, tmp_path: Path) -> None:
    model = save(EupeModel, family, tmp_path)
    state = model.state_dict()
    whole = EupeModel.from_pretrained(None, config=model.config, state_dict=state)
    assert torch.equal(whole.norm.weight, state["norm.weight"])
    (tmp_path / "model.safetensors").unlink()
    for value, message in (
        (torch.full_like(state["norm.bias"], float("nan")), "NaN"),
        (state["norm.bias"].int(), "int"),
    ):
        spoilt = {**state, "norm.bias": value}
        with pytest.raises(ValueError, match=f"norm.bias of the state dict holds .*{message}"):
            EupeModel.from_pretrained(None, config=model.config, state_dict=spoilt)
        torch.save(spoilt, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=f"norm.bias of {tmp_path} holds .*{message}"):
            EupeModel.from_pretrained(tmp_path)


def test_large_finite_numbers_load(tmp_path: Path) -> None:
    model = save(EupeModel, "vit", tmp_path, hidden_size=64)
    with torch.no_grad():
        model.encoder.layers[0].mlp.up_proj.weight.fill_(60_000.0)  # their sum is beyond float16
    model.half().save_pretrained(tmp_path)
    assert EupeModel.from_pretrained(tmp_path).encoder.layers[0].mlp.up_proj.weight[0, 0] == 60_000


@both_families
def test_half_precision_and_shards_load_as_before(family: str, tmp_path: Path) -> None:
    model = save(EupeModel, family, tmp_path / "whole")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model.to(dtype).save_pretrained(tmp_path / "saved", max_shard_size="20KB")
        assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
        loaded = EupeModel.from_pretrained(tmp_path / "saved", dtype="auto")
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


@both_families
def test_truncated_file_is_one_sentence(family: str, tmp_path: Path) -> None:
    save(EupeModel, family, tmp_path)
    for with_dtype in (True, False):
        values = json.loads((tmp_path / "config.json").read_text())
        if not with_dtype:
            values.pop("dtype")
        (tmp_path / "config.json").write_text(json.dumps(values))
        os.truncate(tmp_path / "model.safetensors", 50_000)
        with pytest.raises(ValueError, match=r"cut short|truncated"):
            EupeModel.from_pretrained(tmp_path)


# ---- language models with a tower ----


@both_families
def test_vlm_is_checked_as_a_whole(family: str, tmp_path: Path) -> None:
    model, _ = make_vlm(family)
    model.save_pretrained(tmp_path)
    for cls in (EupeLlavaForConditionalGeneration, EupeLlavaModel):
        assert isinstance(cls.from_pretrained(tmp_path), cls)
    good = (tmp_path / "model.safetensors").read_bytes()
    for part in ("vision_tower.encoder.", "multi_modal_projector.", "language_model.layers.1."):
        for change, message in NUMBERS.values():
            _spoil(part, change)(tmp_path)
            with pytest.raises(ValueError, match=message):
                EupeLlavaForConditionalGeneration.from_pretrained(tmp_path)
            (tmp_path / "model.safetensors").write_bytes(good)
    values = json.loads((tmp_path / "config.json").read_text())
    values["text_config"]["num_hidden_layers"] = 1
    values["text_config"].pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"there are 2 blocks, and num_hidden_layers is 1"):
        EupeLlavaForConditionalGeneration.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    configure(tmp_path, **{"vit": {"num_hidden_layers": 2}, "convnext": {"depths": [1, 1]}}[family])
    with pytest.raises(ValueError, match=r"contradict its configuration: .* blocks"):
        EupeLlavaForConditionalGeneration.from_pretrained(tmp_path)
    os.truncate(tmp_path / "model.safetensors", 50_000)
    with pytest.raises(ValueError, match=r"cut short|truncated"):
        EupeLlavaForConditionalGeneration.from_pretrained(tmp_path)


# ---- files of one folder against each other ----


def shard(folder: Path, change: Callable[[dict[str, str], list[dict[str, torch.Tensor]]], Any]) -> None:
    """Write the weights in two files with an index, changed."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, keys = ["a.safetensors", "b.safetensors"], sorted(tensors)
    parts = [{key: tensors[key] for key in keys[::2]}, {key: tensors[key] for key in keys[1::2]}]
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    change(weight_map, parts)
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@both_families
@pytest.mark.parametrize("cls", SINGLE, ids=lambda cls: cls.__name__)
def test_key_in_two_shards_is_refused(family: str, cls: type, tmp_path: Path) -> None:
    save(cls, family, tmp_path)
    shard(tmp_path, lambda _, parts: parts[1].update({key: t + 1 for key, t in list(parts[0].items())[:1]}))
    with pytest.raises(ValueError, match=r"b.safetensors holds '.*', and so does another file"):
        cls.from_pretrained(tmp_path)


def test_vlm_with_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    model, _ = make_vlm("vit")
    model.save_pretrained(tmp_path)
    shard(tmp_path, lambda _, parts: parts[1].update({key: t + 1 for key, t in list(parts[0].items())[:1]}))
    with pytest.raises(ValueError, match=r"b.safetensors holds '.*', and so does another file"):
        EupeLlavaForConditionalGeneration.from_pretrained(tmp_path)


def test_index_with_a_key_that_no_file_has_is_refused(tmp_path: Path) -> None:
    save(EupeModel, "vit", tmp_path)
    shard(tmp_path, lambda weight_map, _: weight_map.update({"one.more": "a.safetensors"}))
    with pytest.raises(ValueError, match=r"index.json names 'one.more' in a.safetensors, which lacks it"):
        EupeModel.from_pretrained(tmp_path)


def test_index_without_tensors_is_refused(tmp_path: Path) -> None:
    save(EupeModel, "vit", tmp_path)
    shard(tmp_path, lambda weight_map, _: weight_map.clear())
    with pytest.raises(ValueError, match=r"index.json names no tensors"):
        EupeModel.from_pretrained(tmp_path)


@both_families
@pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_whole_file_of_other_numbers_is_refused(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save(EupeModel, family, tmp_path)
    configure(tmp_path, dtype=None)  # then transformers takes that of the weights
    rewrite(tmp_path, lambda tensors: tensors.update({key: t.to(dtype) for key, t in tensors.items()}))
    for cls in (EupeModel, EupeForImageClassification):
        with pytest.raises(ValueError, match=rf"of {tmp_path} holds numbers of type"):
            cls.from_pretrained(tmp_path)


@both_families
@pytest.mark.parametrize("cls", [*SINGLE, EupeLlavaForConditionalGeneration], ids=lambda cls: cls.__name__)
def test_encoder_that_is_far_larger_than_its_weights_is_not_built(family: str, cls: type, tmp_path: Path) -> None:
    if cls is EupeLlavaForConditionalGeneration:
        make_vlm(family)[0].save_pretrained(tmp_path)
    else:
        save(cls, family, tmp_path)
    width = 32_768
    configure(tmp_path, **{"vit": {"hidden_size": width}, "convnext": {"hidden_sizes": [width] * 4}}[family])
    with pytest.raises(ValueError, match=r"config.json: hidden_sizes? is .*32768.*, and the weights have"):
        cls.from_pretrained(tmp_path)
