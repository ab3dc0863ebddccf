# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The comparison of what encoders compute, and the proof that it can fail."""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import (
    FAMILIES,
    GOLDEN,
    build_model,
    golden_path,
    published_state,
    random_state,
    raw_weights,
    requires_shared,
    tiny_config,
)
from safetensors.torch import load_file, save_file
from torch import nn

from eupe_hf import EupeBackbone, EupeModel, variant_config
from eupe_hf.conversion.layouts import StateDict, to_eupe
from eupe_hf.conversion.verification import (
    SIZES,
    Row,
    compare_models,
    compare_tensors,
    compare_with_golden,
    format_table,
    frozen_pixel_values,
)


SMALL = ((1, 64, 64), (2, 70, 50))


def published_model(name: str) -> EupeModel:
    return build_model(*to_eupe(published_state(name), variant_config(name), "raw"))


def tiny_model(family: str, seed: int = 0) -> EupeModel:
    return build_model(random_state(tiny_config(family), seed=seed), tiny_config(family))


def record(model: EupeModel, path: Path, size: tuple[int, int, int] = (1, 64, 96)) -> Path:
    """Outputs of a model in the form of the recorded ones, taken in another way than the comparison takes them."""
    config, name = model.config, "x".join(map(str, size))
    pixel_values = frozen_pixel_values(*size)
    with torch.inference_mode():
        outputs = model(pixel_values, output_hidden_states=True)
    prefix = config.num_prefix_tokens
    patches = outputs.last_hidden_state[:, prefix:]
    golden = {"cls": outputs.pooler_output, "n_patches": torch.tensor([patches.shape[1]])}
    last, steps = patches.shape[1] - 1, min(patches.shape[1], 16) - 1
    golden["patches"] = patches[:, [round(i * last / steps) for i in range(steps + 1)]]
    if prefix:
        golden["registers"] = outputs.last_hidden_state[:, 1:prefix]
    save_file({f"{name}/{key}": tensor.contiguous() for key, tensor in golden.items()}, path)
    return path


# ---- frozen inputs ----


@requires_shared
@pytest.mark.parametrize("size", SIZES)
def test_inputs_are_those_of_the_recording(size: tuple[int, int, int]) -> None:
    assert torch.equal(frozen_pixel_values(*size), raw_weights().pixel_values(*size))


def test_inputs_are_the_same_on_every_machine() -> None:
    first = frozen_pixel_values(1, 64, 96)
    assert (first.shape, first.dtype) == ((1, 3, 64, 96), torch.float32)
    assert torch.equal(first, frozen_pixel_values(1, 64, 96))
    assert first[0, 0, 0, :3].tolist() == pytest.approx([0.22751494, -0.35539347, 0.77611148], abs=1e-7)
    assert frozen_pixel_values(2, 8, 8, num_channels=1).shape == (2, 1, 8, 8)


# ---- against recorded outputs; all six models are compared in test_parity.py ----


@requires_shared
def test_every_kind_of_output_is_compared() -> None:
    rows = compare_with_golden(published_model("eupe-t"), golden_path("eupe-t"))
    outputs = {re.sub(r"\d+x\d+x\d+/|layer\d+/", "", row.name) for row in rows}
    encoder = {"cls", "registers", "patches", "prenorm", "n_patches", "masked/cls", "masked/patches"}
    assert outputs == encoder | {"map", "map_raw", "hw"}
    assert {row.name.split("/")[1] for row in rows if "layer" in row.name} == {f"layer{i}" for i in (2, 5, 8, 11)}


CHANGES = {
    "eps": lambda model: setattr(model.config, "layer_norm_eps", 1e-4),
    "final norm": lambda model: model.norm.bias.add_(1e-2),
    "one bias of the last block": lambda model: model.encoder.layers[11].mlp.down_proj.bias[0].add_(1e-2),
    "register": lambda model: model.encoder.embeddings.register_tokens[0, 3, 0].add_(0.1),
    "periods": lambda model: setattr(model.config, "rope_theta", 101.0),
    "one NaN": lambda model: model.norm.bias[5].fill_(math.nan),
}


@requires_shared
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@torch.no_grad()
def test_any_change_of_the_computation_is_seen(change: Callable[[EupeModel], None]) -> None:
    model = published_model("eupe-t")
    change(model)  # of weights or configuration, from which the comparison builds its models
    rows = compare_with_golden(model, golden_path("eupe-t"))
    assert not all(row.within(1e-4) for row in rows)


@requires_shared
@torch.no_grad()
def test_mask_token_is_seen_by_the_masked_outputs_alone() -> None:
    model = published_model("eupe-t")
    model.encoder.embeddings.mask_token[0, 0, 0] += 0.5
    failed = {row.name for row in compare_with_golden(model, golden_path("eupe-t")) if not row.within(1e-4)}
    assert failed == {"masked/cls", "masked/patches"}


