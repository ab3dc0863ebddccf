# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Any EUPE model by name, folder or adapter, in eval mode and on the device that runs it."""

from typing import Any, TypeVar

import torch
from transformers import AutoConfig, AutoImageProcessor
from transformers import utils as transformers_utils
from transformers.image_processing_utils import BaseImageProcessor

from .models.configuration_eupe_multitask import EupeMultiTaskConfig
from .models.modeling_eupe import EupeModel, EupePreTrainedModel
from .models.modeling_eupe_multitask import EupeForMultiTask
from .models.modeling_eupe_tasks import TASK_MODELS
from .variants import check_source


_Model = TypeVar("_Model", bound=EupePreTrainedModel)


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


def load_encoder(
    model: str, device: str | torch.device | None = None, model_class: type[_Model] = EupeModel
) -> _Model:
    """Load an encoder in eval mode.

    Args:
        model: A short name, a Hub id, or the folder of a model or adapter.
        device: See `pick_device`.
        model_class: `EupeModel` or `EupeBackbone`.

    Raises:
        OSError: The model was not found.
        ValueError: It is not an EUPE model, or the name or the device is unknown.
    """
    check_source(model)
    place = pick_device(device)
    if transformers_utils.find_adapter_config_file(model) is None:
        _read_config(model)
    return model_class.from_pretrained(model).eval().to(place)


def _read_config(model: str) -> Any:
    config = AutoConfig.from_pretrained(model)
    if not config.model_type.startswith("eupe"):
        raise ValueError(f"{model} is a model of type {config.model_type!r}, not an EUPE model.")
    return config


def load_processor(model: str, size: int | None = None) -> BaseImageProcessor:
    """Load the image processor of a model.

    Args:
        model: See `load_encoder`.
        size: Resize images to this height and width in pixels, without a crop; by default as the model was saved.

    Raises:
        OSError: The model was not found.
        ValueError: The name is unknown, or the size is not positive.
    """
    check_source(model)
    if size is not None and size < 1:
        raise ValueError(f"The size must be at least 1 pixel, got {size}.")
    processor = AutoImageProcessor.from_pretrained(model)
    if size is not None:
        processor.size, processor.do_center_crop = {"height": size, "width": size}, False
    return processor


def load_task_model(model: str, device: str | torch.device | None = None) -> EupePreTrainedModel | None:
    """Load a task model or multi-task model of any class, in eval mode; `None` for an encoder without a head.

    Args:
        model: See `load_encoder`. An adapter is merged with its base, which needs peft.
        device: See `pick_device`.

    Raises:
        ImportError: `model` is an adapter and peft is not installed.
        OSError: The model was not found.
        ValueError: It is not an EUPE model, or the name or the device is unknown.
    """
    check_source(model)
    place = pick_device(device)
    if transformers_utils.find_adapter_config_file(model) is not None:
        from eupe_hf.lora.config import load_peft_model

        merged: Any = load_peft_model(model).merge_and_unload()
        known: tuple[Any, ...] = (EupeForMultiTask, *TASK_MODELS.values())
        if not isinstance(merged, known):
            raise ValueError(f"{model} is an adapter of {type(merged).__name__}, which is not a task model.")
        return merged.eval().to(place)
    config = _read_config(model)
    saved: list[Any] = [one for one in TASK_MODELS.values() if one.__name__ in (config.architectures or [])]
    if isinstance(config, EupeMultiTaskConfig):
        saved = [EupeForMultiTask]
    return saved[0].from_pretrained(model).eval().to(place) if saved else None
