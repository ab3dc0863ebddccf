# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Models of this package by name, folder or adapter, for whatever runs them."""

from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor
from transformers import utils as transformers_utils
from transformers.image_processing_utils import BaseImageProcessor

from .models.configuration_eupe import EupeConfig
from .models.configuration_eupe_multitask import EupeMultiTaskConfig
from .models.modeling_eupe import EupeModel, EupePreTrainedModel
from .models.modeling_eupe_multitask import TASK_MODELS, EupeForMultiTask
from .variants import check_source


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device to run a model on.

    Args:
        device: A name such as "cpu", "cuda" or "cuda:1"; by default the accelerator if there is one, else the CPU.

    Raises:
        ValueError: The device is not on this machine, or computes nothing ("meta").
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if device is None:
        return found
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (AssertionError, ImportError, RuntimeError):  # a name torch does not know, or a device that is not there
        chosen = None
    if chosen is None or chosen.type == "meta":
        names = " or ".join(dict.fromkeys(("cpu", found.type)))
        raise ValueError(f"The device {str(device)!r} is not available on this machine: choose {names}.")
    return chosen


def load_task_model(name: str) -> EupePreTrainedModel | None:
    """A saved task model or multi-task model, of whichever class; `None` if there is an encoder alone.

    Args:
        name: A folder, a Hub id or a short name. An adapter is merged with its base, which needs peft.

    Raises:
        ImportError: An adapter without peft.
        OSError: The model is not to be had.
        ValueError: It is none of EUPE, or there is no such name.
    """
    check_source(name)
    if transformers_utils.find_adapter_config_file(name) is not None:
        from eupe_hf.lora.config import load_peft_model

        model: Any = load_peft_model(name).merge_and_unload()
        if isinstance(model, (EupeForMultiTask, *TASK_MODELS.values())):
            return model  # type: ignore[return-value]
        raise ValueError(f"{name} is an adapter of {type(model).__name__}, which is no task model.")
    config = AutoConfig.from_pretrained(name)
    if isinstance(config, EupeMultiTaskConfig):
        return EupeForMultiTask.from_pretrained(name)
    if not isinstance(config, EupeConfig):
        raise ValueError(f"{name} is a {config.model_type} model, not one of EUPE.")
    for task_class in TASK_MODELS.values():
        if task_class.__name__ in (config.architectures or []):
            return task_class.from_pretrained(name)
    return None


def _load(name: str, task: str | None) -> tuple[EupePreTrainedModel, bool]:
    model = load_task_model(name)
    if model is not None:
        return model, False
    if task is None:
        raise ValueError(f"{name} is an encoder without a head: say which to put on it, with --task.")
    if task not in TASK_MODELS:
        raise ValueError(f"The task must be one of {', '.join(TASK_MODELS)}, got {task!r}.")
    torch.manual_seed(0)
    return TASK_MODELS[task].from_pretrained(name), True


def load_processor(model: str, size: int | None = None) -> BaseImageProcessor:
    """The image processor of a model.

    Args:
        model: A short name, a Hub id or a folder.
        size: Squash images to this side in pixels, instead of the model's own.

    Raises:
        OSError: The model is not to be had.
        ValueError: There is no such name.
    """
    check_source(model)
    processor = AutoImageProcessor.from_pretrained(model)
    if size is not None:
        processor.size, processor.do_center_crop = {"height": size, "width": size}, False
    return processor


def load_encoder(model: str) -> EupeModel:
    """An encoder in eval mode, on the accelerator if there is one; arguments and errors as of `load_processor`."""
    check_source(model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return EupeModel.from_pretrained(model).eval().to(device)
