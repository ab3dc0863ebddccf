# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
import copy

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from modeling_common import FAMILIES, blocks_of, max_abs, pixels, randomise, tiny_backbone, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoBackbone, AutoModel

from eupe_hf import EupeBackbone, EupeModel
from eupe_hf.models.modeling_eupe import EupeBackboneOutput


both_families = pytest.mark.parametrize("family", FAMILIES)
# grid of the last stage, of an image of 64 x 96: 4 x 6 patches of 16, or 2 x 3 of 32
GRIDS = {"vit": (4, 6), "convnext": (2, 3)}
WIDTHS = {"vit": 32, "convnext": 20}
STAGES = {"vit": 3, "convnext": 4}


# ---- shapes and contract ----


@both_families
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 160), (160, 32), (32, 32), (79, 100), (250, 230)])
def test_output_shapes_at_any_size(family, height, width):
    model = tiny_model(family)
    outputs = model(pixels(3, height, width))
    stride, prefix, channels = model.config.patch_size, model.config.num_prefix_tokens, WIDTHS[family]
    assert outputs.last_hidden_state.shape == (3, prefix + (height // stride) * (width // stride), channels)
    assert outputs.pooler_output.shape == (3, channels)
    assert outputs.hidden_states is None
    assert outputs.attentions is None
    assert torch.isfinite(outputs.last_hidden_state).all()


def test_pooler_output_of_a_vit_is_its_class_token():
    outputs = tiny_model("vit")(pixels())
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


def test_pixels_beyond_the_last_whole_patch_are_not_read():
    model, image = tiny_model("vit"), pixels(1, 250, 230)
    outputs = model(image)
    assert outputs.last_hidden_state.shape[1] == 3 + 15 * 14
    assert torch.equal(model(image[:, :, :240, :224]).last_hidden_state, outputs.last_hidden_state)


@both_families
def test_batch_equals_single_images(family):
    model, images = tiny_model(family), pixels(4, 96, 64)
    batch = model(images)
    for i in range(4):
        single = model(images[i : i + 1])
        # matrix products of other sizes are summed in another order: float32 rounding, of features of order one
        assert max_abs(batch.last_hidden_state[i : i + 1], single.last_hidden_state) < 5e-6
        assert max_abs(batch.pooler_output[i : i + 1], single.pooler_output) < 5e-6


@both_families
def test_every_weight_matters(family):
    model, image = tiny_model(family).train(), pixels()
    kwargs = {"bool_masked_pos": torch.eye(2, 24, dtype=torch.bool)} if family == "vit" else {}
    outputs = model(image, **kwargs)
    # random weights of the sums: a plain sum is blind, normed features of a token sum to a constant
    projection = torch.randn(outputs.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
    ((outputs.last_hidden_state * projection).sum() + outputs.pooler_output.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-6, name


@both_families
def test_return_dict_false_gives_a_tuple(family):
    model, image = tiny_model(family), pixels()
    outputs = model(image, output_hidden_states=True)
    plain = model(image, output_hidden_states=True, return_dict=False)
    assert type(plain) is tuple
    assert len(plain) == 3
    assert torch.equal(plain[0], outputs.last_hidden_state)
    assert torch.equal(plain[1], outputs.pooler_output)
    assert len(plain[2]) == STAGES[family] + 1
    model.config.return_dict = False
    assert type(model(image)) is tuple
    assert type(tiny_backbone(family)(image, return_dict=False)) is tuple


@both_families
@pytest.mark.parametrize(
    ("requested", "indices"),
    [(True, None), (0, [0]), (-1, [-1]), ([1, -1], [1, -1]), ((2,), [2]), ([0, 0, 1], [0, 1])],
)
def test_hidden_states_come_as_requested(family, requested, indices):
    model, image = tiny_model(family), pixels()
    everything = model(image, output_hidden_states=True).hidden_states
    count = STAGES[family] + 1
    assert len(everything) == count
    found = model(image, output_hidden_states=requested).hidden_states
    assert len(found) == count
    wanted = set(range(count)) if indices is None else {index % count for index in indices}
    for i, state in enumerate(found):
        if i in wanted:
            assert torch.equal(state, everything[i])
        else:
            assert state is None


@both_families
def test_hidden_states_are_those_before_the_norm(family):
    model, image = tiny_model(family), pixels()
    outputs = model(image, output_hidden_states=True)
    last = outputs.hidden_states[-1]
    if family == "convnext":
        assert last.shape == (2, 20, 2, 3)
        last = last.flatten(2).transpose(1, 2)
    assert torch.equal(model.norm(last), outputs.last_hidden_state)
    first = model.encoder.stem(image) if family == "convnext" else model.encoder.embeddings(image, None)[0]
    assert max_abs(outputs.hidden_states[0], first) < 1e-6


@both_families
def test_hidden_states_from_the_config(family):
    model = randomise(EupeModel(tiny_config(family, output_hidden_states=True))).eval()
    assert len(model(pixels()).hidden_states) == STAGES[family] + 1
    assert model(pixels(), output_hidden_states=False).hidden_states is None


@both_families
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_pixels_are_cast_to_the_dtype_of_the_weights(family, dtype):
    model, image = tiny_model(family), pixels().to(dtype)
    features = model(image).last_hidden_state
    assert features.dtype == torch.float32
    assert torch.equal(features, model(image.float()).last_hidden_state)


# ---- errors ----

WRONG_PIXELS = [
    (torch.zeros(3, 64, 64), r"\(batch, 3, height, width\), got \(3, 64, 64\).*processor\(images"),
    (torch.zeros(1, 1, 64, 64), r"\(batch, 3, height, width\), got \(1, 1, 64, 64\)"),
    (torch.zeros(1, 64, 64, 3), r"\(batch, 3, height, width\), got \(1, 64, 64, 3\)"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r"normalised floats, got torch.uint8.*processor\(images"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.int64), r"normalised floats, got torch.int64"),
    (torch.zeros(1, 3, 15, 64), r"at least \d\d x \d\d pixels, one patch, got 15 x 64"),
    (torch.zeros(1, 3, 64, 8), r"at least \d\d x \d\d pixels, one patch, got 64 x 8"),
]


@both_families
@pytest.mark.parametrize("build", [tiny_model, tiny_backbone])
@pytest.mark.parametrize(("pixel_values", "message"), WRONG_PIXELS)
def test_wrong_pixels_fail_saying_what_to_do(family, build, pixel_values, message):
    with pytest.raises(ValueError, match=f"pixel_values must be {message}"):
        build(family)(pixel_values)


def test_smallest_image_is_one_patch():
    assert tiny_model("vit")(pixels(1, 16, 16)).last_hidden_state.shape == (1, 3 + 1, 32)
    assert tiny_model("convnext")(pixels(1, 32, 32)).last_hidden_state.shape == (1, 1, 20)
    with pytest.raises(ValueError, match="at least 32 x 32"):
        tiny_model("convnext")(pixels(1, 31, 32))


# ---- backbone ----


@both_families
def test_backbone_defaults_to_the_last_stage_normed(family):
    backbone, model, image = tiny_backbone(family), tiny_model(family), pixels()
    outputs = backbone(image)
    assert type(outputs) is EupeBackboneOutput
    assert outputs.cls_tokens is None
    assert outputs.hidden_states is None
    (feature_map,) = outputs.feature_maps
    assert feature_map.shape == (2, WIDTHS[family], *GRIDS[family])
    patches = model(image).last_hidden_state[:, model.config.num_prefix_tokens :]
    assert max_abs(feature_map.flatten(2).transpose(1, 2), patches) < 1e-6
    assert backbone.channels == [WIDTHS[family]]


@both_families
def test_backbone_shares_the_names_of_the_weights_with_the_model(family):
    assert set(tiny_backbone(family).state_dict()) == set(tiny_model(family).state_dict())


@both_families
@pytest.mark.parametrize("indices", [[0], [1, 3], [0, 1, 2, 3], [-1], [-3, -1]])
def test_backbone_gives_the_stages_of_out_indices(family, indices):
    backbone, image = tiny_backbone(family, out_indices=indices, apply_layernorm=False), pixels()
    states = tiny_model(family)(image, output_hidden_states=True).hidden_states
    outputs = backbone(image)
    assert len(outputs.feature_maps) == len(backbone.channels) == len(indices)
    for feature_map, index, channels in zip(outputs.feature_maps, indices, backbone.channels, strict=True):
        expected = states[index]
        if family == "vit":
            expected = expected[:, 3:].transpose(1, 2).unflatten(2, GRIDS["vit"])
        assert max_abs(feature_map, expected) < 1e-6
        assert feature_map.shape[1] == channels


@both_families
def test_backbone_takes_names_of_stages(family):
    named = tiny_backbone(family, out_features=["stem", "stage2"])
    assert named.out_indices == [0, 2]
    numbered = tiny_backbone(family, out_indices=[0, 2])
    assert numbered.out_features == ["stem", "stage2"]
    found, expected = named(pixels()).feature_maps, numbered(pixels()).feature_maps
    assert len(found) == 2
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_strides_of_the_stages():
    image = pixels(1, 128, 192)
    maps = tiny_backbone("convnext", out_indices=[0, 1, 2, 3, 4])(image).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 32, 48), (8, 32, 48), (12, 16, 24), (16, 8, 12), (20, 4, 6)]
    maps = tiny_backbone("vit", out_indices=[0, 1, 2, 3])(image).feature_maps
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 8, 12)] * 4


