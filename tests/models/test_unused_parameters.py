# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a task does not use is neither trained nor computed: distributed training waits for every gradient."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, ROOT, tiny_config
from torch import nn
from transformers import LlamaConfig

from eupe_hf import (
    EupeBackbone,
    EupeForMultiTask,
    EupeForObjectDetection,
    EupeForSegmentation,
    EupeLlavaConfig,
    EupeLlavaModel,
    EupeModel,
    EupeMultiTaskConfig,
    EupePyramidBackbone,
    EupePyramidConfig,
)
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS


# `None`: as by default, the last stage (a ConvNeXt's detection head: the last three)
STAGES = {"vit": (None, [1], [-2]), "convnext": (None, [1, 2], [0])}
MODELS = [(task, family, stages) for task in TASK_MODELS for family in FAMILIES for stages in STAGES[family]]


def labels_of(task: str, batch: int) -> Any:
    """Labels of images of 64 x 64 pixels."""
    boxes = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}
    maps = torch.ones(batch, 64, 64)
    return {"classification": torch.ones(batch).long(), "segmentation": maps.long(), "depth": maps}.get(
        task, [boxes] * batch
    )


def task_model(task: str, family: str, stages: list[int] | None = None, **fields: Any) -> nn.Module:
    torch.manual_seed(0)
    chosen = {} if stages is None else {"out_indices": stages}
    return TASK_MODELS[task](tiny_config(family, num_labels=2, detection_hidden_size=8, **chosen, **fields)).train()


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_all_that_trains_has_a_gradient(model: nn.Module, loss: torch.Tensor) -> None:
    loss.backward()
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {name for name, parameter in model.named_parameters() if parameter.grad is not None}


def frozen(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("task", "family", "stages"), MODELS)
def test_every_parameter_that_trains_has_a_gradient(
    task: str, family: str, stages: list[int] | None, checkpointing: bool
) -> None:
    model = task_model(task, family, stages)
    if checkpointing:
        model.activation_checkpointing_enable()
    assert_all_that_trains_has_a_gradient(model, model(pixels(), labels=labels_of(task, 2)).loss)


@pytest.mark.parametrize(("task", "family", "stages"), MODELS)
def test_loaded_model_leaves_out_the_same_and_all_weights_are_saved(
    task: str, family: str, stages: list[int] | None, tmp_path: Path
) -> None:
    model = task_model(task, family, stages)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert frozen(again) == frozen(model)
    assert again.state_dict().keys() == model.state_dict().keys()
    again.freeze_backbone()
    again.unfreeze_backbone()
    assert frozen(again) == frozen(model)


def test_frozen_are_the_mask_token_later_blocks_and_a_norm_that_is_not_applied() -> None:
    assert frozen(task_model("segmentation", "vit")) == {"eupe.encoder.embeddings.mask_token"}
    assert not frozen(task_model("segmentation", "convnext"))
    early = frozen(task_model("segmentation", "vit", [1]))
    assert {name.split(".layers.")[-1].split(".")[0] for name in early if ".layers." in name} == {"1"}
    assert not any(".norm.weight" in name for name in early)  # it is applied to every map of a ViT
    assert "eupe.norm.weight" in frozen(task_model("segmentation", "vit", apply_layernorm=False))
    early = frozen(task_model("segmentation", "convnext", [1, 2]))
    assert {name.split(".")[3] for name in early if ".stages." in name} == {"2", "3"}
    assert "eupe.norm.weight" in early  # of a ConvNeXt it is the norm of the last stage


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_encoder_trains_with_and_without_masks(family: str) -> None:
    model = EupeModel(tiny_config(family)).train()
    assert not frozen(model)
    assert_all_that_trains_has_a_gradient(model, model(pixels()).last_hidden_state.square().sum())
    if family == "vit":
        assert model.encoder.embeddings.mask_token.grad.abs().sum() == 0
        masked = model(pixels(), bool_masked_pos=torch.ones(2, 16, dtype=torch.bool)).last_hidden_state
        masked.square().sum().backward()
        assert model.encoder.embeddings.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("last", [1, 2])
def test_later_blocks_are_not_computed_and_states_are_the_same(family: str, last: int) -> None:
    backbone = EupeBackbone(tiny_config(family, out_indices=[0, last])).eval()
    blocks = backbone.encoder.layers if family == "vit" else backbone.encoder.stages
    run: list[int] = []
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: run.append(i))
    with torch.inference_mode():
        maps = backbone(pixels()).feature_maps
        assert run == list(range(last))
        full = backbone(pixels(), output_hidden_states=True)
        assert run[last:] == list(range(len(blocks)))
        assert all(map(torch.equal, maps, full.feature_maps))
        assert len(full.hidden_states) == len(blocks) + 1 and all(state is not None for state in full.hidden_states)
        one = backbone(pixels(), output_hidden_states=[1]).hidden_states
        assert [state is not None for state in one] == [i == 1 for i in range(len(blocks) + 1)]
        assert torch.equal(one[1], full.hidden_states[1])
        run.clear()
        if family == "vit":
            assert len(backbone(pixels(), output_attentions=True).attentions) == len(blocks) == len(run)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("strides", "chosen"), [([4, 8], [0, 1]), ([4, 8, 16, 32], [0, 1]), ([8, 16, 32], None)])
