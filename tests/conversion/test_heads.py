# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Heads of upstream's evaluation code: read from every wrapping, put on an encoder, written back, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, assert_same_bits, random_state, tiny_config
from safetensors.torch import load_file, save_file

from eupe_hf import CheckpointError, EupeForDepthEstimation, EupeForSegmentation, convert_head
from eupe_hf.conversion.checkpoints import PROJECTOR_FILE, Checkpoint, load_checkpoint, save_model_folder
from eupe_hf.conversion.layouts import StateDict
from eupe_hf.conversion.upstream_heads import TASKS, load_head, raw_head, save_head


CLASSES = {"segmentation": EupeForSegmentation, "depth": EupeForDepthEstimation}
CONVOLUTION = {"segmentation": "conv", "depth": "conv_depth"}
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def raw_state(task: str, channels: int, outputs: int = 7) -> StateDict:
    """A raw head in which every value matters."""
    generator = torch.Generator().manual_seed(channels)
    state = {f"batchnorm_layer.{part}": 1 + torch.rand(channels, generator=generator) for part in BATCH_NORM}
    state["batchnorm_layer.num_batches_tracked"] = torch.tensor(100)
    state[f"{CONVOLUTION[task]}.weight"] = torch.randn(outputs, channels, 1, 1, generator=generator)
    state[f"{CONVOLUTION[task]}.bias"] = torch.randn(outputs, generator=generator)
    return state


def encoder(family: str = "vit", **overrides: Any) -> Checkpoint:
    """A tiny ViT of width 32 with 4 blocks, or a ConvNeXt of widths 8, 16, 24, 32."""
    fields = {"num_hidden_layers": 4} if family == "vit" else {}
    config = tiny_config(family, **{**fields, **overrides})
    return Checkpoint(random_state(config), config, "eupe", None, {})


def write(state: Any, folder: Path) -> Path:
    torch.save(state, folder / "head.pt")
    return folder / "head.pt"


