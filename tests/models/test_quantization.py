# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Encoders whose weights have 8 or 4 bits (bitsandbytes): features, LoRA, adapters, the option of the recipes.

Widths are multiples of 64: bitsandbytes' 4-bit kernels for the CPU take no others. On GPUs they do.
"""

import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from conftest import ROOT
from modeling_common import FAMILIES, pixels, tiny_config
from PIL import Image
from transformers import AutoModelForImageClassification, BitsAndBytesConfig

from eupe_hf import EupeForImageClassification, EupeForMultiTask, EupeForSegmentation, EupeModel
from eupe_hf.hub import short_names as hub
from eupe_hf.lora import load_peft_model, lora_config
from eupe_hf.models.modeling_eupe_loading import without_heads
from eupe_hf.training import parse_recipe
from eupe_hf.training.tasks import ClassificationTask


WIDE = {
    "vit": {"hidden_size": 64, "num_attention_heads": 4},
    "convnext": {"hidden_sizes": [64, 64, 64, 128]},
}
QUANTIZED = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}
# Of features, as a share of their length; measured 0.004 and 0.035 at most.
ERRORS = {"8bit": 0.01, "4bit": 0.1}
LAYERS = {"vit": 3 * 6, "convnext": 5 * 2}

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
both_families = pytest.mark.parametrize("family", FAMILIES)
both_widths = pytest.mark.parametrize("bits", QUANTIZED)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoders")
    for family in FAMILIES:
        torch.manual_seed(0)
        EupeModel(tiny_config(family, layerscale_value=0.5, **WIDE[family])).save_pretrained(folder / family)
    return folder


def quantized_layers(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module).__name__ in ("Linear8bitLt", "Linear4bit")]


@needs_bitsandbytes
@torch.no_grad()
@both_families
@both_widths
def test_quantized_features_are_near(encoders: Path, family: str, bits: str) -> None:
    whole = EupeModel.from_pretrained(encoders / family).eval()
    small = EupeModel.from_pretrained(encoders / family, quantization_config=BitsAndBytesConfig(**QUANTIZED[bits]))
    assert len(quantized_layers(small)) == LAYERS[family]
    expected, found = (model.eval()(pixels()).last_hidden_state for model in (whole, small))
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < ERRORS[bits]


@needs_bitsandbytes
@both_families
@both_widths
def test_heads_stay_whole(encoders: Path, monkeypatch: pytest.MonkeyPatch, family: str, bits: str) -> None:
    monkeypatch.setattr(hub, "fetch", lambda name, **options: encoders / family)  # a short name
    config = BitsAndBytesConfig(**QUANTIZED[bits])
    model = AutoModelForImageClassification.from_pretrained("eupe-b", num_labels=3, quantization_config=config)
    assert type(model) is EupeForImageClassification and config.llm_int8_skip_modules is None
    assert len(quantized_layers(model)) == LAYERS[family]
    assert all(name.startswith("eupe.encoder.") for name in quantized_layers(model))
    assert type(model.head.classifier) is torch.nn.Linear and model.head.classifier.weight.dtype == torch.float32
    heads = {"far": {"task": "depth"}, "scene": {"task": "classification", "num_labels": 2}}
    multi = EupeForMultiTask.from_pretrained("eupe-b", heads=heads, quantization_config=config)
    assert len(quantized_layers(multi)) == LAYERS[family] and not any("heads." in n for n in quantized_layers(multi))


@needs_bitsandbytes
@both_families
@both_widths
def test_adapter_on_quantized_weights_learns_and_reloads(
    encoders: Path, tmp_path: Path, family: str, bits: str
) -> None:
    options = {"num_labels": 2, "quantization_config": BitsAndBytesConfig(**QUANTIZED[bits])}
    torch.manual_seed(0)
    model = EupeForImageClassification.from_pretrained(encoders / family, **options)
    config = lora_config(model, r=4, targets="all")
    model = peft.get_peft_model(peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), config)
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    model.train()  # in eval mode bitsandbytes changes the layout of the weights for the CPU
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    images, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 2
    losses = []
    for _ in range(12):
        loss = model(images, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0], losses
    assert all(torch.equal(model.get_parameter(name), tensor) for name, tensor in frozen.items())
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "eupe_config.json").read_text())

    with torch.no_grad():
        expected = model.eval()(images).logits
        again = AutoModelForImageClassification.from_pretrained(
            tmp_path, quantization_config=options["quantization_config"]
        )
        assert torch.equal(again.eval()(images).logits, expected)
        again.load_adapter(tmp_path, adapter_name="second")  # beside the first
        again.set_adapter("second")
        error = (again(images).logits - expected).norm() / expected.norm()
        assert error < {"8bit": 1e-6, "4bit": 0.01}[bits]  # 4-bit weights for the CPU are rounded when they are read
        # the same adapter on whole weights, and merged into them
        whole = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
        assert not quantized_layers(whole)
        near = whole(images).logits
        assert float((near - expected).norm() / expected.norm()) < ERRORS[bits]
        merged = load_peft_model(str(tmp_path)).merge_and_unload().eval()
        assert float((merged(images).logits - near).abs().max()) < 1e-5


@needs_bitsandbytes
@torch.no_grad()
@both_families
@both_widths
def test_quantized_model_saves_and_reloads(encoders: Path, tmp_path: Path, family: str, bits: str) -> None:
    config = BitsAndBytesConfig(**QUANTIZED[bits])
    model = EupeForSegmentation.from_pretrained(encoders / family, num_labels=3, quantization_config=config)
    model.save_pretrained(
        tmp_path
    )  # first: for its kernels on the CPU bitsandbytes rounds the scales of 4-bit weights
    expected = model.eval()(pixels()).logits
    again = EupeForSegmentation.from_pretrained(tmp_path).eval()
    assert quantized_layers(again) == quantized_layers(model)
    assert torch.equal(again(pixels()).logits, expected)
    whole = encoders / family / "model.safetensors"
    assert (tmp_path / "model.safetensors").stat().st_size < {"8bit": 0.9, "4bit": 0.8}[bits] * whole.stat().st_size


@needs_bitsandbytes
@both_families
@both_widths
def test_recipe_trains_on_quantized_weights(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, bits: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    noise = np.random.default_rng(0)
    for name, colour in (("red", (190, 60, 60)), ("blue", (60, 60, 190))):
        (tmp_path / "classes" / name).mkdir(parents=True)
        for i in range(10):
            picture = (np.array(colour) + noise.integers(-50, 50, (64, 64, 3))).astype(np.uint8)
            Image.fromarray(picture).save(tmp_path / "classes" / name / f"{i}.png")
    options: dict[str, Any] = {
        "--dataset": tmp_path / "classes", "--held_out": 0.2, "--model": encoders / family,
        "--output_dir": tmp_path / "out", "--size": 64, "--per_device_train_batch_size": 8, "--quantize": bits,
        "--dataloader_num_workers": 0, "--logging_steps": 1, "--use_cpu": True, "--num_train_epochs": 5,
    }  # fmt: skip
    main = runpy.run_path(str(ROOT / "examples" / "finetune_lora_classification.py"))["main"]
    main([str(part) for option in options.items() for part in option] + ["--gradient_checkpointing", "--no_augment"])
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 10 and losses[-1] < 0.8 * losses[0], losses
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["quantize"] == bits and results["metrics"]["accuracy"] == 1.0
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "blue", 1: "red"}


@pytest.mark.parametrize("given", [None, ["norm"]])
def test_what_is_left_out_can_be_chosen(given: list[str] | None) -> None:
    chosen = without_heads({"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": given})
    assert isinstance(chosen, BitsAndBytesConfig)
    assert chosen.llm_int8_skip_modules == (["head", "heads"] if given is None else given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mode", "probe"), "--quantize requires --mode lora"),
        (("--merge",), "--merge would round the adapter to the quantized weights"),
        ((), "--quantize needs bitsandbytes: pip install bitsandbytes"),
    ],
)
def test_quantized_training_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = ["--dataset", "d", "--output_dir", str(tmp_path / "out"), "--quantize", "4bit", *options]
    with pytest.raises((ImportError, ValueError), match=words):
        parse_recipe(ClassificationTask, "", command)
