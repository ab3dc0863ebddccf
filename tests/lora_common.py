# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests of LoRA share: tiny bases, adapters in which everything has moved, and what a model answers."""

from pathlib import Path

import peft
import pytest
import torch
from modeling_common import FAMILIES, randomise, tiny_config
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import (
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
)

from eupe_hf import (
    EupeForDepthEstimation,
    EupeForImageClassification,
    EupeForObjectDetection,
    EupeForSegmentation,
    EupeModel,
)
from eupe_hf.lora import lora_config


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


def save_bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
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


def saved_adapter(family: str, base: Path, folder: Path) -> Path:
    model = EupeForImageClassification.from_pretrained(base, num_labels=3)
    trained(model, lora_config(model, r=2)).save_pretrained(folder)
    return folder


def adapted(model: nn.Module) -> dict[str, nn.Module]:
    found = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {name.removeprefix("base_model.model."): module for name, module in found.items()}


def saved_whole(model: nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return [name.removeprefix("base_model.model.") for name in found]