def test_pyramid_leaves_out_what_its_levels_do_not_read(family: str, strides: list[int], chosen: Any) -> None:
    config = EupePyramidConfig(encoder_config=tiny_config(family), strides=strides, hidden_size=8, out_indices=chosen)
    backbone = EupePyramidBackbone(config).train()
    maps = backbone(pixels()).feature_maps
    assert [m.shape[-1] for m in maps] == [64 // strides[i] for i in backbone.out_indices]
    assert_all_that_trains_has_a_gradient(backbone, sum(m.square().sum() for m in maps))


def test_detection_on_fine_levels_leaves_out_coarse_stages(tmp_path: Path) -> None:
    model = task_model("detection", "convnext", [2, 3, 4], detection_strides=[8, 16])
    assert model.config.out_indices == [2, 3]
    assert_all_that_trains_has_a_gradient(model, model(pixels(), labels=labels_of("detection", 2)).loss)
    model.save_pretrained(tmp_path)
    joined = EupeForMultiTask(EupeMultiTaskConfig(encoder_config=tiny_config("convnext"), heads={}))
    joined.eupe.load_state_dict(model.eupe.state_dict())
    joined.load_head("boxes", tmp_path)
    with torch.inference_mode():
        found = joined.eval()(pixels()).predictions["boxes"].logits
        assert torch.equal(found, EupeForObjectDetection.from_pretrained(tmp_path)(pixels()).logits)


# ---- heads that come and go ----


def heads(family: str, *tasks: str) -> dict[str, dict[str, Any]]:
    fields = {"classification": {"num_labels": 2}, "segmentation": {"num_labels": 2, "out_indices": [1]}}
    fields["detection"] = {"num_labels": 2, "detection_hidden_size": 8}
    return {task: {"task": task, **fields.get(task, {})} for task in tasks}


def joined(family: str, *tasks: str) -> EupeForMultiTask:
    return EupeForMultiTask(
        EupeMultiTaskConfig(encoder_config=tiny_config(family), heads=heads(family, *tasks))
    ).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_several_heads_train_all_that_one_of_them_reads(family: str) -> None:
    model = joined(family, *TASK_MODELS)
    labels = {task: labels_of(task, 2) for task in TASK_MODELS}
    assert_all_that_trains_has_a_gradient(model, model(pixels(), labels=labels).loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_train_as_soon_as_a_new_head_reads_them(family: str) -> None:
    model = joined(family, "segmentation")
    left_out = frozen(model)
    assert len(left_out) > 1
    model.add_head("scene", "classification", num_labels=2)
    assert frozen(model) == frozen(joined(family, "classification"))
    assert_all_that_trains_has_a_gradient(
        model, model(pixels(), labels={"scene": labels_of("classification", 2)}, tasks=["scene"]).loss
        + model(pixels(), labels={"segmentation": labels_of("segmentation", 2)}, tasks=["segmentation"]).loss
    )  # fmt: skip
    model.remove_head("scene")
    assert frozen(model) == left_out
    model.freeze_backbone()
    model.add_head("again", "classification", num_labels=2)
    assert all(name in frozen(model) for name, _ in model.named_parameters() if name.startswith("eupe."))


def test_joined_and_taken_out_models_leave_each_other_as_they_are() -> None:
    early, late = task_model("segmentation", "vit", [1]), task_model("depth", "vit")
    late.eupe.load_state_dict(early.eupe.state_dict())
    model = EupeForMultiTask.from_task_models({"early": early, "late": late}).train()
    assert frozen(model) == {"eupe.encoder.embeddings.mask_token"}
    assert model.task_model("early").train().config.out_indices == [1]
    assert frozen(model) == {"eupe.encoder.embeddings.mask_token"}  # one head's model froze nothing of the other's


def test_only_what_the_chosen_heads_read_is_computed() -> None:
    model, run = joined("vit", "segmentation", "depth").eval(), list[int]()
    for i, block in enumerate(model.eupe.encoder.layers):
        block.register_forward_hook(lambda *_, i=i: run.append(i))
    with torch.inference_mode():
        alone = model(pixels(), tasks=["segmentation"]).predictions["segmentation"].logits
        assert run == [0]
        assert torch.equal(alone, model(pixels()).predictions["segmentation"].logits)


# ---- several processes ----


@pytest.mark.parametrize("layers", [-1, -2, [0, 1], [-1, 1]])
def test_blocks_of_a_tower_after_the_projected_layer_are_frozen(layers: Any, tmp_path: Path) -> None:
    text = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4)
    config = EupeLlavaConfig(vision_config=tiny_config("vit"), text_config=text, vision_feature_layer=layers)
    EupeLlavaModel(config).save_pretrained(tmp_path)
    for model in (EupeLlavaModel(config), EupeLlavaModel.from_pretrained(tmp_path)):
        tower = model.train().vision_tower
        model.language_model.requires_grad_(False)
        is_last_read = layers in (-1, [-1, 1])
        assert all(parameter.requires_grad == is_last_read for parameter in tower.encoder.layers[-1].parameters())
        assert all(parameter.requires_grad for parameter in tower.encoder.layers[-2].parameters())
        features = model.get_image_features(pixels()).pooler_output
        assert_all_that_trains_has_a_gradient(model, torch.stack(list(features)).square().sum())


def test_lora_adapts_no_block_that_is_not_computed() -> None:
    peft = pytest.importorskip("peft")
    from eupe_hf.lora import lora_config

    model = EupeForSegmentation(tiny_config("vit", num_labels=2, out_indices=[1]))
    wrapped = peft.get_peft_model(model, lora_config(model, r=2)).train()
    assert_all_that_trains_has_a_gradient(wrapped, wrapped(pixels(), labels=labels_of("segmentation", 2)).loss)
    assert {name.split(".layers.")[1][0] for name, _ in wrapped.named_parameters() if "lora_" in name} == {"0"}


@pytest.mark.slow
def test_two_processes_train_every_model_without_a_search_for_unused_parameters() -> None:
    script = ROOT / "tests" / "ddp_models_on_cpu.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["trained", str(2 * (len(MODELS) + 2 * len(FAMILIES)))]
