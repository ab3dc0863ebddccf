# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
import copy
import math
import shutil
from unittest import mock

import numpy as np
import pytest
import torch
from modeling_common import (
    max_abs,
    min_cosine,
    pixels,
    randomise,
    reference_angles,
    reference_rotation,
    reference_vit,
    tiny_config,
    tiny_fields,
    tiny_model,
)
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from eupe_hf import EupeConfig, EupeModel
from eupe_hf.models import modeling_eupe_vit
from eupe_hf.models.modeling_eupe_vit import EupeViTRotaryEmbedding, apply_rotary, rotary_periods


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cold_cache():
    modeling_eupe_vit._cached_rotary_tables.cache_clear()


def tables_of(model: nn.Module, *args, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rotary tables with which each block turns its queries, then its keys, in one forward pass."""
    with mock.patch.object(modeling_eupe_vit, "apply_rotary", wraps=apply_rotary) as spy:
        model(*args, **kwargs)
    return [call.args[1:] for call in spy.call_args_list]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 112), (90, 41)])
def test_features_equal_those_of_an_independent_vit(height, width):
    model, image = tiny_model("vit"), pixels(1, height, width)
    outputs = model(image)
    expected = torch.from_numpy(reference_vit(model, image))
    assert max_abs(outputs.last_hidden_state[0], expected) < 1e-5
    assert max_abs(outputs.pooler_output[0], expected[0]) < 1e-5


# ---- rotary tables ----


@pytest.mark.parametrize("head_dim", [8, 64])
def test_rotary_periods_follow_the_formula(head_dim):
    periods = rotary_periods(100.0, head_dim)
    assert periods.dtype == torch.float32
    expected = [100.0 ** (2 * k / (head_dim / 2)) for k in range(head_dim // 4)]
    assert periods.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("periods", [None, [0.7, 13.5]])
def test_rotary_tables_equal_the_reference_on_a_non_square_grid(periods):
    config = tiny_config("vit", rope_periods=periods)
    cos, sin = EupeViTRotaryEmbedding(config)(3, 5, CPU)
    angles = reference_angles(3, 5, np.array(periods or [1.0, 10.0]))
    prefix, half = config.num_prefix_tokens, 4
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (prefix + 15, 1, 8)
    assert torch.equal(cos[:prefix], torch.ones(prefix, 1, 8))
    assert torch.equal(sin[:prefix], torch.zeros(prefix, 1, 8))
    assert max_abs(cos[prefix:, 0], torch.from_numpy(np.cos(angles))) < 2e-6
    signed = np.concatenate([-np.sin(angles[:, :half]), np.sin(angles[:, half:])], axis=-1)
    assert max_abs(sin[prefix:, 0], torch.from_numpy(signed)) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_equals_the_reference_and_is_computed_in_float32(dtype):
    config = tiny_config("vit")
    tables = EupeViTRotaryEmbedding(config)(3, 5, CPU)
    states = torch.randn(2, 15 + config.num_prefix_tokens, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    turned = apply_rotary(states, *tables)
    assert turned.dtype == dtype
    assert torch.equal(turned, apply_rotary(states.float(), *tables).to(dtype))
    prefix = config.num_prefix_tokens
    assert torch.equal(turned[:, :prefix], states[:, :prefix])
    angles = reference_angles(3, 5, np.array([1.0, 10.0]))[:, None]
    expected = reference_rotation(states[:, prefix:].double().numpy(), angles)
    assert max_abs(turned[:, prefix:], torch.from_numpy(expected)) < {torch.float32: 1e-5}.get(dtype, 2e-2)


LOWERED = {
    "to_bfloat16": lambda model, folder: copy.deepcopy(model).to(torch.bfloat16),
    "half": lambda model, folder: copy.deepcopy(model).half(),
    "from_pretrained_bfloat16": lambda model, folder: EupeModel.from_pretrained(folder, dtype=torch.bfloat16),
    "from_pretrained_float16": lambda model, folder: EupeModel.from_pretrained(folder, dtype="float16"),
    "from_config": lambda model, folder: EupeModel._from_config(model.config, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("lower", LOWERED)
def test_rotary_tables_of_a_lowered_model_equal_those_of_float32_bit_for_bit(lower, tmp_path):
    model, image = tiny_model("vit"), pixels(1, 256, 400)
    model.save_pretrained(tmp_path)
    lowered = LOWERED[lower](model, tmp_path).eval()
    assert {parameter.dtype for parameter in lowered.parameters()} != {torch.float32}
    (cos, sin), *_ = tables_of(model, image)
    modeling_eupe_vit._cached_rotary_tables.cache_clear()
    lowered_tables = tables_of(lowered, image)
    assert len(lowered_tables) == 2 * 3
    for low_cos, low_sin in lowered_tables:
        assert low_cos.dtype == low_sin.dtype == torch.float32
        assert torch.equal(low_cos, cos)
        assert torch.equal(low_sin, sin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_tables_under_autocast_equal_those_of_float32(dtype):
    model, image = tiny_model("vit"), pixels(1, 128, 80)
    with torch.autocast("cpu", dtype=dtype):
        (cos, sin), *_ = tables_of(model, image)
        features = model(image).last_hidden_state
    modeling_eupe_vit._cached_rotary_tables.cache_clear()
    (full_cos, full_sin), *_ = tables_of(model, image)
    assert torch.equal(cos, full_cos)
    assert torch.equal(sin, full_sin)
    assert min_cosine(features, model(image).last_hidden_state) > 0.999


def test_rotary_embedding_holds_no_tensor():
    rotary = tiny_model("vit").encoder.rotary
    assert list(rotary.state_dict()) == []
    assert not any(isinstance(value, torch.Tensor) for value in vars(rotary).values())


def test_custom_periods_replace_the_formula():
    image = pixels()
    default, custom = tiny_model("vit"), tiny_model("vit", rope_periods=[1.0, 10.0])
    assert torch.equal(custom(image).last_hidden_state, default(image).last_hidden_state)
    other = tiny_model("vit", rope_periods=[1.5, 10.0])
    assert max_abs(other(image).last_hidden_state, default(image).last_hidden_state) > 1e-2


# ---- cache of the tables ----


def test_features_with_cold_and_warm_cache_are_equal():
    model, image = tiny_model("vit"), pixels()
    cold = model(image).last_hidden_state
    hits = modeling_eupe_vit._cached_rotary_tables.cache_info().hits
    warm = model(image).last_hidden_state
    assert modeling_eupe_vit._cached_rotary_tables.cache_info().hits == hits + 1
    assert torch.equal(cold, warm)


def test_cache_is_bounded():
    rotary = EupeViTRotaryEmbedding(tiny_config("vit"))
    for width in range(1, 60):
        rotary(2, width, CPU)
    info = modeling_eupe_vit._cached_rotary_tables.cache_info()
    assert info.currsize == info.maxsize == 32


def test_tables_made_in_inference_mode_serve_in_training():
    image = pixels()
    gradients = []
    for warm_up in (False, True):
        modeling_eupe_vit._cached_rotary_tables.cache_clear()
        model = tiny_model("vit", pos_embed_rescale=None).train()
        if warm_up:
            with torch.inference_mode():
                model(image)
        model(image).pooler_output.sum().backward()
        assert modeling_eupe_vit._cached_rotary_tables.cache_info().hits == int(warm_up)
        gradients.append(model.encoder.layers[0].attention.q_proj.weight.grad)
    assert torch.equal(*gradients)


def _compiled(model, image):
    torch._dynamo.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(image)


def _fake(model, image):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert isinstance(model(mode.from_tensor(image)).last_hidden_state, FakeTensor)


TRACERS = {
    "fake_tensor_mode": _fake,
    "compile": _compiled,
    "export": lambda model, image: torch.export.export(model, (), {"pixel_values": image}),
    "jit_trace": lambda model, image: torch.jit.trace(lambda x: model(x).pooler_output, image, check_trace=False),
    "func_grad": lambda model, image: torch.func.grad(lambda x: model(x).pooler_output.sum())(image),
    "vmap": lambda model, image: torch.vmap(lambda x: model(x[None]).pooler_output)(image),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("warm", [False, True])
def test_tracers_leave_nothing_in_the_cache_and_take_nothing_from_it(tracer, warm):
    model, image = tiny_model("vit"), pixels()
    expected = model.requires_grad_(False)(image).last_hidden_state
    if not warm:
        modeling_eupe_vit._cached_rotary_tables.cache_clear()
    before = modeling_eupe_vit._cached_rotary_tables.cache_info()
    TRACERS[tracer](model, image)
    assert modeling_eupe_vit._cached_rotary_tables.cache_info() == before
    features = model(image).last_hidden_state
    assert type(features) is torch.Tensor
    assert torch.equal(features, expected)


# ---- random rescaling of coordinates in training ----


def test_training_draws_one_factor_per_forward_pass_shared_by_all_blocks():
    model, image = tiny_model("vit").train(), pixels()
    first, second = tables_of(model, image), tables_of(model, image)
    for tables in (first, second):
        assert len(tables) == 2 * 3
        assert all(cos is tables[0][0] and sin is tables[0][1] for cos, sin in tables)
    assert not torch.equal(first[0][1], second[0][1])
    assert first[0][0].dtype == torch.float32


def test_training_factor_is_log_uniform_between_a_half_and_two():
    torch.manual_seed(0)
    config = tiny_config("vit", num_register_tokens=0)
    rotary = EupeViTRotaryEmbedding(config)
    # two rows: their centres are -1/2 and 1/2; the H axis's second period is 10: the angle is pi / 10 times the factor
    draws = [math.asin(rotary(2, 1, CPU, augment=True)[1][-1, 0, 5].item()) / (math.pi / 10) for _ in range(2000)]
    logs = torch.tensor(draws).log2()
    assert logs.min() >= -1.0001
    assert logs.max() <= 1.0001
    distance = (logs.sort().values - torch.linspace(-1, 1, 2000)).abs().max()  # Kolmogorov-Smirnov, on [-1, 1]
    assert distance < 2 * 1.63 / math.sqrt(2000)  # 1 % level


def test_training_factor_follows_the_config():
    torch.manual_seed(0)
    rotary = EupeViTRotaryEmbedding(tiny_config("vit", num_register_tokens=0, pos_embed_rescale=1.1))
    draws = [math.asin(rotary(2, 1, CPU, augment=True)[1][-1, 0, 5].item()) / (math.pi / 10) for _ in range(300)]
    assert 1 / 1.1001 <= min(draws) < 0.95
    assert 1.05 < max(draws) <= 1.1001


def _frozen_in_a_model_that_trains(model):
    model.requires_grad_(False)
    parent = nn.ModuleDict({"tower": model, "head": nn.Linear(32, 2)}).train()
    assert parent["tower"].training
    return model


NOT_RANDOM = {
    "eval": lambda model: model.eval(),
    "frozen_in_train_mode": lambda model: model.requires_grad_(False).train(),
    "frozen_in_a_model_that_trains": _frozen_in_a_model_that_trains,
}


@pytest.mark.parametrize("case", NOT_RANDOM)
def test_eval_and_frozen_towers_draw_nothing(case):
    model, image = tiny_model("vit"), pixels()
    expected = model(image).last_hidden_state
    model = NOT_RANDOM[case](model)
    state = torch.get_rng_state()
    first, second = model(image).last_hidden_state, model(image).last_hidden_state
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert torch.equal(first, expected)


def test_training_without_rescale_draws_nothing():
    model, image = tiny_model("vit", pos_embed_rescale=None), pixels()
    expected = model(image).last_hidden_state
    assert torch.equal(model.train()(image).last_hidden_state, expected)


# ---- masked patches ----


def _mask(batch: int, count: int, *masked: int) -> torch.Tensor:
    mask = torch.zeros(batch, count, dtype=torch.bool)
    mask[:, list(masked)] = True
    return mask


def test_mask_of_false_changes_nothing():
    model, image = tiny_model("vit"), pixels()
    assert torch.equal(model(image, bool_masked_pos=_mask(2, 24)).last_hidden_state, model(image).last_hidden_state)


def test_masked_patch_is_the_mask_token_and_nothing_else_changes():
    model, image = tiny_model("vit"), pixels()
    masked = model(image, bool_masked_pos=_mask(2, 24, 3, 17)).last_hidden_state
    assert masked.shape == (2, 3 + 24, 32)

    def put_mask_token(module, args, output):
        output = output.clone()
        for patch in (3, 17):
            output[:, :, patch // 6, patch % 6] = model.encoder.embeddings.mask_token[0]
        return output

    model.encoder.embeddings.patch_embeddings.register_forward_hook(put_mask_token)
    assert torch.equal(model(image).last_hidden_state, masked)


def test_pixels_below_a_mask_are_not_read():
    model, image = tiny_model("vit"), pixels()
    mask = _mask(2, 24, 8)  # row 1, column 2 of a grid of 4 x 6
    changed = image.clone()
    changed[:, :, 16:32, 32:48] += 5
    assert torch.equal(
        model(image, bool_masked_pos=mask).last_hidden_state, model(changed, bool_masked_pos=mask).last_hidden_state
    )
    assert max_abs(model(image).last_hidden_state, model(changed).last_hidden_state) > 1e-2


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_mask_as_a_grid_equals_the_flat_mask(dtype):
    model, image = tiny_model("vit"), pixels()
    mask = _mask(2, 24, 1, 23)
    flat = model(image, bool_masked_pos=mask).last_hidden_state
    assert torch.equal(model(image, bool_masked_pos=mask.view(2, 4, 6).to(dtype)).last_hidden_state, flat)


def test_mask_token_learns_only_where_patches_are_masked():
    model, image = tiny_model("vit"), pixels()
    model(image, bool_masked_pos=_mask(2, 24)).last_hidden_state.square().sum().backward()
    assert model.encoder.embeddings.mask_token.grad.abs().sum() == 0
    model(image, bool_masked_pos=_mask(2, 24, 5)).last_hidden_state.square().sum().backward()
    assert model.encoder.embeddings.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 23), (1, 24), (24,), (2, 6, 4), (2, 2, 12), (2, 4, 6, 1)])
def test_mask_of_another_shape_fails_with_the_shapes_that_fit(shape):
    with pytest.raises(ValueError, match=r"bool_masked_pos must have one entry per patch, \(2, 24\) or \(2, 4, 6\)"):
        tiny_model("vit")(pixels(), bool_masked_pos=torch.zeros(shape, dtype=torch.bool))


# ---- attention ----


def test_queries_values_and_outputs_have_a_bias_and_keys_have_none():
    attention = tiny_model("vit").encoder.layers[0].attention
    layers = dict(attention.named_children())
    assert {name: module.bias is not None for name, module in layers.items()} == {
        "q_proj": True, "k_proj": False, "v_proj": True, "o_proj": True,
    }  # fmt: skip
    assert {tuple(module.weight.shape) for module in layers.values()} == {(32, 32)}


def test_lora_adapts_exactly_the_chosen_layers():
    model = tiny_model("vit")
    peft_model = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    adapted = sorted(name for name, _ in peft_model.named_modules() if name.endswith("lora_A"))
    assert len(adapted) == 2 * 3
    assert {name.split(".")[-2] for name in adapted} == {"q_proj", "v_proj"}
    trainable = sum(p.numel() for p in peft_model.parameters() if p.requires_grad)
    assert trainable == 2 * 3 * 2 * (32 + 32)


NEEDS_COMPILER = pytest.mark.skipif(not shutil.which("c++"), reason="flex attention on the CPU needs a C++ compiler")


@torch.no_grad()
@pytest.mark.parametrize("name", ["sdpa", pytest.param("flex_attention", marks=[NEEDS_COMPILER, pytest.mark.slow])])
def test_attention_back_ends_agree_with_eager(name):
    model, image = tiny_model("vit"), pixels(2, 64, 80)
    model.set_attn_implementation("eager")
    expected = model(image).last_hidden_state
    model.set_attn_implementation(name)
    assert model.encoder.config._attn_implementation == name
    assert max_abs(model(image).last_hidden_state, expected) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_output_attentions_are_those_of_eager_and_sum_to_one(implementation):
    model, image = tiny_model("vit", attn_implementation=implementation), pixels()
    outputs = model(image, output_attentions=True)
    assert len(outputs.attentions) == 3
    for weights in outputs.attentions:
        assert weights.shape == (2, 4, 27, 27)
        assert max_abs(weights.sum(-1), torch.ones(2, 4, 27)) < 1e-5
        assert weights.std(-1).mean() > 0.01  # sharp enough to tell rows apart
    expected = tiny_model("vit", attn_implementation="eager")(image, output_attentions=True).attentions
    assert max(max_abs(a, b) for a, b in zip(outputs.attentions, expected, strict=True)) < 1e-6
    assert max_abs(outputs.last_hidden_state, model(image).last_hidden_state) < 1e-5
    assert model(image).attentions is None
    assert model(image, output_attentions=False).attentions is None


def test_output_attentions_from_the_config():
    model = tiny_model("vit", attn_implementation="eager", output_attentions=True)
    assert len(model(pixels()).attentions) == 3
    assert model(pixels(), output_attentions=False).attentions is None


CHOSEN = [
    ([0], None),
    ((2,), [0]),
    ([-1], (0, 5, 26)),
    ([0, 2], [-1]),
    ([2, 0], None),
    ([1, 1], [0, 0]),
    ([-3, 2, -1], range(3)),
    (range(3), None),
]


@pytest.mark.parametrize(("layers", "queries"), CHOSEN)
def test_attention_maps_equal_eager_attentions_of_the_chosen_layers(layers, queries):
    model, image = tiny_model("vit"), pixels()
    maps = model.attention_maps(image, layers=layers, queries=queries)
    expected = tiny_model("vit", attn_implementation="eager")(image, output_attentions=True).attentions
    assert isinstance(maps, tuple)
    assert len(maps) == len(layers)
    for found, layer in zip(maps, layers, strict=True):
        wanted = expected[layer] if queries is None else expected[layer][:, :, list(queries)]
        assert max_abs(found, wanted) < 1e-6
        assert max_abs(found.sum(-1), torch.ones(found.shape[:-1])) < 1e-5


def test_attention_maps_default_to_the_last_block():
    model, image = tiny_model("vit"), pixels()
    (found,) = model.attention_maps(image)
    assert torch.equal(found, model.attention_maps(image, layers=[2])[0])


def test_attention_maps_use_eager_attention_nowhere_and_stop_at_the_last_layer(monkeypatch):
    model, image = tiny_model("vit", attn_implementation="sdpa"), pixels()

    def refuse(*args, **kwargs):
        raise AssertionError("slow attention was used")

    monkeypatch.setattr(modeling_eupe_vit, "eager_attention_forward", refuse)
    run = []
    for i, block in enumerate(model.encoder.layers):
        block.mlp.register_forward_hook(lambda *_, i=i: run.append(i))
    assert len(model.attention_maps(image, layers=[0, 2])) == 2
    assert run == [0, 1]
    run.clear()
    model.attention_maps(image, layers=[1])
    assert run == [0]


def test_attention_maps_of_half_precision_sum_to_one():
    model = tiny_model("vit").to(torch.bfloat16)
    (weights,) = model.attention_maps(pixels())
    assert weights.dtype == torch.bfloat16
    assert max_abs(weights.float().sum(-1), torch.ones(2, 4, 27)) < 0.02


@pytest.mark.parametrize("layers", [[], [3], [-4], [0, 99]])
def test_attention_maps_of_a_layer_that_is_not_there_fail(layers):
    with pytest.raises(ValueError, match=r"layers must name blocks from -3 to 2, got \["):
        tiny_model("vit").attention_maps(pixels(), layers=layers)


def test_attention_maps_of_a_token_that_is_not_there_fail():
    with pytest.raises(IndexError, match="index 27 is out of bounds"):
        tiny_model("vit").attention_maps(pixels(), queries=[27])


# ---- initialisation ----


def test_initial_values_are_those_of_the_config():
    torch.manual_seed(0)
    fields = {"layerscale_value": 0.25, "initializer_range": 0.05, "hidden_size": 64}
    model = EupeModel(EupeConfig(**tiny_fields("vit", **fields)))
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            assert torch.equal(parameter, torch.full((64,), 0.25)), name
        elif "norm" in name and name.endswith("weight"):
            assert torch.equal(parameter, torch.ones(64)), name
        elif name.endswith("bias") or "mask_token" in name:
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif parameter.numel() > 1000:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1), name
        else:
            assert 0 < parameter.abs().max() < 0.3, name


def test_model_without_registers_has_only_the_class_token_before_the_patches():
    model = randomise(EupeModel(tiny_config("vit", num_register_tokens=0))).eval()
    tokens = model(pixels()).last_hidden_state
    assert tokens.shape == (2, 1 + 24, 32)
    assert max_abs(tokens[0], torch.from_numpy(reference_vit(model, pixels()[:1]))) < 1e-5
