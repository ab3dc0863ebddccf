# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA: which layers are adapted, what is saved with them, and that all of it comes back."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from hub_server import HubServer, use_hub
from huggingface_hub import EvalResult, ModelCard
from modeling_common import FAMILIES, randomise, tiny_config
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from PIL import Image
from published import checkpoint
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    DPTConfig,
    DPTForDepthEstimation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    pipeline,
)

from eupe_hf import (
    EupeBackbone,
    EupeForDepthEstimation,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForObjectDetection,
    EupeForSegmentation,
    EupeModel,
    EupeMultiTaskConfig,
    EupePyramidConfig,
    variant_config,
)
from eupe_hf.lora import TARGETS, adapter_card, load_peft_model, lora_config


TASKS = {
    EupeForImageClassification: AutoModelForImageClassification,
    EupeForSegmentation: AutoModelForSemanticSegmentation,
    EupeForDepthEstimation: AutoModelForDepthEstimation,
    EupeForObjectDetection: AutoModelForObjectDetection,
}
BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
BY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
# what a tiny encoder has: 3 blocks; 5 blocks in 4 stages
COUNTS = {
    "vit": {"attention": 12, "mlp": 6, "all": 18, None: 12},
    "convnext": {"mlp": 10, "all": 10, None: 10},
}
HEAD = {"num_labels": 3, "num_depth_bins": 8, "detection_hidden_size": 16}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny encoder of each family."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp(family)
        randomise(EupeModel(tiny_config(family))).save_pretrained(folders[family])
    return folders


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def answer(model: nn.Module, images: torch.Tensor | None = None) -> torch.Tensor:
    """The main output, in eval mode."""
    with torch.inference_mode():
        outputs = model.eval()(pixel_values=pixels() if images is None else images)
    names = ("predicted_depth", "logits", "last_hidden_state", "class_queries_logits")
    return next(outputs[name] for name in names if name in outputs)


def trained(model: nn.Module, config: peft.LoraConfig, seed: int = 0, name: str = "default") -> peft.PeftModel:
    """The model with an adapter in which everything that trains, and every batch-norm statistic, has moved."""
    wrapped = peft.get_peft_model(model, config, adapter_name=name)
    move(wrapped, seed)
    return wrapped


def move(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.weight.requires_grad:
                module.running_mean += torch.randn(module.running_mean.shape, generator=generator)
                module.running_var += torch.rand(module.running_var.shape, generator=generator)
                module.num_batches_tracked += 7


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {name.removeprefix("base_model.model."): module for name, module in found.items()}


def saved_whole(model: nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return [name.removeprefix("base_model.model.") for name in found]


# ---- which layers ----


@BY_FAMILY
@pytest.mark.parametrize("targets", [None, "attention", "mlp", "all"])
def test_targets_are_the_encoders_linear_layers(family: str, targets: str | None) -> None:
    model = EupeForSegmentation(tiny_config(family, **HEAD))
    if targets not in COUNTS[family]:
        with pytest.raises(
            ValueError, match=r"nothing of it matches no linear layer.*pointwise_conv1, pointwise_conv2"
        ):
            lora_config(model, targets=targets)
        return
    wrapped = peft.get_peft_model(model, lora_config(model, r=2, targets=targets))
    layers = adapted(wrapped)
    assert len(layers) == COUNTS[family][targets]
    assert all(isinstance(layer.get_base_layer(), nn.Linear) for layer in layers.values())
    expected = TARGETS[targets or ("attention" if family == "vit" else "mlp")]
    assert {name.rpartition(".")[2] for name in layers} == set(expected) & {n.rpartition(".")[2] for n in layers}
    assert all(name.startswith("eupe.encoder.") for name in layers)
    assert saved_whole(wrapped) == ["head"]


def test_list_of_targets_adapts_each_of_them_or_is_refused() -> None:
    model = EupeForImageClassification(tiny_config("vit", num_labels=3))
    for targets, count in ((["q_proj", "v_proj"], 6), (["down_proj"], 3), ("o_proj", 3)):
        config = lora_config(model, r=2, targets=targets)
        layers = [n for n, _ in model.named_modules() if re.fullmatch(config.target_modules, n)]
        assert len(layers) == count
    for targets in (["q_proj", "qkv"], "qkv", "all-linear", ["attention"]):
        with pytest.raises(ValueError, match=r"matches no linear layer.*down_proj, k_proj, o_proj, q_proj, up_proj"):
            lora_config(model, targets=targets)
    with pytest.raises(ValueError, match="nothing of it matches"):
        lora_config(model, targets=[])
    with pytest.raises(ValueError, match="'depthwise_conv' matches no linear"):
        lora_config(EupeModel(tiny_config("convnext")), targets=["pointwise_conv1", "depthwise_conv"])
    with pytest.raises(ValueError, match="targets="):
        lora_config(model, target_modules=["q_proj"])
    with pytest.raises(ValueError, match="has no EUPE encoder"):
        lora_config(nn.Sequential(nn.Linear(2, 2)))


@BY_FAMILY
def test_bare_encoder_has_nothing_new(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeModel.from_pretrained(bases[family])
    wrapped = trained(model, lora_config(model, r=2, targets="all"))
    assert saved_whole(wrapped) == [] and len(adapted(wrapped)) == COUNTS[family]["all"]
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path)), expected)
    assert torch.equal(answer(load_peft_model(tmp_path)), expected)
    # a backbone is the same encoder
    maps = EupeBackbone.from_pretrained(tmp_path)(pixels()).feature_maps[-1]
    backbone = EupeBackbone(wrapped.merge_and_unload().config).eval()
    backbone.load_state_dict(wrapped.get_base_model().state_dict())
    torch.testing.assert_close(maps, backbone(pixels()).feature_maps[-1], atol=1e-5, rtol=0)