def test_norm_is_applied_to_all_maps_of_a_vit_and_to_the_last_of_a_convnext():
    for family, normed_stages in [("vit", {0, 1, 2, 3}), ("convnext", {4})]:
        indices = list(range(STAGES[family] + 1))
        normed = tiny_backbone(family, out_indices=indices)
        raw = tiny_backbone(family, out_indices=indices, apply_layernorm=False)
        maps, raw_maps = normed(pixels()).feature_maps, raw(pixels()).feature_maps
        for i in indices:
            if i in normed_stages:
                expected = normed.norm(raw_maps[i].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                assert max_abs(maps[i], expected) < 1e-6
                assert max_abs(maps[i], raw_maps[i]) > 1e-2
            else:
                assert torch.equal(maps[i], raw_maps[i])


@pytest.mark.parametrize("apply_layernorm", [True, False])
def test_unreshaped_hidden_states_are_class_token_and_patches_without_registers(apply_layernorm):
    backbone = tiny_backbone("vit", out_indices=[2], reshape_hidden_states=False, apply_layernorm=apply_layernorm)
    (tokens,) = backbone(pixels()).feature_maps
    state = tiny_model("vit")(pixels(), output_hidden_states=2).hidden_states[2]
    state = backbone.norm(state) if apply_layernorm else state
    assert tokens.shape == (2, 1 + 24, 32)
    assert max_abs(tokens, torch.cat((state[:, :1], state[:, 3:]), dim=1)) < 1e-6


@both_families
@pytest.mark.parametrize("apply_layernorm", [True, False])
def test_class_tokens_come_with_the_maps(family, apply_layernorm):
    last = STAGES[family]
    fields = {"out_indices": [1, last], "return_class_token": True, "apply_layernorm": apply_layernorm}
    backbone, model = tiny_backbone(family, **fields), tiny_model(family)
    tokens = backbone(pixels()).cls_tokens
    outputs = model(pixels(), output_hidden_states=True)
    for token, index in zip(tokens, [1, last], strict=True):
        state = outputs.hidden_states[index]
        expected = state[:, 0] if family == "vit" else state.mean(dim=(2, 3))
        if apply_layernorm and (family == "vit" or index == last):
            expected = model.norm(expected)
        assert max_abs(token, expected) < 1e-6
    if apply_layernorm:
        assert max_abs(tokens[-1], outputs.pooler_output) < 1e-6


@both_families
def test_backbone_gives_hidden_states_and_attentions_on_request(family):
    backbone, model, image = tiny_backbone(family), tiny_model(family), pixels()
    outputs = backbone(image, output_hidden_states=[1], output_attentions=True)
    expected = model(image, output_hidden_states=True).hidden_states
    assert [state is not None for state in outputs.hidden_states] == [i == 1 for i in range(len(expected))]
    assert max_abs(outputs.hidden_states[1], expected[1]) < 1e-6
    assert (len(outputs.attentions) if family == "vit" else outputs.attentions) == (3 if family == "vit" else None)


# ---- nothing random, nothing hidden ----


@both_families
@pytest.mark.parametrize("build", [tiny_model, tiny_backbone])
def test_eval_mode_is_deterministic_and_draws_nothing(family, build):
    model, image = build(family), pixels()
    state = torch.get_rng_state()
    first, second = model(image, return_dict=False)[0], model(image, return_dict=False)[0]
    first, second = (x[0] if isinstance(x, tuple) else x for x in (first, second))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@both_families
def test_there_are_no_buffers_and_every_tensor_is_a_parameter(family):
    model = tiny_model(family)
    assert list(model.named_buffers()) == []
    parameters = dict(model.named_parameters())
    assert set(model.state_dict()) == set(parameters)
    held = [v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor)]
    assert held == []


