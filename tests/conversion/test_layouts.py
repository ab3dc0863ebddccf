# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The three layouts: names and shapes, lossless conversion, and the messages about wrong checkpoints."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import (
    FAMILIES,
    FULL_SIZE,
    LAYOUTS,
    NAMES,
    assert_raw_came_back,
    assert_same_bits,
    build_model,
    key_third,
    published_state,
    random_state,
    raw_weights,
    requires_shared,
    tiny_config,
)
from safetensors.torch import save_file
from transformers import DINOv3ConvNextModel, DINOv3ViTModel

from eupe_hf import EupeConfig, EupeModel, variant_config
from eupe_hf.conversion.checkpoints import Checkpoint, load_checkpoint, save_layout
from eupe_hf.conversion.layouts import (
    CheckpointError,
    StateDict,
    check_tensors,
    describe,
    expected_shapes,
    from_eupe,
    recognise,
    to_eupe,
)
from eupe_hf.conversion.verification import frozen_pixel_values
from eupe_hf.variants import VARIANTS


# Measured: at most 2.7e-6 for the three ViTs, 6.7e-6 for the three ConvNeXts, 9.6e-7 for the tiny ones.
SAME_FEATURES = 1e-5
OTHER_PERIODS = [1.0, 2.5, 7.0, 40.0]


def test_the_six_models_are_covered() -> None:
    assert len(NAMES) == 6


# ---- the six ----


@requires_shared
@pytest.mark.parametrize("name", FULL_SIZE)
def test_raw_names_and_shapes_are_the_published_ones(name: str) -> None:
    module, torch_hub_name = raw_weights(), VARIANTS[name].torch_hub_name
    if torch_hub_name in module.VIT:
        spec = module.vit_spec(*module.VIT[torch_hub_name])
    else:
        spec = module.convnext_spec(*module.CONVNEXT[torch_hub_name])
    assert expected_shapes(variant_config(name), "raw") == {key: shape for key, shape, _ in spec}


@pytest.fixture(scope="module", params=FULL_SIZE)
def published(request: pytest.FixtureRequest) -> tuple[str, StateDict]:
    """Name and raw checkpoint of one of the six."""
    return request.param, published_state(request.param)


def test_published_checkpoint_comes_back_bit_equal(published: tuple[str, StateDict]) -> None:
    name, raw = published
    assert recognise(raw) == ("raw", VARIANTS[name])
    ours, config = to_eupe(raw, variant_config(name), "raw")
    assert recognise(ours) == ("eupe", VARIANTS[name])
    assert config.rope_periods is None
    assert set(ours) == set(expected_shapes(config))
    assert all(tensor.isfinite().all() for tensor in ours.values())
    back = from_eupe(ours, config, "raw")
    assert_raw_came_back(back, raw)
    if config.backbone_type == "vit":
        bias, mask = raw["blocks.11.attn.qkv.bias"], back["blocks.11.attn.qkv.bias_mask"]
        third = key_third(bias)
        assert bias[third].abs().min() > 0
        assert not back["blocks.11.attn.qkv.bias"][third].any()
        assert not mask[third].any()
        assert mask.sum() == 2 * config.hidden_size
    else:
        assert torch.equal(back["norms.3.weight"], raw["norm.weight"])
        assert back["norms.3.weight"].data_ptr() != back["norm.weight"].data_ptr()


def test_published_model_in_dinov3_computes_the_same(published: tuple[str, StateDict], tmp_path: Path) -> None:
    name, raw = published
    ours, config = to_eupe(raw, variant_config(name), "raw")
    assert dinov3_error(ours, config, tmp_path / "dinov3") <= SAME_FEATURES
    back = load_checkpoint(tmp_path / "dinov3")
    assert (back.layout, back.variant) == ("dinov3", VARIANTS[name])
    assert_same_bits(back.state, ours)
    shutil.rmtree(tmp_path)  # a third of a gigabyte, which pytest would keep


# ---- layouts of encoders of any size ----


