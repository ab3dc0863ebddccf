# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from modeling_common import max_abs, min_cosine, pixels, randomise, tiny_config, tiny_fields, tiny_model
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from eupe_hf import EupeConfig, EupeModel


# ---- an independent ConvNeXt, channels first and in float64, from the facts about the original alone ----


def reference_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, dim: int) -> torch.Tensor:
    mean = x.mean(dim, keepdim=True)
    var = (x - mean).square().mean(dim, keepdim=True)
    shape = [-1 if i == dim % x.ndim else 1 for i in range(x.ndim)]
    return (x - mean) / (var + 1e-6).sqrt() * weight.view(shape) + bias.view(shape)


def reference_convnext(model: EupeModel, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Normed tokens, global feature, and the maps of stem and stages."""
    w = {name: parameter.detach().double() for name, parameter in model.named_parameters()}

    def pair(name):
        return w[f"encoder.{name}.weight"], w[f"encoder.{name}.bias"]

    x = functional.conv2d(image.double(), *pair("stem.conv"), stride=4)
    x = reference_norm(x, *pair("stem.norm"), dim=1)
    maps = [x]
    for i, depth in enumerate(model.config.depths):
        stage = f"stages.{i}"
        if i > 0:
            x = reference_norm(x, *pair(f"{stage}.downsample.norm"), dim=1)
            x = functional.conv2d(x, *pair(f"{stage}.downsample.conv"), stride=2)
        for j in range(depth):
            block = f"{stage}.layers.{j}"
            y = functional.conv2d(x, *pair(f"{block}.depthwise_conv"), padding=3, groups=x.shape[1])
            y = reference_norm(y, *pair(f"{block}.layer_norm"), dim=1)
            up, up_bias = pair(f"{block}.pointwise_conv1")
            down, down_bias = pair(f"{block}.pointwise_conv2")
            y = functional.conv2d(y, up[:, :, None, None], up_bias)
            y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
            y = functional.conv2d(y, down[:, :, None, None], down_bias)
            x = x + w[f"encoder.{block}.gamma"].view(1, -1, 1, 1) * y
        maps.append(x)
    norm = w["norm.weight"], w["norm.bias"]
    tokens = reference_norm(x.flatten(2).transpose(1, 2), *norm, dim=-1)
    return tokens, reference_norm(x.mean(dim=(2, 3)), *norm, dim=-1), maps


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160), (250, 230)])
def test_features_equal_those_of_an_independent_convnext(height, width):
    model, image = tiny_model("convnext"), pixels(2, height, width)
    outputs = model(image, output_hidden_states=True)
    tokens, pooled, maps = reference_convnext(model, image)
    assert max_abs(outputs.last_hidden_state, tokens) < 1e-5
    assert max_abs(outputs.pooler_output, pooled) < 1e-5
    assert len(outputs.hidden_states) == len(maps) == 5
    for found, expected in zip(outputs.hidden_states, maps, strict=True):
        assert max_abs(found, expected) < 1e-5


def test_sides_are_floored_by_each_stride():
    model, image = tiny_model("convnext"), pixels(1, 250, 230)
    states = model(image, output_hidden_states=True).hidden_states
    assert [tuple(s.shape[2:]) for s in states] == [(62, 57), (62, 57), (31, 28), (15, 14), (7, 7)]
    # the stem is the only layer whose rest is always lost; later strides floor maps that neighbours have seen
    assert torch.equal(model(image[:, :, :248, :228]).last_hidden_state, model(image).last_hidden_state)


def test_global_feature_is_the_norm_of_the_mean_and_not_the_mean_of_the_norm():
    model = tiny_model("convnext")
    outputs = model(pixels(2, 96, 128), output_hidden_states=-1)
    pooled = model.norm(outputs.hidden_states[-1].mean(dim=(2, 3)))
    assert max_abs(outputs.pooler_output, pooled) < 1e-6
    assert max_abs(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1)) > 1e-2


def test_dense_features_are_the_normed_map_in_row_major_order():
    model = tiny_model("convnext")
    outputs = model(pixels(2, 96, 160), output_hidden_states=-1)
    feature_map = outputs.hidden_states[-1]  # (2, 20, 3, 5)
    for row, column in [(0, 0), (1, 4), (2, 3)]:
        expected = model.norm(feature_map[:, :, row, column])
        assert max_abs(outputs.last_hidden_state[:, row * 5 + column], expected) < 1e-6


def test_memory_format_of_the_input_changes_nothing():
    model, image = tiny_model("convnext"), pixels()
    expected = model(image).last_hidden_state
    assert torch.equal(model(image.contiguous(memory_format=torch.channels_last)).last_hidden_state, expected)
    assert torch.equal(model(image.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)).last_hidden_state, expected)
    assert (
        max_abs(copy.deepcopy(model).to(memory_format=torch.channels_last)(image).last_hidden_state, expected) < 1e-6
    )


# ---- half precision ----


def _with_large_activations() -> EupeModel:
    """A ConvNeXt with several hundreds before its norms: their squares, and sums of those, are beyond float16."""
    model = tiny_model("convnext", hidden_sizes=[16, 24, 32, 48])
    with torch.no_grad():
        model.encoder.stem.conv.weight.mul_(300)
        model.encoder.stages[0].layers[0].depthwise_conv.weight.mul_(300)
        for stage in model.encoder.stages[1:]:
            stage.downsample.conv.weight.mul_(300)  # and the blocks of the stage work on what this gives
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_activations_of_several_hundred_stay_finite_and_right(dtype):
    model, image = _with_large_activations(), pixels(2, 96, 128)
    expected = model(image)
    lowered = copy.deepcopy(model).to(dtype)
    inputs = []
    for module in lowered.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().abs().max().item()))
    found = lowered(image)
    assert len(inputs) == 1 + 3 + 5 + 2
    assert sum(value > 300 for value in inputs) >= 9
    assert max(inputs) < 10_000  # float16 ends at 65504: what is tested is the norm, not the convolutions before it
    assert found.last_hidden_state.dtype == dtype
    assert torch.isfinite(found.last_hidden_state).all()
    assert torch.isfinite(found.pooler_output).all()
    assert min_cosine(found.last_hidden_state, expected.last_hidden_state) > 0.999
    assert min_cosine(found.pooler_output, expected.pooler_output) > 0.999


# ---- what only the ViTs have ----


def test_mask_fails_saying_which_models_take_one():
    with pytest.raises(ValueError, match="bool_masked_pos needs a mask token, which only the ViTs have"):
        tiny_model("convnext")(pixels(), bool_masked_pos=torch.zeros(2, 6, dtype=torch.bool))


def test_attention_maps_fail_saying_which_models_have_them():
    with pytest.raises(ValueError, match=r"ConvNeXt has no attention.*eupe-t, eupe-s, eupe-b"):
        tiny_model("convnext").attention_maps(pixels())


def test_output_attentions_gives_none():
    assert tiny_model("convnext")(pixels(), output_attentions=True).attentions is None


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_attention_back_end_changes_nothing(implementation):
    model = tiny_model("convnext", attn_implementation=implementation)
    assert torch.equal(model(pixels()).last_hidden_state, tiny_model("convnext")(pixels()).last_hidden_state)


# ---- training ----


def test_train_mode_draws_nothing_and_equals_eval_mode():
    model, image = tiny_model("convnext"), pixels()
    expected = model(image).last_hidden_state
    state = torch.get_rng_state()
    assert torch.equal(model.train()(image).last_hidden_state, expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_lora_adapts_exactly_the_linear_layers_of_each_block():
    model = tiny_model("convnext")
    peft_model = get_peft_model(model, LoraConfig(target_modules=["pointwise_conv1", "pointwise_conv2"], r=2))
    adapted = [name for name, _ in peft_model.named_modules() if name.endswith("lora_A")]
    assert len(adapted) == 2 * 5


def test_initial_values_are_those_of_the_config():
    torch.manual_seed(0)
    fields = {"layerscale_value": 0.25, "initializer_range": 0.05, "hidden_sizes": [32, 48, 64, 80]}
    model = EupeModel(EupeConfig(**tiny_fields("convnext", **fields)))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            assert torch.equal(parameter, torch.full_like(parameter, 0.25)), name
        elif "norm" in name and name.endswith("weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name


@pytest.mark.parametrize("stages", [1, 2, 5])
def test_other_numbers_of_stages_work(stages):
    config = tiny_config("convnext", depths=[1] * stages, hidden_sizes=[8 + 4 * i for i in range(stages)])
    model = randomise(EupeModel(config)).eval()
    image = pixels(1, 128, 64)
    outputs = model(image)
    stride = 4 * 2 ** (stages - 1)
    assert outputs.last_hidden_state.shape == (1, (128 // stride) * (64 // stride), 4 + 4 * stages)
    assert max_abs(outputs.last_hidden_state, reference_convnext(model, image)[0]) < 1e-5