@pytest.mark.parametrize("family", FAMILIES)
def test_model_or_backbone_is_compared_and_left_as_it_was(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    golden = record(model, tmp_path / "golden.safetensors")
    config = tiny_config(family, out_indices=[2], apply_layernorm=False)
    backbone = EupeBackbone(config)
    backbone.load_state_dict(model.state_dict())
    backbone.train()
    for encoder in (model, backbone):
        before = copy.deepcopy(encoder.config.to_dict()), encoder.training
        trained = [parameter.requires_grad for parameter in encoder.parameters()]
        rows = compare_with_golden(encoder, golden)
        assert {row.name.split("/")[1] for row in rows} >= {"cls", "patches", "n_patches"}
        assert all(row.within(1e-6) for row in rows), format_table(rows, 1e-6)
        assert (encoder.config.to_dict(), encoder.training) == before
        assert [parameter.requires_grad for parameter in encoder.parameters()] == trained


def test_backbone_that_gives_token_sequences_is_compared_by_its_maps(tmp_path: Path) -> None:
    config = tiny_config("vit", reshape_hidden_states=False, out_indices=[1])
    model = build_model(random_state(config), config)
    golden = load_file(record(model, tmp_path / "golden.safetensors"))
    golden["1x64x96/layer1/hw"] = torch.tensor([4, 6])
    golden["1x64x96/layer1/map"] = golden["1x64x96/patches"].clone()
    save_file(golden, tmp_path / "golden.safetensors")
    assert all(row.within(1e-6) for row in compare_with_golden(model, tmp_path / "golden.safetensors"))


def test_missing_golden_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No file with recorded outputs at .*nothing\.safetensors"):
        compare_with_golden(tiny_model("vit"), tmp_path / "nothing.safetensors")


def test_other_golden_files_are_refused(tmp_path: Path) -> None:
    model = tiny_model("vit")
    (tmp_path / "text").write_text("1x256x256/cls")
    with pytest.raises(ValueError, match="text is not a safetensors file"):
        compare_with_golden(model, tmp_path / "text")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(ValueError, match=r"weights holds no recorded outputs .*found 'weight'"):
        compare_with_golden(model, tmp_path / "weights")
    save_file({"seg_last/hw": torch.ones(2)}, tmp_path / "heads")
    with pytest.raises(ValueError, match=r"heads holds no recorded outputs .*found none"):
        compare_with_golden(model, tmp_path / "heads")


def test_golden_file_of_another_model_is_refused(tmp_path: Path) -> None:
    narrow = tiny_config("vit", hidden_size=16)
    golden = record(tiny_model("vit"), tmp_path / "vit.safetensors")
    with pytest.raises(
        ValueError, match=r"another model: its '1x64x96/cls' has shape \(1, 32\), this vit of width 16"
    ):
        compare_with_golden(build_model(random_state(narrow), narrow), golden)
    shallow = load_file(golden) | {"1x64x96/layer7/cls": torch.zeros(1, 32)}
    save_file(shallow, tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match=r"'1x64x96/layer7/cls'.*gives no such output"):
        compare_with_golden(tiny_model("vit"), tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match=r"another model: its '1x64x96/\w+' has shape .* this convnext of width 32"):
        compare_with_golden(tiny_model("convnext"), golden)


@requires_shared
def test_recorded_preprocessing_is_not_a_golden_file_of_an_encoder() -> None:
    with pytest.raises(ValueError, match="holds no recorded outputs of an encoder"):
        compare_with_golden(tiny_model("vit"), GOLDEN / "preprocessing.safetensors")


# ---- two against each other ----


@pytest.mark.parametrize("family", FAMILIES)
def test_same_weights_give_no_difference_in_any_output(family: str) -> None:
    model = tiny_model(family)
    rows = compare_models(model, tiny_model(family), SMALL)
    states = model.config.num_stages + 1
    assert len(rows) == len(SMALL) * (2 + states)
    names = {row.name.removeprefix("1x64x64/") for row in rows if row.name.startswith("1x64x64/")}
    expected = {"last_hidden_state", "pooler_output", *(f"hidden_states.{i}" for i in range(states))}
    assert names == expected
    assert {row.max_abs_error for row in rows} == {0.0}
    assert next(row.shape for row in rows if row.name == "2x70x50/pooler_output") == (2, 32)


@torch.no_grad()
def test_difference_is_seen_from_where_it_arises() -> None:
    a, b = tiny_model("vit"), tiny_model("vit")
    b.encoder.layers[1].mlp.down_proj.bias += 0.25
    rows = {row.name: row.max_abs_error for row in compare_models(a, b, SMALL[:1])}
    assert rows["1x64x64/hidden_states.0"] == rows["1x64x64/hidden_states.1"] == 0
    scale = b.encoder.layers[1].layer_scale2.abs().max().item()
    assert rows["1x64x64/hidden_states.2"] == pytest.approx(0.25 * scale, rel=1e-4)
    assert rows["1x64x64/pooler_output"] > 1e-3


def test_models_run_in_eval_mode_and_keep_their_modes() -> None:
    a, b = tiny_model("vit").train(), tiny_model("vit").train()
    b.encoder.layers[0].eval()
    modes = [[module.training for module in model.modules()] for model in (a, b)]
    rows = compare_models(a, b, SMALL[:1])  # in training mode the rotary positions would be scaled at random
    assert {row.max_abs_error for row in rows} == {0.0}
    assert [[module.training for module in model.modules()] for model in (a, b)] == modes


def test_half_precision_is_compared_in_full() -> None:
    rows = compare_models(tiny_model("vit"), tiny_model("vit").bfloat16(), SMALL[:1])
    errors = [row.max_abs_error for row in rows]
    assert 1e-3 < max(errors) < 1


def test_models_of_different_shape_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"last_hidden_state of 1x64x64 is \(1, 21, 32\) in the first and \(1, 4, 32\)"
    ):
        compare_models(tiny_model("vit"), tiny_model("convnext"), SMALL)
    deep = tiny_config("vit", num_hidden_layers=3)
    deep_model = build_model(random_state(deep), deep)
    for pair in ((deep_model, tiny_model("vit")), (tiny_model("vit"), deep_model)):
        with pytest.raises(ValueError, match=r"hidden_states\.3 of 1x64x64 is .*missing"):
            compare_models(*pair, SMALL)