@BY_FAMILY
@BY_TASK
def test_trainable_parameters_are_those_that_are_printed(family: str, task: type, capsys) -> None:
    model = task(tiny_config(family, **HEAD))
    head = sum(p.numel() for p in model.head.parameters())
    wrapped = peft.get_peft_model(model, lora_config(model, r=4))
    trainable = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    layers = [layer.get_base_layer() for layer in adapted(wrapped).values()]
    assert trainable == head + sum(4 * (layer.in_features + layer.out_features) for layer in layers)
    wrapped.print_trainable_parameters()
    assert f"trainable params: {trainable:,} " in capsys.readouterr().out
    wrapped.train()(pixel_values=pixels(), labels=labels(task)).loss.backward()
    for name, parameter in wrapped.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def labels(task: type) -> torch.Tensor | list:
    if task is EupeForImageClassification:
        return torch.tensor([0, 2])
    if task is EupeForSegmentation:
        return torch.randint(0, 3, (2, 64, 64))
    if task is EupeForDepthEstimation:
        return 1 + torch.rand(2, 64, 64)
    return [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.3]])} for _ in range(2)]


def test_share_and_file_of_eupe_b_are_small(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = EupeForImageClassification(variant_config("eupe-b", num_labels=10))
    wrapped = peft.get_peft_model(model, lora_config(model, r=16, targets="attention"))
    trainable, total = wrapped.get_nb_trainable_parameters()
    assert trainable / total <= 0.015
    tensors = peft.get_peft_model_state_dict(wrapped)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= 5e6


# ---- saved and loaded ----


@BY_FAMILY
@BY_TASK
def test_adapter_comes_back_bit_equal(family: str, task: type, tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = task.from_pretrained(bases[family], **HEAD)
    wrapped = trained(model, lora_config(model, r=2, targets="all"))
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == str(bases[family])
    for loaded in (task.from_pretrained(tmp_path / "adapter"), TASKS[task].from_pretrained(tmp_path / "adapter")):
        assert type(loaded) is task and not loaded.training
        assert torch.equal(answer(loaded), expected)
    torch.manual_seed(5)  # another fresh head, that the adapter replaces
    fresh = peft.PeftModel.from_pretrained(task.from_pretrained(bases[family], **HEAD), tmp_path / "adapter")
    assert torch.equal(answer(fresh), expected)
    with fresh.disable_adapter():
        assert not torch.allclose(answer(fresh), expected, atol=1e-3)
    # as ordinary models
    again = load_peft_model(tmp_path / "adapter")
    assert torch.equal(answer(again), expected)
    merged = again.merge_and_unload()
    torch.testing.assert_close(answer(merged), expected, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    ordinary = TASKS[task].from_pretrained(tmp_path / "merged")
    assert type(ordinary) is task and torch.equal(answer(ordinary), answer(merged))
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))


@BY_FAMILY
@pytest.mark.parametrize("options", [{"use_dora": True}, {"use_rslora": True, "r": 4}], ids=lambda o: next(iter(o)))
def test_kinds_of_lora_come_back_and_merge(family: str, options: dict, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3)
    config = lora_config(model, **{"r": 2, "targets": "all"} | options)
    assert config.lora_alpha == (4 if config.use_rslora else 2 * config.r)
    wrapped = trained(model, config)
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(answer(AutoModelForImageClassification.from_pretrained(tmp_path)), expected)
    torch.testing.assert_close(answer(load_peft_model(tmp_path).merge_and_unload()), expected, atol=1e-5, rtol=0)


def test_own_configuration_of_peft_works(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases["vit"], num_labels=3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], modules_to_save=["head"])
    wrapped = trained(model, config)
    assert len(adapted(wrapped)) == 6 and saved_whole(wrapped) == ["head"]
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path)
    assert not (tmp_path / "eupe_config.json").exists()
    for loader in (AutoModelForImageClassification, EupeForImageClassification):
        assert torch.equal(answer(loader.from_pretrained(tmp_path, num_labels=3)), expected)
    with pytest.raises(ValueError, match=r"does not fit.*head"):
        EupeForImageClassification.from_pretrained(tmp_path)  # two classes
    with pytest.raises(ValueError, match="does not say which EUPE model"):
        load_peft_model(tmp_path)