WRAPPINGS: dict[str, Callable[[StateDict], Any]] = {
    "flat": lambda state: state,
    "as the evaluation code saves depth heads": lambda state: {"model": state, "optimizer": {"lr": 1}, "iteration": 9},
    "as it saves segmentation heads": lambda state: {
        "model": {f"segmentation_model.1.{key}": tensor for key, tensor in state.items()}, "optimizer": {},
    },
    "module.": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "both": lambda state: {"model": {f"module.segmentation_model.1.{key}": t for key, t in state.items()}},
    "the other way round": lambda state: {f"segmentation_model.1.module.{key}": t for key, t in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("task", TASKS)
def test_every_wrapping_gives_the_same_head(task: str, wrap: Callable, tmp_path: Path) -> None:
    state = raw_state(task, 64)
    loaded = load_head(write(wrap(state), tmp_path), task, encoder(), [1, 3])
    assert_same_bits(raw_head(_saved(loaded, tmp_path / "ours"))[0], state)
    assert loaded.config.out_indices == [2, 4]
    outputs = {"segmentation": loaded.config.num_labels, "depth": loaded.config.num_depth_bins}
    assert outputs[task] == 7


def _saved(loaded: Checkpoint, folder: Path) -> Checkpoint:
    return load_checkpoint(save_model_folder(loaded, folder))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", TASKS)
def test_folder_loads_and_computes_the_head_on_the_layers(family: str, task: str, tmp_path: Path) -> None:
    source, layers = encoder(family), [0, 3]
    state = raw_state(task, 64 if family == "vit" else 40)
    folder = save_model_folder(load_head(write(state, tmp_path), task, source, layers), tmp_path / "ours")
    model = CLASSES[task].from_pretrained(folder)
    assert_same_bits(model.eupe.state_dict(), source.state)
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        outputs = model(pixel_values)
        maps = model.eupe(pixel_values).feature_maps
        size = maps[0].shape[2:]
        joined = torch.cat([torch.nn.functional.interpolate(m, size, mode="bilinear") for m in maps], dim=1)
        weight, bias, mean, variance = (state[f"batchnorm_layer.{part}"].view(-1, 1, 1) for part in BATCH_NORM)
        normed = (joined - mean) / torch.sqrt(variance + 1e-5) * weight + bias
        convolution = CONVOLUTION[task]
        scores = torch.einsum("bchw,kc->bkhw", normed, state[f"{convolution}.weight"][..., 0, 0])
        scores += state[f"{convolution}.bias"].view(-1, 1, 1)
    if task == "segmentation":
        torch.testing.assert_close(outputs.logits, scores, atol=2e-5, rtol=1e-5)
    else:
        shares = (scores.relu() + 0.1) / (scores.relu() + 0.1).sum(1, keepdim=True)
        depth = torch.einsum("bkhw,k->bhw", shares, torch.linspace(0.001, 10, 7))
        torch.testing.assert_close(outputs.predicted_depth, depth, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("task", TASKS)
def test_way_back_is_bit_equal_and_wrapped_as_upstream_does(task: str, suffix: str, tmp_path: Path) -> None:
    state = raw_state(task, 32)
    saved = _saved(load_head(write(state, tmp_path), task, encoder()), tmp_path / "ours")
    assert_same_bits(saved.state, encoder().state)
    file = save_head(saved, tmp_path / f"back{suffix}")
    assert_same_bits(raw_head(_saved(load_head(file, task, encoder()), tmp_path / "again"))[0], state)
    if suffix == ".safetensors":
        assert_same_bits(load_file(file), state)
    else:
        prefix = {"segmentation": "segmentation_model.1.", "depth": ""}[task]
        expected = {prefix + key: tensor for key, tensor in state.items()}
        assert_same_bits(torch.load(file, weights_only=True)["model"], expected)


def test_convert_head_does_it_in_one_call_and_keeps_projectors(tmp_path: Path) -> None:
    source = save_model_folder(encoder(), tmp_path / "encoder")
    projectors = {"projectors.bias": torch.arange(3.0)}
    save_file(projectors, source / PROJECTOR_FILE)
    state = raw_state("depth", 32)
    options = {"task": "depth", "layers": [1], "keep_projectors": True}
    folder = convert_head(source, write(state, tmp_path), tmp_path / "ours", **options).output
    loaded = load_checkpoint(folder)
    assert_same_bits(loaded.projectors, projectors)
    assert_same_bits(raw_head(loaded)[0], state)
    assert loaded.config.out_indices == [2]


def test_a_new_head_takes_the_place_of_another_with_its_class_names(tmp_path: Path) -> None:
    named = encoder(id2label={0: "cup", 1: "spoon"}, out_indices=[1, 2])
    loaded = load_head(write(raw_state("segmentation", 32), tmp_path), "segmentation", named)
    assert loaded.config.out_features == ["stage4"]
    assert loaded.config.id2label == {i: f"LABEL_{i}" for i in range(7)}


# ---- what goes wrong ----


def without(key: str) -> Callable[[StateDict], Any]:
    return lambda state: {name: tensor for name, tensor in state.items() if name != key}


def changed(key: str, value: torch.Tensor) -> Callable[[StateDict], Any]:
    return lambda state: {**state, key: value}


DAMAGED: dict[str, tuple[Callable[[StateDict], Any], str]] = {
    "missing": (without("batchnorm_layer.running_mean"), r"1 missing \('batchnorm_layer.running_mean'\)"),
    "count missing": (without("batchnorm_layer.num_batches_tracked"), r"1 missing \('batchnorm_layer.num_batches_tr"),
    "convolution missing": (without("conv.weight"), r"1 missing \('conv.weight'\)"),
    "unexpected": (changed("conv.scale", torch.ones(1)), r"1 unexpected \('conv.scale'\)"),
    "misshapen norm": (changed("batchnorm_layer.bias", torch.ones(31)), r"'batchnorm_layer.bias' has shape \(31,\)"),
    "misshapen convolution": (changed("conv.weight", torch.ones(7, 32)), r"'conv.weight' has shape \(7, 32\)"),
    "misshapen bias": (changed("conv.bias", torch.ones(6)), r"'conv.bias' has shape \(6,\), expected \(7,\)"),
    "count of floats": (
        changed("batchnorm_layer.num_batches_tracked", torch.ones(())), "must be one whole number, got torch.float32",
    ),
    "not finite": (changed("conv.bias", torch.full((7,), torch.nan)), "'conv.bias' holds 7 values that are NaN"),
    "half precision": (
        lambda state: {k: t.half() if t.is_floating_point() else t for k, t in state.items()},
        r"differ in their number format \(torch.float16, torch.float32\)",
    ),
    "an encoder": (lambda _: encoder().state, r"is not a segmentation head for.*7 missing \('batchnorm_layer"),
    "no tensors": (lambda _: {"iteration": 9}, "holds no state dict"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_head_is_refused_by_name(damage: Callable, message: str, tmp_path: Path) -> None:
    path = write(damage(raw_state("segmentation", 32)), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_head(path, "segmentation", encoder())


def test_file_that_is_cut_short_or_holds_code_is_refused(tmp_path: Path) -> None:
    path = write(raw_state("depth", 32), tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"head.pt \(2,000 bytes\) cannot be read"):
        load_head(path, "depth", encoder())
    torch.save({"model": raw_state("depth", 32), "args": Path()}, path)
    with pytest.raises(CheckpointError, match="which this package never does"):
        load_head(path, "depth", encoder())
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        load_head(tmp_path / "nothing.pt", "depth", encoder())


@pytest.mark.parametrize(("given", "wanted"), [("depth", "segmentation"), ("segmentation", "depth")])
def test_head_of_the_other_task_is_refused(given: str, wanted: str, tmp_path: Path) -> None:
    path = write(raw_state(given, 32), tmp_path)
    with pytest.raises(CheckpointError, match=f"holds a head for {given} .*, not for {wanted} .*: choose the task"):
        load_head(path, wanted, encoder())


CHANNELS = {
    "four of a ViT": ("vit", 128, None, "reads 128 channels; layers 3 of this encoder .* give 32.* 0 1 2 3."),
    "two of a ViT": ("vit", 64, [0, 1, 2], "layers 0 1 2 .* give 96. 2 layers would fit, for example 1 3."),
    "another ViT": ("vit", 48, None, "No choice of its layers gives this number"),
    "more than a ViT has": ("vit", 160, None, "No choice of its layers gives this number"),
    "all of a ConvNeXt": ("convnext", 80, None, "layers 3 .* give 32. Layers 0 1 2 3 would fit."),
    "two of a ConvNeXt": ("convnext", 40, [0], "give 8. Layers 0 3 or 1 2 would fit."),
    "another ConvNeXt": ("convnext", 37, [0], "No choice of its layers gives this number"),
}


@pytest.mark.parametrize(("family", "channels", "layers", "message"), CHANNELS.values(), ids=CHANNELS)
def test_wrong_number_of_channels_names_layers_that_fit(
    family: str, channels: int, layers: list[int] | None, message: str, tmp_path: Path
) -> None:
    path = write(raw_state("depth", channels), tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_head(path, "depth", encoder(family), layers)


@pytest.mark.parametrize("layers", [[4], [-1], [], [2, 1], [1, 1]])
def test_layers_that_are_not_there_are_refused(layers: list[int], tmp_path: Path) -> None:
    path = write(raw_state("depth", 32), tmp_path)
    with pytest.raises(ValueError, match="layers must be blocks of this encoder, from 0 to 3 in ascending order, got"):
        load_head(path, "depth", encoder(), layers)


def test_unknown_task_and_a_single_bin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown task 'detection'; upstream has heads for 'segmentation' and 'dep"):
        load_head(tmp_path / "head.pt", "detection", encoder())
    with pytest.raises(CheckpointError, match="has 1 depth bin"):
        load_head(write(raw_state("depth", 32, outputs=1), tmp_path), "depth", encoder())


def test_model_without_an_upstream_head_has_none_to_write(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="this is an encoder without a head"):
        save_head(_saved_encoder(tmp_path / "encoder"), tmp_path / "head.pt")
    from eupe_hf import EupeForImageClassification

    EupeForImageClassification(tiny_config("vit")).save_pretrained(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="this is EupeForImageClassification"):
        save_head(load_checkpoint(tmp_path / "classifier"), tmp_path / "head.pt")
    assert not (tmp_path / "head.pt").exists()


def _saved_encoder(folder: Path) -> Checkpoint:
    return load_checkpoint(save_model_folder(encoder(), folder))


def test_task_model_with_a_strange_key_is_refused(tmp_path: Path) -> None:
    folder = save_model_folder(
        load_head(write(raw_state("depth", 32), tmp_path), "depth", encoder()), tmp_path / "ours"
    )
    state = load_file(folder / "model.safetensors")
    save_file({**state, "neck.weight": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unexpected \('neck.weight'\)"):
        load_checkpoint(folder)
    del state["head.linear.conv.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"The head lacks 'head.linear.conv.bias'"):
        raw_head(load_checkpoint(folder))
