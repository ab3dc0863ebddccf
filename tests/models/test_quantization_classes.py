# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Every model class with quantized weights against itself in float32: bitsandbytes, torch's own, torchao."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from modeling_common import FAMILIES, tiny_config
from torch import nn
from transformers import BitsAndBytesConfig, LlamaConfig, TorchAoConfig

from eupe_hf import (
    EupeBackbone,
    EupeForMultiTask,
    EupeLlavaConfig,
    EupeLlavaForConditionalGeneration,
    EupeLlavaModel,
    EupeModel,
    EupeMultiTaskConfig,
    EupePyramidBackbone,
    EupePyramidConfig,
)
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS


# Multiples of 64: bitsandbytes' 4-bit kernels for the CPU take no others.
WIDE = {
    "vit": {"hidden_size": 64, "num_attention_heads": 4},
    "convnext": {"hidden_sizes": [64, 64, 64, 128]},
}
TEXT = LlamaConfig(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=128
)  # fmt: skip
IMAGE_TOKEN = 7
BITS = {
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}
# Of every output, as a share of its length; measured 0.018, 0.19, 0.056, 0.016 and 0.037 at most.
ERRORS = {"8bit": 0.03, "4bit": 0.3, "dynamic": 0.1, "torchao": 0.03, "torchao-dynamic": 0.08}
CLASSES = (
    EupeModel, EupeBackbone, EupePyramidBackbone, EupeForMultiTask, *TASK_MODELS.values(), EupeLlavaModel,
    EupeLlavaForConditionalGeneration,
)  # fmt: skip


def needs(name: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")


both_families = pytest.mark.parametrize("family", FAMILIES)
every_class = pytest.mark.parametrize("model_class", CLASSES)


def make(model_class: Any, family: str, **vlm: Any) -> nn.Module:
    """A tiny model whose blocks all matter."""
    torch.manual_seed(0)
    fields = {"layerscale_value": 0.5, "num_labels": 3, "num_depth_bins": 8, "detection_hidden_size": 64}
    if issubclass(model_class, EupeLlavaModel | EupeLlavaForConditionalGeneration):
        tower = tiny_config(family, layerscale_value=0.5, **WIDE[family])
        config: Any = EupeLlavaConfig(vision_config=tower, text_config=TEXT, image_token_index=IMAGE_TOKEN, **vlm)
    elif model_class is EupeForMultiTask:
        heads = {"far": {"task": "depth", "num_depth_bins": 8}, "scene": {"task": "classification", "num_labels": 3}}
        config = EupeMultiTaskConfig(
            encoder_config=tiny_config(family, layerscale_value=0.5, **WIDE[family]), heads=heads
        )
    elif model_class is EupePyramidBackbone:
        encoder = tiny_config(family, layerscale_value=0.5, out_indices=[1, 2, 3], **WIDE[family])
        config = EupePyramidConfig(encoder_config=encoder, strides=[8, 16, 32], hidden_size=64)
    else:
        config = tiny_config(family, **WIDE[family], **fields)
    return model_class(config).eval()


def inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    if not isinstance(model, EupeLlavaModel | EupeLlavaForConditionalGeneration):
        return {"pixel_values": images}
    count = (128 // model.config.vision_config.patch_size // model.config.scale_factor) ** 2
    return {"pixel_values": images, "input_ids": torch.tensor([[1, *[IMAGE_TOKEN] * count, 5, 9]])}


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """All floating-point tensors of an output, however deep."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value.float()
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)


@torch.no_grad()
def error(small: nn.Module, whole: nn.Module) -> float:
    """The largest error of an output, as a share of its length."""
    asked = inputs(whole)
    pairs = zip(tensors(dict(small.eval()(**asked))), tensors(dict(whole(**asked))), strict=True)
    return max(float((found - expected).norm() / expected.norm()) for found, expected in pairs)


def packed(model: nn.Module) -> list[str]:
    kinds = ("Linear8bitLt", "Linear4bit")
    return [name for name, module in model.named_modules() if type(module).__name__ in kinds]


@needs("bitsandbytes")
@pytest.mark.parametrize("bits", BITS)
@both_families
@every_class
def test_bitsandbytes_is_near(model_class: Any, family: str, bits: str, tmp_path: Path) -> None:
    whole = make(model_class, family)
    whole.save_pretrained(tmp_path)
    small = model_class.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(**BITS[bits]))
    assert packed(small) and not any("head" in name for name in packed(small))
    assert 0 < error(small, whole) < ERRORS[bits]


@needs("bitsandbytes")
@pytest.mark.parametrize("bits", BITS)
@both_families
def test_parts_are_skipped_by_their_own_names(family: str, bits: str, tmp_path: Path) -> None:
    whole = make(EupeLlavaForConditionalGeneration, family, scale_factor=2)
    whole.save_pretrained(tmp_path)
    found = []
    for name in ("multi_modal_projector", "model.multi_modal_projector", "vision_tower", "language_model"):
        config = BitsAndBytesConfig(**BITS[bits], llm_int8_skip_modules=[name, "lm_head"])
        small = EupeLlavaForConditionalGeneration.from_pretrained(tmp_path, quantization_config=config)
        assert config.llm_int8_skip_modules == [name, "lm_head"]  # yours stays as it was
        assert packed(small) and not any(f"{name.removeprefix('model.')}." in layer for layer in packed(small))
        assert "lm_head" not in packed(small)
        assert 0 < error(small, whole) < ERRORS[bits]
        found.append(packed(small))
    assert found[0] == found[1]


# torch's own and torchao's change the layers of a model that is there


def dynamic(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def torchao_of(name: str) -> Callable[[nn.Module], nn.Module]:
    def quantize(model: nn.Module) -> nn.Module:
        quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        quantization.quantize_(model, getattr(quantization, name)())
        return model

    return quantize


@pytest.mark.parametrize(
    ("quantize", "bound"),
    [pytest.param(dynamic, ERRORS["dynamic"], id="dynamic"),
     pytest.param(torchao_of("Int8WeightOnlyConfig"), ERRORS["torchao"], id="torchao"),
     pytest.param(torchao_of("Int8DynamicActivationInt8WeightConfig"), ERRORS["torchao-dynamic"],
                  id="torchao-dynamic")],
)  # fmt: skip
@both_families
@every_class
def test_quantized_in_place_is_near(
    model_class: Any, family: str, quantize: Callable[[nn.Module], nn.Module], bound: float
) -> None:
    whole = make(model_class, family)
    assert 0 < error(quantize(copy.deepcopy(whole)), whole) < bound


@needs("torchao")
@both_families
@every_class
def test_torchao_is_near(model_class: Any, family: str, tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig

    whole = make(model_class, family)
    whole.save_pretrained(tmp_path)
    small = model_class.from_pretrained(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    assert 0 < error(small, whole) < ERRORS["torchao"]


@both_families
def test_projector_takes_features_of_another_type(family: str) -> None:
    whole = make(EupeLlavaModel, family)
    with torch.no_grad():
        expected = whole.get_image_features(inputs(whole)["pixel_values"]).pooler_output[0]
        whole.vision_tower.to(torch.bfloat16)
        found = whole.get_image_features(inputs(whole)["pixel_values"]).pooler_output[0]
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.02
