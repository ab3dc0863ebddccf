# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA: which layers are adapted, what is trained in full beside them, and how it trains."""

import os
import re
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from huggingface_hub import ModelCard
from lora_common import (
    BY_FAMILY,
    BY_TASK,
    COUNTS,
    HEAD,
    adapted,
    answer,
    pixels,
    save_bases,
    saved_whole,
    trained,
)
from modeling_common import tiny_config
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
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
from eupe_hf.lora import TARGETS, load_peft_model, lora_config


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_bases(tmp_path_factory)


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


@pytest.mark.slow
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
