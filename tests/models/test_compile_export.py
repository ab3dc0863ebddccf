# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
import warnings

import pytest
import torch
from modeling_common import FAMILIES, blocks_of, max_abs, pixels, tiny_backbone, tiny_model
from torch._dynamo.utils import counters
from torch.export import Dim, export


both_families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@both_families
@pytest.mark.parametrize(
    ("build", "backend"), [(tiny_model, "eager"), (tiny_model, "aot_eager"), (tiny_backbone, "eager")]
)
def test_whole_model_compiles_to_one_graph_once(family, build, backend, dynamo):
    model, image = build(family), pixels()
    expected = model(image)[0]
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True), warnings.catch_warnings():
        warnings.simplefilter("error")  # a cache or another thing that the compiler had to step over
        for _ in range(2):
            found = compiled(image)[0]
            pair = (found, expected) if build is tiny_model else (found[0], expected[0])
            assert max_abs(*pair) < 1e-6
    assert dynamo["stats"]["unique_graphs"] == 1
    assert not dynamo["graph_break"]


def test_compiles_with_mask_hidden_states_and_attentions(dynamo):
    model, image = tiny_model("vit"), pixels()
    kwargs = {
        "bool_masked_pos": torch.eye(2, 24, dtype=torch.bool),
        "output_hidden_states": True,
        "output_attentions": True,
    }
    found, expected = torch.compile(model, fullgraph=True, backend="eager")(image, **kwargs), model(image, **kwargs)
    assert max_abs(found.last_hidden_state, expected.last_hidden_state) < 1e-6
    assert max_abs(found.hidden_states[1], expected.hidden_states[1]) < 1e-6
    assert max_abs(found.attentions[2], expected.attentions[2]) < 1e-6
    assert dynamo["stats"]["unique_graphs"] == 1


@both_families
def test_compiled_training_gives_equal_gradients(family, dynamo):
    image, gradients = pixels(), []
    for compiled in (False, True):
        model = tiny_model(family).requires_grad_(True)
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        run(image).pooler_output.square().mul(torch.arange(model.config.hidden_size)).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        assert max_abs(gradient, gradients[1][name]) <= 1e-5 * gradient.abs().max().item(), name


@both_families
@pytest.mark.parametrize("output_hidden_states", [False, True])
def test_blocks_compiled_one_by_one_share_a_graph(family, output_hidden_states, dynamo):
    depths = {"num_hidden_layers": 5} if family == "vit" else {"depths": [2, 2, 3, 2]}
    model, image = tiny_model(family, **depths), pixels()
    expected = model(image, output_hidden_states=output_hidden_states)
    for block in blocks_of(model):
        block.compile(fullgraph=True, backend="eager")
    # blocks of a ViT are alike; a ConvNeXt has one kind of block per stage
    kinds = 1 if family == "vit" else 4
    for _ in range(2):
        found = model(image, output_hidden_states=output_hidden_states)
        assert dynamo["stats"]["unique_graphs"] == kinds
    assert max_abs(found.last_hidden_state, expected.last_hidden_state) < 1e-6
    if output_hidden_states:
        assert all(max_abs(a, b) < 1e-6 for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))


@pytest.mark.parametrize(("family", "dynamic"), [("vit", None), ("vit", True), ("convnext", None)])
def test_many_sizes_compile_to_few_graphs(family, dynamic, dynamo):
    depth = {"num_hidden_layers": 1} if family == "vit" else {"depths": [1, 1], "hidden_sizes": [8, 12]}
    model = tiny_model(family, **depth)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=dynamic)
    sizes = [(2, 64, 64), (2, 96, 128), (3, 64, 160), (4, 100, 70), (5, 160, 96), (6, 64, 64)]
    for size in sizes:
        image = pixels(*size)
        assert max_abs(compiled(image).last_hidden_state, model(image).last_hidden_state) < 1e-5
    assert dynamo["stats"]["unique_graphs"] <= 3


class _Outputs(torch.nn.Module):
    # the exporter takes tensors, not transformers' output classes
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, return_dict=False)


@both_families
def test_export_takes_any_batch_and_size(family):
    model = tiny_model(family).requires_grad_(False)
    dims = {0: Dim("batch", min=1, max=64), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    program = export(_Outputs(model), (), {"pixel_values": pixels()}, dynamic_shapes={"pixel_values": dims}).module()
    for size in [(1, 64, 96), (4, 160, 64), (3, 77, 130)]:
        image = pixels(*size)
        expected = model(image)
        tokens, pooled = program(pixel_values=image)
        assert max_abs(tokens, expected.last_hidden_state) < 1e-6
        assert max_abs(pooled, expected.pooler_output) < 1e-6
    assert (
        max_abs(program(pixel_values=torch.zeros(1, 3, 64, 64))[0], program(pixel_values=pixels(1, 64, 64))[0]) > 0.1
    )
