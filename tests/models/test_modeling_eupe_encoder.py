# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Stochastic depth in both families: which samples skip which blocks, and when nothing is drawn."""

from unittest import mock

import pytest
import torch
from modeling_common import FAMILIES, blocks_of, max_abs, pixels, tiny_config, tiny_model

from eupe_hf import EupeForImageClassification, EupeModel, variant_config
from eupe_hf.models import modeling_eupe_convnext, modeling_eupe_vit
from eupe_hf.models.modeling_eupe_encoder import drop_path


BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def trained(family: str, **overrides) -> EupeModel:
    """A tiny encoder in train mode in which nothing but stochastic depth is random."""
    fields = {"pos_embed_rescale": None} if family == "vit" else {}
    return tiny_model(family, **{"drop_path_rate": 0.4, **fields, **overrides}).train()


# ---- one branch ----


def test_whole_samples_are_dropped_and_the_others_scaled():
    torch.manual_seed(0)
    branch = torch.randn(400, 3, 5)
    dropped = drop_path(branch, 0.25)
    is_zero = (dropped == 0).flatten(1)
    assert torch.equal(is_zero.all(dim=1), is_zero.any(dim=1))
    kept = ~is_zero[:, 0]
    assert 0.65 < kept.float().mean() < 0.85
    torch.testing.assert_close(dropped[kept], branch[kept] / 0.75)


def test_expectation_of_a_branch_is_preserved():
    torch.manual_seed(0)
    dropped = drop_path(torch.full((100_000, 1), 3.0), 0.4)
    assert dropped.mean().item() == pytest.approx(3.0, abs=0.03)  # four standard errors


def test_rate_zero_gives_the_branch_itself_and_draws_nothing():
    branch, state = torch.randn(2, 3), torch.get_rng_state()
    assert drop_path(branch, 0.0) is branch
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_of_a_branch_stays(dtype):
    assert drop_path(torch.ones(8, 2, dtype=dtype), 0.5).dtype == dtype


# ---- blocks and encoders ----


@BY_FAMILY
def test_block_leaves_dropped_samples_as_they_are_and_doubles_the_branch_of_others(family):
    torch.manual_seed(0)
    model = trained(family)
    block = blocks_of(model)[1]
    if family == "vit":
        torch.nn.init.zeros_(block.layer_scale2)  # one branch is left, which is easier to follow
        states = torch.randn(32, 2 + 1 + 24, 32)
        options = {"position_embeddings": model.encoder.rotary(4, 6, torch.device("cpu"))}
    else:
        states, options = torch.randn(32, block.gamma.numel(), 4, 6), {}
    full = block(states, **options) - states
    found = block(states, drop_path_rate=0.5, **options) - states
    dropped = (found == 0).flatten(1).all(dim=1)
    assert 0 < dropped.sum() < 32
    assert max_abs(found[~dropped], 2 * full[~dropped]) < 1e-5


@BY_FAMILY
def test_rate_grows_linearly_over_the_blocks(family):
    module = modeling_eupe_vit if family == "vit" else modeling_eupe_convnext
    with mock.patch.object(module, "drop_path", wraps=drop_path) as spy:
        trained(family)(pixels())
    rates = [call.args[1] for call in spy.call_args_list]
    expected = [0, 0, 0.2, 0.2, 0.4, 0.4] if family == "vit" else [0, 0.1, 0.2, 0.3, 0.4]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("fields", [{"num_hidden_layers": 1}, {"depths": [1], "hidden_sizes": [8]}])
def test_only_block_is_never_skipped(fields):
    model = trained("vit" if "num_hidden_layers" in fields else "convnext", **fields)
    assert torch.equal(model(pixels()).last_hidden_state, model.eval()(pixels()).last_hidden_state)


@BY_FAMILY
def test_samples_of_a_batch_take_different_ways_and_no_two_passes_are_equal(family):
    torch.manual_seed(0)
    model = trained(family, drop_path_rate=0.5)
    image = pixels(1).expand(8, -1, -1, -1)
    first, second = model(image).pooler_output, model(image).pooler_output
    assert not torch.equal(first, second)
    assert len({tuple(row.tolist()) for row in first}) > 1


@BY_FAMILY
@pytest.mark.parametrize("mode", ["eval", "frozen"])
def test_eval_and_frozen_encoders_draw_nothing(family, mode):
    image, expected = pixels(), tiny_model(family)(pixels()).last_hidden_state
    model = trained(family, drop_path_rate=0.9)
    model = model.eval() if mode == "eval" else model.requires_grad_(False)
    state = torch.get_rng_state()
    assert torch.equal(model(image).last_hidden_state, expected)
    assert torch.equal(torch.get_rng_state(), state)


@BY_FAMILY
def test_frozen_backbone_of_a_head_that_trains_draws_nothing(family):
    model = EupeForImageClassification(tiny_config(family, drop_path_rate=0.9, num_labels=3)).train()
    model.freeze_backbone()
    assert torch.equal(model(pixels()).logits, model(pixels()).logits)


@BY_FAMILY
def test_rate_changes_neither_the_state_dict_nor_the_exported_graph(family):
    plain, model = tiny_model(family), trained(family).eval()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in plain.named_modules()]
    graphs = [torch.export.export(m, (), {"pixel_values": pixels()}).graph for m in (plain, model)]
    nodes = [[(node.op, str(node.target)) for node in graph.nodes] for graph in graphs]
    assert nodes[0] == nodes[1]
    assert not any("bernoulli" in target for _, target in nodes[0])


@BY_FAMILY
def test_rate_is_saved_and_loaded(family, tmp_path):
    trained(family, drop_path_rate=0.25).save_pretrained(tmp_path)
    assert EupeModel.from_pretrained(tmp_path).config.drop_path_rate == 0.25
    assert EupeModel.from_pretrained(tmp_path, drop_path_rate=0.5).encoder.config.drop_path_rate == 0.5
    name = "eupe-t" if family == "vit" else "eupe-convnext-t"
    assert variant_config(name, drop_path_rate=0.1).drop_path_rate == 0.1
    assert variant_config(name).drop_path_rate == 0.0


@BY_FAMILY
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_drops_the_same_samples_in_backward(family, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = trained(family, drop_path_rate=0.6)
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(3)
        image = pixels(6).requires_grad_()
        outputs = model(image)
        outputs.pooler_output.square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        gradients[-1]["image"] = image.grad
    plain, checkpointed = gradients
    assert set(plain) == set(checkpointed)
    for name, gradient in plain.items():
        assert torch.equal(gradient, checkpointed[name]), name


@BY_FAMILY
def test_training_compiles_to_one_graph(family):
    model = trained(family)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(1)
    found = compiled(pixels(4)).last_hidden_state
    torch.manual_seed(1)
    torch.testing.assert_close(found, model(pixels(4)).last_hidden_state)