# ---- tensors and tables ----


def test_tensors_are_compared_one_by_one() -> None:
    state: StateDict = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    assert compare_tensors(state, state) == [Row("a", 0.0, (2, 3)), Row("b", 0.0, (2,))]
    changed = {**state, "b": torch.tensor([1.0, 1.5])}
    assert compare_tensors(state, changed)[1] == Row("b", 0.5, (2,))
    broken = {**state, "b": torch.tensor([1.0, math.nan])}
    assert math.isnan(compare_tensors(state, broken)[1].max_abs_error)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "'a' should be .* and is absent"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "'b' should be absent"),
        ({"a": torch.zeros(3)}, r"'a' should be \(\(2,\), torch\.float32\) and is \(\(3,\)"),
        ({"a": torch.zeros(2).half()}, r"'a' should be .*float32\) and is .*float16"),
    ],
)
def test_other_tensors_are_refused_by_name(found: StateDict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_tensors({"a": torch.zeros(2)}, found)


def test_nan_is_never_within_the_tolerance() -> None:
    assert Row("x", 1e-5, (1,)).within(1e-5)
    assert Row("x", 0.0, (1,)).within(0)
    assert not Row("x", 1.1e-5, (1,)).within(1e-5)
    for tolerance in (1e-5, math.inf):
        assert not Row("x", math.nan, (1,)).within(tolerance)


@torch.no_grad()
def test_nan_in_both_models_is_an_error() -> None:
    a, b = tiny_model("convnext"), tiny_model("convnext")
    for model in (a, b):
        nn.init.constant_(model.norm.bias[:1], math.nan)
    errors = {row.name: row.max_abs_error for row in compare_models(a, b, SMALL[:1])}
    assert math.isnan(errors["1x64x64/last_hidden_state"])
    assert errors["1x64x64/hidden_states.4"] == 0


def test_table_shows_every_row_and_the_worst() -> None:
    rows = [Row("1x8x8/cls", 2e-6, (1, 32)), Row("1x8x8/patches", 3e-4, (1, 16, 32)), Row("n", 0.0, (1,))]
    lines = format_table(rows, 1e-5).splitlines()
    assert lines[0].split() == ["array", "shape", "max", "abs", "error"]
    assert lines[1].split() == ["1x8x8/cls", "1x32", "2.00e-06"]
    assert lines[2].split() == ["1x8x8/patches", "1x16x32", "3.00e-04", "TOO", "LARGE"]
    assert lines[-1] == "2 of 3 arrays are the same within 1e-05; the largest error is 3.00e-04, in 1x8x8/patches."
    assert len(lines) == 5
    nan = format_table([*rows, Row("broken", math.nan, (1,))], 1.0).splitlines()
    assert nan[-2].endswith("TOO LARGE")
    assert nan[-1] == "3 of 4 arrays are the same within 1; the largest error is nan, in broken."