@pytest.mark.parametrize("task", [EupeForImageClassification, EupeForObjectDetection], ids=lambda task: task.__name__)
def test_all_linear_leaves_the_saved_head_alone(task: type) -> None:
    model = task(tiny_config("vit", **HEAD))
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=["head"]))
    assert saved_whole(wrapped) == ["head"]
    assert len(adapted(wrapped)) == 18 and all("head" not in name for name in adapted(wrapped))


@BY_FAMILY
def test_peft_knows_default_targets(family: str) -> None:
    heads = {"scene": {"task": "classification"}}
    models = (
        EupeForImageClassification(tiny_config(family)),
        EupeForMultiTask(EupeMultiTaskConfig(encoder_config=tiny_config(family), heads=heads)),
    )
    for model in models:
        found = {name.rpartition(".")[2] for name in adapted(peft.get_peft_model(model, peft.LoraConfig()))}
        assert found == ({"q_proj", "v_proj"} if family == "vit" else {"pointwise_conv1", "pointwise_conv2"})


# ---- several tasks, several adapters ----


HEADS = {
    "parts": {"task": "segmentation", "num_labels": 3, "out_indices": [1, 3]},
    "scene": {"task": "classification", "num_labels": 5},
    "depth": {"task": "depth", "num_depth_bins": 8},
}


def predictions(model: nn.Module, tasks: list[str] | None = None) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        found = model.eval()(pixel_values=pixels(), tasks=tasks).predictions
    return {name: p["predicted_depth"] if "predicted_depth" in p else p["logits"] for name, p in found.items()}