def dinov3_error(state: StateDict, config: EupeConfig, folder: Path) -> float:
    """Write a checkpoint for transformers' own class, load it there, and compare its features with ours."""
    save_layout(Checkpoint(state, config, "eupe", None, {}), folder, "dinov3")
    cls = DINOv3ViTModel if config.backbone_type == "vit" else DINOv3ConvNextModel
    theirs, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours, errors = build_model(state, config), []
    for size in ((2, 64, 96), (1, 70, 50)):
        pixel_values = frozen_pixel_values(*size)
        with torch.inference_mode():
            found, expected = ours(pixel_values), theirs.eval()(pixel_values)
        tokens = expected.last_hidden_state
        if config.backbone_type == "convnext":  # transformers puts the pooled token first
            tokens = tokens[:, 1:]
        errors += [found.last_hidden_state - tokens, found.pooler_output - expected.pooler_output]
    return max(error.abs().max().item() for error in errors)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_dinov3_computes_the_same(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    state = random_state(config)
    assert dinov3_error(state, config, tmp_path / "dinov3") <= SAME_FEATURES
    state["norm.bias"] = state["norm.bias"] + 0.1
    theirs = DINOv3ViTModel if family == "vit" else DINOv3ConvNextModel
    model = theirs.from_pretrained(tmp_path / "dinov3").eval()
    with torch.inference_mode():
        found = build_model(state, config)(frozen_pixel_values(1, 64, 64)).pooler_output
        error = found - model(frozen_pixel_values(1, 64, 64)).pooler_output
    assert error.abs().max() > 0.09  # the comparison sees a difference where there is one


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_bit_equal(family: str, layout: str) -> None:
    config = tiny_config(family)
    state = random_state(config)
    written = from_eupe(state, config, layout)
    assert {key: tuple(tensor.shape) for key, tensor in written.items()} == expected_shapes(config, layout)
    assert recognise(written) == (layout, None)
    back, same_config = to_eupe(written, config, layout)
    assert_same_bits(back, state)
    assert same_config.to_dict() == config.to_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_dinov3_names_from_before_transformers_5_are_read(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    state = random_state(config)
    old = {re.sub(r"^model\.", "", key): tensor for key, tensor in from_eupe(state, config, "dinov3").items()}
    assert not any(key.startswith("model.") for key in old)
    save_file(old, tmp_path / "old.safetensors")
    assert_same_bits(load_checkpoint(tmp_path / "old.safetensors", config=config).state, state)


def test_published_model_is_recognised_in_every_layout() -> None:
    config = variant_config("eupe-t")
    for layout in LAYOUTS:
        state = random_state(config, layout)
        assert recognise(state) == (layout, VARIANTS["eupe-t"])
        del state[next(iter(state))]
        assert recognise(state) == (layout, VARIANTS["eupe-t"])  # damaged, but recognised


# ---- rotary periods ----


@pytest.fixture
def other_periods() -> tuple[StateDict, EupeConfig]:
    """A raw checkpoint with its own rotary periods, and the configuration to read it with."""
    raw = random_state(tiny_config("vit"), "raw")
    raw["rope_embed.periods"] = torch.tensor(OTHER_PERIODS)
    return raw, tiny_config("vit")


def test_other_periods_are_carried_and_come_back(other_periods: tuple[StateDict, EupeConfig]) -> None:
    raw, plain = other_periods
    ours, config = to_eupe(raw, plain, "raw")
    assert plain.rope_periods is None
    assert config.rope_periods == OTHER_PERIODS
    assert EupeModel(config).encoder.rotary.periods == tuple(OTHER_PERIODS)
    assert_raw_came_back(from_eupe(ours, config, "raw"), raw)


def test_periods_rounded_by_half_precision_are_carried_as_they_are() -> None:
    raw = {key: tensor.bfloat16() for key, tensor in random_state(tiny_config("vit"), "raw").items()}
    rounded = raw["rope_embed.periods"].float()
    ours, config = to_eupe(raw, tiny_config("vit"), "raw")
    assert config.rope_periods == rounded.tolist()
    assert torch.equal(from_eupe(ours, config, "raw")["rope_embed.periods"], rounded)


def test_other_periods_change_the_features_as_the_formula_would(other_periods: tuple[StateDict, EupeConfig]) -> None:
    raw, plain = other_periods
    # the periods of theta 10000, which the formula gives too
    raw["rope_embed.periods"] = 10000.0 ** (torch.arange(4, dtype=torch.float32) / 4)
    ours, config = to_eupe(raw, plain, "raw")
    assert config.rope_periods is not None
    pixel_values = frozen_pixel_values(1, 64, 96)
    with torch.inference_mode():
        found = build_model(ours, config)(pixel_values).last_hidden_state
        by_formula = build_model(ours, tiny_config("vit", rope_theta=10000.0))(pixel_values).last_hidden_state
        without = build_model(ours, plain)(pixel_values).last_hidden_state
    assert (found - by_formula).abs().max() <= 1e-6
    assert (found - without).abs().max() > 1e-3


def test_other_periods_survive_saving(other_periods: tuple[StateDict, EupeConfig], tmp_path: Path) -> None:
    raw, plain = other_periods
    ours, config = to_eupe(raw, plain, "raw")
    folder = save_layout(Checkpoint(ours, config, "raw", None, {}), tmp_path / "ours", "eupe")
    for path in (folder, folder / "model.safetensors"):  # by the folder, or by the file
        loaded = load_checkpoint(path)
        assert loaded.config.rope_periods == OTHER_PERIODS
        assert_raw_came_back(from_eupe(loaded.state, loaded.config, "raw"), raw)
    assert EupeModel.from_pretrained(folder).encoder.rotary.periods == tuple(OTHER_PERIODS)


def test_other_periods_are_refused_for_dinov3(other_periods: tuple[StateDict, EupeConfig], tmp_path: Path) -> None:
    ours, config = to_eupe(*other_periods, "raw")
    with pytest.raises(CheckpointError, match=r"rotary periods.*layout 'raw' or 'eupe'"):
        save_layout(Checkpoint(ours, config, "raw", None, {}), tmp_path / "dinov3", "dinov3")
    assert not (tmp_path / "dinov3").exists()


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_impossible_periods_are_refused(other_periods: tuple[StateDict, EupeConfig], value: float) -> None:
    raw, config = other_periods
    raw["rope_embed.periods"][1] = value
    with pytest.raises(CheckpointError, match=r"'rope_embed\.periods' must be positive"):
        to_eupe(raw, config, "raw")


# ---- checkpoints that are wrong ----


def kinds(config: EupeConfig, layout: str) -> list[str]:
    """One key of each kind: the last of those that differ only in the number of their block or stage."""
    shapes = expected_shapes(config, layout).items()
    return list({(re.sub(r"\d+", "#", key, count=1), len(shape)): key for key, shape in shapes}.values())


DAMAGE = {
    "missing": (lambda tensor: None, "missing"),
    "transposed": (lambda tensor: tensor.unsqueeze(-1), "has shape"),
    "short": (lambda tensor: tensor[..., :-1] if tensor.shape[-1] > 1 else tensor[..., :0], "has shape"),
    "nan": (lambda tensor: torch.full_like(tensor, torch.nan), "NaN or infinite"),
    "infinite": (lambda tensor: torch.full_like(tensor, torch.inf), "NaN or infinite"),
    "integer": (lambda tensor: tensor.round().long(), "must be floating point"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_any_kind_of_key_is_an_error_that_names_it(family: str, layout: str, damage: str) -> None:
    config = tiny_config(family)
    state = random_state(config, layout)
    break_it, message = DAMAGE[damage]
    assert len(kinds(config, layout)) >= 15
    for key in kinds(config, layout):
        broken = {name: break_it(tensor) if name == key else tensor for name, tensor in state.items()}
        broken = {name: tensor for name, tensor in broken.items() if tensor is not None}
        with pytest.raises(CheckpointError, match=message) as caught:
            to_eupe(broken, config, layout)
        assert repr(key) in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_unexpected_key_is_an_error_that_names_it(family: str, layout: str) -> None:
    config = tiny_config(family)
    state = random_state(config, layout)
    for key in kinds(config, layout):
        extra = f"{key}_extra"
        with pytest.raises(CheckpointError, match="unexpected") as caught:
            to_eupe({**state, extra: torch.zeros(1)}, config, layout)
        assert repr(extra) in str(caught.value)


def test_renamed_key_is_reported_from_both_sides() -> None:
    config = tiny_config("vit")
    state = random_state(config, "raw")
    state["blocks.1.attn.projection.bias"] = state.pop("blocks.1.attn.proj.bias")
    with pytest.raises(CheckpointError, match=r"1 missing \('blocks\.1\.attn\.proj\.bias'\) and 1 unexpected"):
        to_eupe(state, config, "raw")


def test_many_missing_keys_are_counted_and_cut_short() -> None:
    with pytest.raises(CheckpointError, match=r"9 missing \('0', '1', '2', '3', \.\.\.\)\.$"):
        check_tensors({}, {str(i): (1,) for i in range(9)})


@pytest.mark.parametrize("layout", ["raw", "dinov3"])
def test_writing_checks_the_tensors_too(layout: str) -> None:
    config = tiny_config("convnext")
    state = random_state(config)
    del state["norm.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing \('norm\.bias'\)"):
        from_eupe(state, config, layout)


@pytest.mark.parametrize("position", [0, 32, 63, 95])
def test_other_bias_mask_is_an_error_that_names_it(position: int) -> None:
    config = tiny_config("vit")
    state = random_state(config, "raw")
    mask = state["blocks.1.attn.qkv.bias_mask"]
    mask[position] = 1 - mask[position]
    with pytest.raises(CheckpointError, match=r"'blocks\.1\.attn\.qkv\.bias_mask' must be ones with zeros"):
        to_eupe(state, config, "raw")


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_doubled_norm_that_differs_is_an_error_that_names_both(part: str) -> None:
    config = tiny_config("convnext")
    state = random_state(config, "raw")
    state[f"norms.3.{part}"][0] += 1e-3
    with pytest.raises(CheckpointError, match=rf"'norm\.{part}' and 'norms\.3\.{part}' must hold the same values"):
        to_eupe(state, config, "raw")


STRANGERS = {
    "timm ViT": (["cls_token", "pos_embed", "blocks.0.attn.qkv.weight"], "learned position embeddings"),
    "timm EUPE": (["cls_token", "reg_token", "blocks.0.gamma_1", "blocks.0.attn.qkv.weight"], "in timm's layout"),
    "timm ConvNeXt": (["stem.0.weight", "stages.0.blocks.0.conv_dw.weight"], "a ConvNeXt in timm's layout"),
    "OpenAI CLIP": (["positional_embedding", "visual.conv1.weight", "token_embedding.weight"], "CLIP-like"),
    "CLIP": (["text_model.embeddings.token_embedding.weight", "logit_scale"], "CLIP-like"),
    "ResNet": (["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"], "a ResNet"),
    "torchvision": (["features.0.0.weight", "classifier.2.weight"], "a torchvision ConvNeXt"),
    "ViT of transformers": (["vit.embeddings.cls_token", "vit.layernorm.weight"], "transformers' older layout"),
    "language model": (["model.embed_tokens.weight", "model.norm.weight"], "a language model"),
    "head": (["batchnorm_layer.weight", "conv_depth.weight"], "a head without its encoder"),
}


@pytest.mark.parametrize(("keys", "looks_like"), STRANGERS.values(), ids=STRANGERS)
def test_file_of_another_model_is_refused_by_what_it_looks_like(keys: list[str], looks_like: str) -> None:
    with pytest.raises(CheckpointError, match="This is not an EUPE encoder; it looks like") as caught:
        recognise({key: torch.zeros(1) for key in keys})
    assert looks_like in str(caught.value)
    assert sorted(keys)[0] in str(caught.value)


def test_unknown_file_is_refused_with_its_keys() -> None:
    with pytest.raises(CheckpointError, match=r"not an EUPE encoder\. Its first keys are bar, foo;.*blocks\.0\.attn"):
        recognise({"foo": torch.zeros(1), "bar": torch.zeros(1)})


def test_encoder_of_another_size_is_described() -> None:
    for layout in LAYOUTS:
        assert describe(random_state(tiny_config("vit"), layout)) == "ViT of width 32 with 2 blocks"
        expected = "ConvNeXt with [1, 1, 2, 1] blocks of widths [8, 16, 24, 32]"
        assert describe(random_state(tiny_config("convnext"), layout)) == expected