# ---- gradient checkpointing ----


@both_families
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(family, use_reentrant):
    image = pixels().requires_grad_()  # without it re-entrant checkpoints have no gradient
    gradients, runs = [], []
    for checkpointing in (False, True):
        model = tiny_model(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        first = blocks_of(model)[0]
        inner = first.mlp if family == "vit" else first.layer_norm
        inner.register_forward_hook(lambda *_, on=checkpointing: runs.append(on))
        torch.manual_seed(0)  # of the random rescaling of coordinates, which must not be drawn twice
        model(image).last_hidden_state.square().mul(torch.arange(WIDTHS[family])).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert runs == [False, True, True]  # with checkpoints once more in the backward pass
    assert len(gradients[0]) > 50
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


# ---- building and loading ----


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    model = tiny_model(request.param)
    model.save_pretrained(tmp_path)
    return model, tmp_path


@both_families
def test_auto_classes_build_both(family):
    assert type(AutoModel.from_config(tiny_config(family))) is EupeModel
    assert type(AutoBackbone.from_config(tiny_config(family))) is EupeBackbone


@pytest.mark.parametrize("loader", [EupeModel, AutoModel])
def test_loaded_tensors_equal_those_in_the_file(saved, loader):
    model, folder = saved
    loaded = loader.from_pretrained(folder)
    on_disk = load_file(folder / "model.safetensors")
    assert set(on_disk) == set(model.state_dict()) == set(loaded.state_dict())
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, on_disk[name]), name
    assert not loaded.training
    assert torch.equal(loaded(pixels()).last_hidden_state, model(pixels()).last_hidden_state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_at_loading_is_that_of_every_parameter(saved, dtype):
    model, folder = saved
    loaded = EupeModel.from_pretrained(folder, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    features = loaded(pixels()).last_hidden_state
    assert features.dtype == dtype
    assert max_abs(features, model(pixels()).last_hidden_state) < (1e-5 if dtype == torch.float64 else 0.2)


DISK = {
    "vit": {"encoder.embeddings": "cpu", "encoder.rotary": "cpu", "encoder.layers": "disk", "norm": "cpu"},
    "convnext": {"encoder.stem": "cpu", "encoder.stages": "disk", "norm": "cpu"},
}


@pytest.mark.parametrize("device_map", ["auto", "cpu", "disk"])
def test_device_map_gives_equal_features(saved, device_map):
    model, folder = saved
    device_map = DISK[model.config.backbone_type] if device_map == "disk" else device_map
    loaded = EupeModel.from_pretrained(folder, device_map=device_map, offload_folder=folder / "offload")
    on_meta = sum(parameter.is_meta for parameter in loaded.parameters())
    assert (on_meta > 40) is isinstance(device_map, dict)
    assert torch.equal(loaded(pixels()).last_hidden_state, model(pixels()).last_hidden_state)


def test_empty_weights_are_filled_from_a_folder(saved):
    model, folder = saved
    with init_empty_weights():
        empty = EupeModel(model.config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    filled = load_checkpoint_and_dispatch(empty, folder, device_map={"": "cpu"}).eval()
    assert torch.equal(filled(pixels()).last_hidden_state, model(pixels()).last_hidden_state)


def _from_meta(config):
    with torch.device("meta"):
        model = EupeModel(config)
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, float("nan"))  # what uninitialised memory may hold
    model.init_weights()
    return model


@both_families
@pytest.mark.parametrize("build", [AutoModel.from_config, AutoBackbone.from_config, _from_meta])
def test_every_parameter_is_finite_after_building(family, build):
    model = build(tiny_config(family)).eval()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name
    output = model(pixels(), return_dict=False)[0]
    assert torch.isfinite(output[0] if isinstance(output, tuple) else output).all()


def _without(folder, *keys):
    tensors = load_file(folder / "model.safetensors")
    save_file({k: t for k, t in tensors.items() if k not in keys}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("key", ["norm.weight", "first_block"])
def test_missing_weight_of_the_encoder_fails_naming_it(saved, key):
    model, folder = saved
    key = next(k for k in model.state_dict() if "layers.0" in k) if key == "first_block" else key
    _without(folder, key)
    with pytest.raises(ValueError, match=rf"lacks 1 weights of the encoder, among them {key}"):
        EupeModel.from_pretrained(folder)
    loaded, info = EupeModel.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) == {key}
    assert all(torch.isfinite(parameter).all() for parameter in loaded.parameters())


def test_misshapen_weight_fails(saved):
    _, folder = saved
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        EupeModel.from_pretrained(folder)


@both_families
def test_deep_copy_computes_the_same_and_shares_nothing(family):
    model = tiny_model(family)
    twin = copy.deepcopy(model)
    expected = model(pixels()).last_hidden_state
    randomise(model, seed=1)
    assert torch.equal(twin(pixels()).last_hidden_state, expected)