@BY_FAMILY
def test_multitask_saves_the_heads_that_train(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = EupeForMultiTask.from_pretrained(bases[family], heads=HEADS)
    wrapped = trained(model, lora_config(model, r=2))
    assert saved_whole(wrapped) == [f"heads.{name}" for name in sorted(HEADS)]
    expected = predictions(wrapped)
    wrapped.save_pretrained(tmp_path / "all")
    loaded = EupeForMultiTask.from_pretrained(tmp_path / "all")
    for name, tensor in predictions(loaded).items():
        assert torch.equal(tensor, expected[name])
    with pytest.raises(ValueError, match="trained on an EupeForMultiTask"):
        AutoModel.from_pretrained(tmp_path / "all")
    merged = load_peft_model(tmp_path / "all").merge_and_unload()
    for name, tensor in predictions(merged).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModel.from_pretrained(tmp_path / "merged")  # with the heads in it, a base for the next adapter
    again.freeze_head("depth")
    before = {key: tensor.clone() for key, tensor in again.heads["depth"].state_dict().items()}
    wrapped = trained(again, lora_config(again, r=2))
    assert saved_whole(wrapped) == ["heads.parts", "heads.scene"]
    wrapped.train()(pixel_values=pixels(), labels={"depth": 1 + torch.rand(2, 64, 64)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.heads["depth"].state_dict().items())
    wrapped.save_pretrained(tmp_path / "two")
    assert not any("depth" in name for name in load_file(tmp_path / "two" / "adapter_model.safetensors"))
    expected = predictions(wrapped)
    loaded = EupeForMultiTask.from_pretrained(tmp_path / "two")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in predictions(loaded).items())


def test_frozen_head_that_is_not_in_the_base_is_missed(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForMultiTask.from_pretrained(bases["vit"], heads=HEADS)
    model.freeze_head("scene")
    trained(model, lora_config(model, r=2)).save_pretrained(tmp_path)
    for load in (EupeForMultiTask.from_pretrained, load_peft_model):
        with pytest.raises(ValueError, match=r"heads\.scene\..* is neither in the base nor in the adapter"):
            load(tmp_path)


@BY_FAMILY
def test_adapters_and_heads_of_one_shape_are_switched(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    expected = {}
    for seed, name in enumerate(("cats", "dogs")):
        model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3)
        # another rank and other targets for each
        wrapped = trained(model, lora_config(model, r=2 + seed, targets=("mlp", "all")[seed]), seed)
        expected[name] = answer(wrapped)
        wrapped.save_pretrained(tmp_path / name)
    assert not torch.allclose(expected["cats"], expected["dogs"], atol=1e-2)
    wrapped = load_peft_model(tmp_path / "cats")
    wrapped.load_adapter(tmp_path / "dogs", adapter_name="dogs")
    plain = AutoModelForImageClassification.from_pretrained(tmp_path / "cats")
    plain.load_adapter(tmp_path / "dogs", adapter_name="dogs")
    for model in (wrapped, plain):
        for active, name in (("dogs", "dogs"), ("default", "cats"), ("dogs", "dogs")):
            model.set_adapter(active)
            assert torch.equal(answer(model), expected[name])
    # what transformers loaded is saved so that it loads again
    plain.set_adapter("dogs")
    plain.save_pretrained(tmp_path / "again")
    assert torch.equal(answer(AutoModelForImageClassification.from_pretrained(tmp_path / "again")), expected["dogs"])


def test_second_adapter_on_a_wrapped_model(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForSegmentation.from_pretrained(bases["vit"], num_labels=3)
    wrapped = trained(model, lora_config(model, r=2))
    first = answer(wrapped)
    second = lora_config(wrapped, r=3, targets="all")
    assert second.modules_to_save == {"head"} or list(second.modules_to_save) == ["head"]
    wrapped.add_adapter("second", second)
    wrapped.set_adapter("second")
    assert len(adapted(wrapped)) == 18 and saved_whole(wrapped) == ["head"]
    move(wrapped, 3)
    expected = answer(wrapped)
    wrapped.set_adapter("default")
    assert torch.equal(answer(wrapped), first)
    wrapped.save_pretrained(tmp_path)
    assert torch.equal(answer(EupeForSegmentation.from_pretrained(tmp_path)), first)
    assert torch.equal(answer(EupeForSegmentation.from_pretrained(tmp_path / "second")), expected)


def test_heads_of_other_shapes_go_with_an_adapter_each(tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    model = EupeForMultiTask.from_pretrained(bases["vit"], heads=HEADS)
    wrapped = peft.get_peft_model(model, lora_config(model, r=2, modules_to_save=["heads.parts"]), "parts")
    for name in ("scene", "depth"):
        wrapped.add_adapter(name, lora_config(wrapped, r=2, modules_to_save=[f"heads.{name}"]))
    expected = {}
    for seed, name in enumerate(HEADS):
        wrapped.set_adapter(name)
        move(wrapped, seed)
        expected[name] = predictions(wrapped, [name])[name]
    assert sorted(saved_whole(wrapped)) == sorted(f"heads.{name}" for name in HEADS)
    for name in HEADS:
        wrapped.set_adapter(name)
        assert torch.equal(predictions(wrapped, [name])[name], expected[name])
        others = {f"heads.{other}" for other in HEADS} - {f"heads.{name}"}
        trains = {n for n, p in wrapped.get_base_model().named_parameters() if p.requires_grad}
        assert trains and not any(n.startswith(tuple(others)) for n in trains)
    wrapped.save_pretrained(tmp_path)
    fresh = EupeForMultiTask.from_pretrained(bases["vit"], heads=HEADS)
    fresh = peft.PeftModel.from_pretrained(fresh, tmp_path / "parts", adapter_name="parts")
    for name in ("scene", "depth"):
        fresh.load_adapter(tmp_path / name, adapter_name=name)
    for name in HEADS:
        fresh.set_adapter(name)
        assert torch.equal(predictions(fresh, [name])[name], expected[name])


# ---- decoders of transformers ----


def upernet() -> nn.Module:
    backbone = tiny_config("convnext", out_indices=[1, 2, 3, 4])
    return UperNetForSemanticSegmentation(
        UperNetConfig(
            backbone_config=backbone, num_labels=4, hidden_size=16, auxiliary_in_channels=16, auxiliary_channels=8
        )
    )


def dpt() -> nn.Module:
    backbone = tiny_config("vit", out_indices=[0, 1, 2, 3], reshape_hidden_states=False)
    return DPTForDepthEstimation(
        DPTConfig(
            backbone_config=backbone, hidden_size=32, neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
            reassemble_factors=[4, 2, 1, 0.5], patch_size=16, head_in_index=-1,
        )
    )  # fmt: skip


def mask2former() -> nn.Module:
    encoder = tiny_config("vit", out_indices=[1, 2, 3])
    backbone = EupePyramidConfig(encoder_config=encoder, strides=[4, 8, 16, 32], hidden_size=16)
    return Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(
            backbone_config=backbone, num_labels=4, hidden_dim=32, feature_size=32, mask_feature_size=32,
            dim_feedforward=32, encoder_feedforward_dim=32, encoder_layers=1, decoder_layers=2,
            num_attention_heads=2, num_queries=4,
        )
    )  # fmt: skip


def rt_detr() -> nn.Module:
    backbone = tiny_config("convnext", out_indices=[2, 3, 4])
    return RTDetrV2ForObjectDetection(
        RTDetrV2Config(
            backbone_config=backbone, num_labels=4, d_model=32, encoder_hidden_dim=32, encoder_ffn_dim=32,
            encoder_in_channels=[12, 16, 20], decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32, decoder_layers=2,
            num_queries=5, decoder_attention_heads=2, encoder_attention_heads=2, num_denoising=0,
        )
    )  # fmt: skip


@pytest.mark.parametrize("build", [upernet, dpt, mask2former], ids=lambda build: build.__name__)
def test_decoders_of_transformers_are_saved_whole(build, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    (encoder,) = (name for name, part in model.named_modules() if isinstance(part, EupeBackbone))
    new = {id(p) for name, p in model.named_parameters() if not name.startswith(f"{encoder}.")}
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wrapped = trained(model, lora_config(model, r=2, targets="all"))
    assert all(name.startswith(f"{encoder}.encoder.") for name in adapted(wrapped))
    assert len(adapted(wrapped)) == (18 if build in (dpt, mask2former) else 10)
    whole = [part for part in wrapped.modules() if isinstance(part, ModulesToSaveWrapper)]
    assert {id(p) for part in whole for p in part.original_module.parameters()} == new
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path)
    torch.manual_seed(1)
    fresh = build()
    fresh.load_state_dict({k: t if k.startswith(f"{encoder}.") else fresh.state_dict()[k] for k, t in state.items()})
    found = answer(peft.PeftModel.from_pretrained(fresh, tmp_path))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert type(fresh).__name__ in ModelCard.load(tmp_path / "README.md").text


def test_decoder_with_parts_that_peft_would_train_apart_is_refused() -> None:
    model = rt_detr()  # its box and class heads are parts of the model and of its decoder
    with pytest.raises(ValueError, match=r"class_embed.*apart.*modules_to_save"):
        lora_config(model, r=2)
    assert lora_config(model, r=2, modules_to_save=[]).modules_to_save == []


# ---- the base: its name, and what is said where it does not fit ----


def test_short_name_stays_and_asks_for_nothing(tmp_path: Path) -> None:
    raw, _ = checkpoint("eupe-t")
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo("facebook/EUPE-ViT-T", {"EUPE-ViT-T.pt": raw})
        model = AutoModelForImageClassification.from_pretrained("eupe-t", num_labels=3)
        server.reset_log()
        wrapped = trained(model, lora_config(model, r=2))
        expected = answer(wrapped)
        wrapped.save_pretrained(tmp_path / "adapter")
        for load in (AutoModelForImageClassification.from_pretrained, EupeForImageClassification.from_pretrained):
            loaded = load(tmp_path / "adapter")
            assert torch.equal(answer(loaded), expected)
            assert loaded.name_or_path == "eupe-t"
        again = load_peft_model(tmp_path / "adapter", is_trainable=True)
        assert torch.equal(answer(again), expected) and again.get_nb_trainable_parameters()[0] > 0
        again.save_pretrained(tmp_path / "again")
        merged = again.merge_and_unload()
        assert merged.name_or_path == "eupe-t"
        classify = pipeline("image-classification", model=str(tmp_path / "adapter"))
        found = classify(Image.new("RGB", (64, 64), "red"), top_k=3)
        assert server.requests == []
    assert len(found) == 3 and sum(row["score"] for row in found) == pytest.approx(1, abs=1e-4)
    for folder in ("adapter", "again"):
        saved = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == "eupe-t"
        card = ModelCard.load(tmp_path / folder / "README.md")
        assert card.data.base_model == "facebook/EUPE-ViT-T"
        assert "base_model:adapter:facebook/EUPE-ViT-T" in card.data.tags
        assert str(tmp_path) not in card.content + json.dumps(saved)
        assert str(tmp_path) not in (tmp_path / folder / "eupe_config.json").read_text()


def test_adapter_on_the_hub_is_loaded(tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForSegmentation.from_pretrained(bases["convnext"], num_labels=3)
    model.name_or_path = "someone/base"
    wrapped = trained(model, lora_config(model, r=2))
    expected = answer(wrapped)
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo("someone/base", {path.name: path.read_bytes() for path in bases["convnext"].iterdir()})
        wrapped.save_pretrained(tmp_path / "adapter")
        files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
        server.add_repo("someone/adapter", files)
        for load in (AutoModelForSemanticSegmentation.from_pretrained, EupeForSegmentation.from_pretrained):
            assert torch.equal(answer(load("someone/adapter")), expected)
            assert torch.equal(answer(load("someone/adapter", revision="main")), expected)
        assert torch.equal(answer(load_peft_model("someone/adapter")), expected)
        assert server.repo_ids_requested() <= {"someone/adapter", "someone/base"}
    assert ModelCard.load(tmp_path / "adapter" / "README.md").data.base_model == "someone/base"


def saved_adapter(family: str, base: Path, folder: Path) -> Path:
    model = EupeForImageClassification.from_pretrained(base, num_labels=3)
    trained(model, lora_config(model, r=2)).save_pretrained(folder)
    return folder


def rebase(folder: Path, base: str | None) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": base}))


@BY_FAMILY
def test_adapter_that_does_not_fit_is_refused(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter(family, bases[family], tmp_path / "adapter")
    loads = (EupeForImageClassification.from_pretrained, load_peft_model)
    with pytest.raises(ValueError, match="was trained on an EupeForImageClassification"):
        EupeForSegmentation.from_pretrained(folder)
    sizes = {
        "vit": ({"hidden_size": 16}, {"num_hidden_layers": 4}, {"num_hidden_layers": 2}),
        "convnext": ({"hidden_sizes": [4, 8, 8, 12]}, {"depths": [1, 1, 3, 1]}, {"depths": [1, 1, 1, 1]}),
    }
    reasons = (r"does not fit .*other", r"does not fit .*the base has .*encoder", r"lacks \d+ weights of the encoder")
    for fields, reason in zip(sizes[family], (r"does not fit .* another architecture", *reasons[1:]), strict=True):
        other = EupeForImageClassification(tiny_config(family, num_labels=3, **fields))
        if reason is not reasons[1]:
            with pytest.raises(ValueError, match="does not fit this EupeForImageClassification"):
                other.load_adapter(folder)
        other.save_pretrained(tmp_path / "other")
        rebase(folder, str(tmp_path / "other"))
        for load in loads:
            with pytest.raises(ValueError, match=reason):
                load(folder)
    deeper = EupeForImageClassification(tiny_config(family, num_labels=3, **sizes[family][1]))
    with pytest.raises(ValueError, match="it has nothing for"):
        deeper.load_adapter(folder)


def test_missing_base_is_explained(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    rebase(folder, str(tmp_path / "gone"))
    for load in (EupeForImageClassification.from_pretrained, load_peft_model):
        with pytest.raises(OSError, match=r"is for .*gone.*not to be had(.|\n)*base_model_name_or_path"):
            load(folder, local_files_only=True)
    with pytest.raises(OSError, match="gone"):
        AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
    rebase(folder, None)
    for load in (EupeForImageClassification.from_pretrained, load_peft_model):
        with pytest.raises(ValueError, match="does not say which model it is for"):
            load(folder)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_truncated_adapter_is_refused(kept: int, tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    for load in (
        EupeForImageClassification.from_pretrained,
        AutoModelForImageClassification.from_pretrained,
        load_peft_model,
    ):
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
            load(folder)


def test_settings_of_the_call_reach_the_model(tmp_path: Path, bases: dict[str, Path]) -> None:
    folder = saved_adapter("vit", bases["vit"], tmp_path / "adapter")
    for loader in (EupeForImageClassification, AutoModelForImageClassification):
        model = loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16)
        assert model.eupe.config._attn_implementation == "eager"
        assert model.eupe.norm.weight.dtype == torch.bfloat16 and model.config.num_labels == 3


@pytest.mark.parametrize("use_dora", [False, True])
def test_loading_reports_nothing_as_missing(use_dora: bool, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases["vit"], num_labels=3)
    trained(model, lora_config(model, r=2, use_dora=use_dora)).save_pretrained(tmp_path)
    logger, handler = logging.getLogger("transformers"), Messages()
    logger.addHandler(handler)
    try:
        EupeForImageClassification.from_pretrained(tmp_path)
        load_peft_model(tmp_path)
        assert not handler.found
        EupeForImageClassification.from_pretrained(bases["vit"])  # here the head is missing indeed
        assert any("head" in message for message in handler.found)
    finally:
        logger.removeHandler(handler)


class Messages(logging.Handler):
    """Keeps what is logged about loading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "LOAD REPORT" in record.getMessage():
            self.found.append(record.getMessage())


# ---- cards ----


def test_card_says_what_it_is(tmp_path: Path) -> None:
    model = EupeForSegmentation(tiny_config("vit", num_labels=3))
    model.name_or_path = "eupe-s"
    wrapped = peft.get_peft_model(model, lora_config(model, r=4, targets="all", use_dora=True))
    wrapped.save_pretrained(tmp_path / "leaves")
    card = ModelCard.load(tmp_path / "leaves" / "README.md")
    assert card.data.license == "other" and card.data.license_name == "fair-noncommercial-research-license"
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "image-segmentation"
    assert card.data.base_model == "facebook/EUPE-ViT-S" and {"eupe", "lora"} <= set(card.data.tags)
    assert "More Information Needed" not in card.text
    for text in ("EupeForSegmentation", "DoRA, rank 4, alpha 8", "down_proj, k_proj", "Trained in full: head",
                 "AutoModelForSemanticSegmentation", "merge_and_unload", "FAIR Noncommercial"):  # fmt: skip
        assert text in card.text, text
    # with what a recipe knows
    metric = EvalResult(
        task_type="image-segmentation", dataset_type="someone/leaves", dataset_name="leaves", metric_type="mean_iou",
        metric_value=0.75, metric_name="mIoU",
    )  # fmt: skip
    card = adapter_card(tmp_path / "leaves", dataset="someone/leaves", metrics=[metric], recipe="100 steps.")
    card.save(tmp_path / "leaves" / "README.md")
    wrapped.save_pretrained(tmp_path / "leaves")  # a later save keeps it
    card = ModelCard.load(tmp_path / "leaves" / "README.md")
    assert card.data.datasets == ["someone/leaves"] and card.data.eval_results == [metric]
    assert "| mIoU | leaves | 0.75 |" in card.text and "100 steps." in card.text
    assert card.data.base_model == "facebook/EUPE-ViT-S" and card.data.license == "other"


def test_card_of_somebody_is_kept_and_gets_the_licence(tmp_path: Path, bases: dict[str, Path]) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nMy words.\n")
    model = EupeModel.from_pretrained(bases["vit"])
    peft.get_peft_model(model, lora_config(model, r=2)).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "My words." in card.text and card.data.license == "other"
    assert card.data.base_model is None  # a folder of this machine
    assert str(bases["vit"]) not in card.content


def test_named_adapters_have_cards(tmp_path: Path) -> None:
    model = EupeModel(tiny_config("vit"))
    model.name_or_path = "facebook/EUPE-ViT-T"
    wrapped = peft.get_peft_model(model, lora_config(model, r=2), "first")
    wrapped.add_adapter("second", lora_config(wrapped, r=3))
    wrapped.save_pretrained(tmp_path)
    for path, text in (("first/", "rank 2"), ("second/", "rank 3"), ("", "Adapters for EUPE")):
        card = ModelCard.load(tmp_path / f"{path}README.md")
        assert text in card.text and "More Information Needed" not in card.text
        assert card.data.license == "other" and card.data.base_model == "facebook/EUPE-ViT-T"


# ---- training ----


@BY_FAMILY
def test_trainer_saves_all_and_resumes(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForSegmentation.from_pretrained(bases[family], num_labels=2, pos_embed_rescale=None)
    wrapped = peft.get_peft_model(model, lora_config(model, r=2, targets="all"))
    right = (torch.arange(64) >= 32).expand(64, 64)
    rows = [{"pixel_values": image + 3 * right, "labels": right.long()} for image in pixels(8)]
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=4, learning_rate=0.02, save_steps=3,
        report_to=[], disable_tqdm=True, use_cpu=True, gradient_checkpointing=True, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(wrapped, arguments, train_dataset=rows)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    expected = answer(wrapped)
    trainer.save_model(str(tmp_path / "out"))
    for folder in (tmp_path / "out", tmp_path / "run" / "checkpoint-6"):
        assert torch.equal(answer(AutoModelForSemanticSegmentation.from_pretrained(folder)), expected)
        assert ModelCard.load(folder / "README.md").data.license == "other"
    # from the third step on once more
    model = EupeForSegmentation.from_pretrained(bases[family], num_labels=2, pos_embed_rescale=None)
    wrapped = peft.get_peft_model(model, lora_config(model, r=2, targets="all"))
    Trainer(wrapped, arguments, train_dataset=rows).train(str(tmp_path / "run" / "checkpoint-3"))
    torch.testing.assert_close(answer(wrapped), expected, atol=1e-4, rtol=0)


@BY_FAMILY
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    family: str, use_reentrant: bool, bases: dict[str, Path]
) -> None:
    gradients = []
    for is_on in (False, True):
        torch.manual_seed(0)
        model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3, pos_embed_rescale=None)
        if is_on:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        wrapped = trained(model, lora_config(model, r=2, targets="all"))
        wrapped.train()(pixel_values=pixels(), labels=torch.tensor([0, 2])).loss.backward()
        gradients.append({name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad})
    assert sum("lora" in name for name in gradients[0]) == 2 * COUNTS[family]["all"]
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient)


@BY_FAMILY
def test_bfloat16_trains_saves_and_merges(family: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    model = EupeForImageClassification.from_pretrained(bases[family], num_labels=3, dtype=torch.bfloat16)
    wrapped = trained(model, lora_config(model, r=2, targets="all"))
    # peft keeps what is trained by rank in float32, which small steps need
    assert {p.dtype for n, p in wrapped.named_parameters() if "lora_" in n} == {torch.float32}
    loss = wrapped.train()(pixel_values=pixels(), labels=torch.tensor([0, 2])).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in wrapped.parameters() if p.requires_grad)
    expected = answer(wrapped)
    wrapped.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(answer(loaded), expected, atol=0.05, rtol=0.05)
    merged = load_peft_model(tmp_path).merge_and_unload()
    assert torch.nn.functional.cosine_similarity(answer(merged).float(), expected.float()).min() > 0.99


def test_random_rescaling_is_there_while_the_adapter_learns(bases: dict[str, Path]) -> None:
    model = EupeModel.from_pretrained(bases["vit"])
    wrapped = trained(model, lora_config(model, r=2))

    def is_random() -> bool:
        wrapped.train()
        with torch.no_grad():
            a, b = (wrapped(pixel_values=pixels()).last_hidden_state for _ in range(2))
        return not torch.equal(a, b)

    assert is_random()
    with wrapped.disable_adapter():
        assert not is_random()
    wrapped.requires_grad_(False)
    assert not is_random()


def test_without_the_package_the_base_has_the_code(tmp_path: Path, bases: dict[str, Path]) -> None:
    torch.manual_seed(0)
    base = EupeForImageClassification.from_pretrained(bases["vit"], num_labels=3)
    base.save_pretrained(tmp_path / "base")
    model = EupeForImageClassification.from_pretrained(tmp_path / "base")
    wrapped = trained(model, lora_config(model, r=2))
    wrapped.save_pretrained(tmp_path / "adapter")
    torch.save((pixels(), answer(wrapped)), tmp_path / "expected.pt")
    code = """
import sys, torch
from transformers import AutoModelForImageClassification
folder = sys.argv[1]
images, expected = torch.load(folder + "/expected.pt")
model = AutoModelForImageClassification.from_pretrained(folder + "/adapter", trust_remote_code=True, num_labels=3)
assert "eupe_hf" not in sys.modules
with torch.inference_mode():
    assert torch.equal(model.eval()(images).logits, expected)
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
