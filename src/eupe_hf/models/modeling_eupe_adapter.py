# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of adapters: their base, the head that one was trained with, and a sentence for one that does not fit."""

import os
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import load_state_dict_from_file
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file, is_peft_available

from .reading_eupe import get_field, read_json


# The model's configuration in the folder of its adapter: with a config.json the folder would pass for a whole model.
ADAPTER_CONFIG_NAME = "eupe_config.json"
_WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of all names in that file
_OPTIONS = ("token", "cache_dir", "local_files_only", "revision", "subfolder", "force_download")
_ENCODERS = frozenset(("EupeModel", "EupeBackbone"))  # the bare encoder, with the same names


@dataclass
class Adapter:
    """An adapter that peft saved.

    Args:
        source: Its folder, or repository on the Hub.
        options: `revision`, `token`, ..., of `transformers.utils.cached_file`.
        is_resolved: `from_pretrained` was called with the base, because an Auto class has already found it.
    """

    source: str | os.PathLike
    options: dict[str, Any] = field(default_factory=dict)
    is_resolved: bool = False

    @classmethod
    def find(cls, source: str | os.PathLike | None, kwargs: dict[str, Any]) -> "Adapter | None":
        """The adapter that arguments of `from_pretrained` name; `None` if they name none."""
        options = {key: kwargs[key] for key in _OPTIONS if key in kwargs}
        given = kwargs.get("adapter_kwargs") or {}
        if "_adapter_model_path" in given:  # from the Auto classes; revision and subfolder are those of the base
            options = {key: value for key, value in options.items() if key not in ("revision", "subfolder")}
            options |= {key: given[key] for key in _OPTIONS if key in given}
            return cls(given["_adapter_model_path"], options, is_resolved=True)
        if source is None or not is_peft_available() or Path(source, CONFIG_NAME).is_file():
            return None  # a complete model may hold an adapter too: that is for transformers
        return cls(source, options) if find_adapter_config_file(source, **options) is not None else None

    @property
    def base(self) -> str:
        """Name or path of the model that the adapter is for. Raises `ValueError` if the adapter does not name one."""
        path = find_adapter_config_file(self.source, **self.options)
        base = get_field(read_json(path), "base_model_name_or_path", str, path) if path else None
        if not base:
            raise ValueError(
                f"The adapter {self.source} does not say which model it is for: base_model_name_or_path in its "
                "adapter_config.json is empty, as for a model that was not loaded with from_pretrained. Fill it "
                "in, or build the model and load with peft.PeftModel.from_pretrained(model, ADAPTER)."
            )
        return base

    @property
    def architecture(self) -> str | None:
        """Name of the class that the adapter was trained on; `None` if it was not saved with the adapter."""
        file = self._file(ADAPTER_CONFIG_NAME)
        saved = get_field(read_json(file), "architectures", list[str], file) if file is not None else None
        return saved[0] if saved else None

    def model_config(self, model_class: Any) -> PreTrainedConfig | None:
        """Configuration of the model that the adapter was trained on; `None` if none lies beside it.

        Raises:
            ValueError: The model was of another class.
        """
        if (saved := self.architecture) is None:
            return None
        names = {known.__name__ for known in model_class.__mro__}  # a subclass will do
        if saved not in names and not (saved in _ENCODERS and names & _ENCODERS):
            raise ValueError(
                f"The adapter {self.source} was trained on an {saved} and cannot be loaded as "
                f"{model_class.__name__}. Load it with the class, or Auto class, that it was made with."
            )
        return model_class.config_class.from_json_file(self._file(ADAPTER_CONFIG_NAME))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors by their names in the model; empty if the weights are not in a safetensors file.

        Raises:
            ValueError: The file is damaged.
        """
        if (file := self._file(_WEIGHTS_NAME)) is None:
            return {}
        try:
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
                return {name.removeprefix(_PREFIX): tuple(tensors.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise ValueError(
                f"The adapter file {file} is damaged, as if cut off during a copy ({error}). Copy it again."
            ) from error

    def check(self, model: nn.Module) -> None:
        """Refuse with a `ValueError` an adapter for layers that a model lacks or has in other sizes."""
        for name, shape in self.shapes().items():
            layer, _, part = name.partition(".lora_")
            try:
                module = reduce(getattr, layer.split("."), model)
            except AttributeError:
                self._refuse(model, f"it is for {layer}, which the model does not have")
            module = getattr(module, "base_layer", module) if part else module  # another adapter may be there
            here = tuple(module.weight.shape if part else module.shape)
            if part and isinstance(module, nn.Linear):  # a quantized one keeps its weight in another shape
                here = (module.out_features, module.in_features)
            side = {"A": 1, "B": 0}.get(part[:1]) if part.endswith(".weight") else None
            if (side is not None and shape[side] != here[side]) or (not part and shape != here):
                self._refuse(model, f"{name} is {list(shape)} in it, and the model's {layer} is {list(here)}")

    @torch.no_grad()
    def load_magnitudes(self, model: nn.Module, missing_keys: set[str]) -> None:
        """Load DoRA's magnitudes, whose names transformers does not know, and remove them from its `missing_keys`."""
        wanted = {key for key in missing_keys if ".lora_magnitude_vector." in key}
        file = self._file(_WEIGHTS_NAME) or self._file("adapter_model.bin") if wanted else None
        saved = {} if file is None else load_state_dict_from_file(file)
        for key in wanted:
            tensor = saved.get(f"{_PREFIX}{key.rpartition('.lora_magnitude_vector')[0]}.lora_magnitude_vector")
            if tensor is not None:
                model.get_parameter(key).copy_(tensor)
                missing_keys.remove(key)

    def check_base(self, model: nn.Module, loading_info: dict[str, Any]) -> None:
        """Refuse a base of another architecture, or one that lacks a part, with a `ValueError`.

        Args:
            model: The model, without the adapter.
            loading_info: transformers' `missing_keys`, without those of the adapter, and `unexpected_keys`.
        """
        if missing := sorted(loading_info["missing_keys"]):
            why = (
                f"{missing[0]} is neither in the base nor in the adapter. A head that was frozen while the adapter "
                "was trained is not in it: save the model with that head, and name it as the base"
            )
            self._refuse(model, why)
        if left_over := sorted(key for key in loading_info["unexpected_keys"] if "encoder." in key):
            self._refuse(model, f"the base has {left_over[0]}, which the model it was trained on did not have")

    def explain(self, base: str | os.PathLike, error: Exception) -> Exception:
        """The error to raise when the base could not be loaded."""
        if isinstance(error, OSError):
            return OSError(
                f"The adapter {self.source} is for {os.fspath(base)!r}, which was not found: {error}\nIf the base "
                "has moved, change base_model_name_or_path in the adapter's adapter_config.json."
            )
        return ValueError(
            f"The adapter {self.source} does not fit {os.fspath(base)!r}, which it names as its base: the weights "
            f"there belong to another architecture than its {ADAPTER_CONFIG_NAME} describes. {error}"
        )

    def _refuse(self, model: nn.Module, why: str) -> None:
        raise ValueError(
            f"The adapter {self.source} does not fit this {type(model).__name__}: {why}. Load it on the model that it "
            "was trained on, or an equal one."
        )

    def _file(self, name: str) -> Path | None:
        file = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False, **self.options)
        return None if file is None else Path(file)


def save_model_config(config: PreTrainedConfig, architecture: str, folder: str | os.PathLike) -> None:
    """Write the configuration of a model, and the name of its class, beside an adapter for it."""
    saved = type(config).from_dict(config.to_dict())
    saved.architectures = [architecture]
    vars(saved).pop("quantization_config", None)  # of the base in this run; the adapter serves any other as well
    saved.to_json_file(Path(folder) / ADAPTER_CONFIG_NAME, use_diff=False)
