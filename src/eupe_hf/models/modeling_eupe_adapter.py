# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Folders of adapters: their base, the head that one was trained with, and a sentence for one that does not fit."""

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import torch
from huggingface_hub import load_state_dict_from_file
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import CONFIG_NAME, cached_file, find_adapter_config_file, is_peft_available

from .reading_eupe import get_field, read_json
from .reading_eupe_adapter import base_not_found, base_of, read_lora, read_model_config


# The model's configuration in the folder of its adapter: with a config.json the folder would pass for a whole model.
ADAPTER_CONFIG_NAME = "eupe_config.json"
_WEIGHTS_NAME = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of all names in that file
_OPTIONS = ("token", "cache_dir", "local_files_only", "revision", "subfolder", "force_download")
_ENCODERS = frozenset(("EupeModel", "EupeBackbone"))  # the bare encoder, with the same names
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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

    @cached_property
    def lora(self) -> dict[str, Any]:
        """Its adapter_config.json. Raises `ValueError` if it holds what peft must not be given."""
        path = find_adapter_config_file(self.source, **self.options)
        if path is None:
            raise FileNotFoundError(f"There is no adapter in {self.source}: it has no adapter_config.json.")
        return read_lora(path)

    @property
    def base(self) -> str:
        """Name or path of the model that the adapter is for. Raises `ValueError` if the adapter does not name one."""
        return base_of(self.lora, self.source)

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
        return read_model_config(model_class.config_class, self._file(ADAPTER_CONFIG_NAME))

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors by their names in the model.

        Raises:
            OSError: There is no file of weights.
            ValueError: The file is damaged, or holds tensors that are not finite floating-point numbers.
        """
        file = self._file(_WEIGHTS_NAME) or self._file("adapter_model.bin")
        if file is None:
            raise FileNotFoundError(f"The adapter {self.source} has no weights: {_WEIGHTS_NAME} is missing.")
        try:
            if file.suffix == ".bin":  # read without running code
                tensors = load_state_dict_from_file(file)
            else:
                with safe_open(file, framework="pt") as opened:
                    tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"The adapter file {file} is damaged, as if cut off during a copy ({reason}). Copy it again."
            ) from error
        for name, tensor in tensors.items():
            is_counter = name.endswith(".num_batches_tracked")
            if not is_counter and (tensor.dtype not in _FLOATS or not bool(tensor.isfinite().all())):
                what = "holds NaN or infinite values" if tensor.dtype in _FLOATS else f"is of {tensor.dtype}"
                raise ValueError(f"{file}: {name[:200]} {what}: it was damaged, or its training diverged.")
        return {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}

    def check(self, model: nn.Module) -> None:
        """Refuse with a `ValueError` an adapter for layers that a model lacks or has in other sizes."""
        ranks = {self.lora["r"], *(self.lora.get("rank_pattern") or {}).values()}
        largest = 0
        sizes = dict(_sizes(model))  # names from a file are looked up here, never among attributes
        for name, tensor in self.tensors.items():
            layer, _, part = _plain(name).partition(".lora_")
            here, shape = sizes.get(f"{layer}.weight" if part else layer), tuple(tensor.shape)
            if here is None:
                self._refuse(model, f"it is for {layer[:200]}, which the model does not have")
            side = {"A": 1, "B": 0}.get(part[:1]) if part.endswith(".weight") else None
            is_right = shape == here
            if side is not None:
                is_right = len(shape) == len(here) and shape[side] == here[side] and shape[1 - side] in ranks
                largest = max(largest, shape[1 - side]) if is_right else largest
            elif part:
                is_right = part != "magnitude_vector" or tensor.numel() == here[0]
            if not is_right:
                rank = f", the rank {self.lora['r']}" if part else ""
                self._refuse(model, f"{name} is {list(shape)} in it, and the model's {layer} is {list(here)}{rank}")
        if self.lora["peft_type"] == "LORA" and largest < max(ranks):  # peft would build it, however large
            self._refuse(model, f"adapter_config.json says rank {max(ranks)}, and its weights have at most {largest}")

    @torch.no_grad()
    def load_magnitudes(self, model: nn.Module, missing_keys: set[str]) -> None:
        """Load DoRA's magnitudes, whose names transformers does not know, and remove them from its `missing_keys`."""
        for key in {key for key in missing_keys if ".lora_magnitude_vector." in key}:
            tensor = self.tensors.get(f"{key.rpartition('.lora_magnitude_vector')[0]}.lora_magnitude_vector")
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
            return base_not_found(self.source, os.fspath(base), str(error))
        return ValueError(
            f"The adapter {self.source} does not fit {os.fspath(base)!r}, which it names as its base: the weights "
            f"there belong to another architecture than its {ADAPTER_CONFIG_NAME} describes. {error}"
        )

    def unreadable(self, error: Exception) -> ValueError:
        """The error to raise when peft could not build or fill its layers."""
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        return ValueError(f"The adapter {self.source} can't be loaded: {reason}")

    def _refuse(self, model: nn.Module, why: str) -> NoReturn:
        raise ValueError(
            f"The adapter {self.source} does not fit this {type(model).__name__}: {why}. Load it on the model that it "
            "was trained on, or an equal one."
        )

    def _file(self, name: str) -> Path | None:
        file = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False, **self.options)
        return None if file is None else Path(file)


def _plain(name: str) -> str:
    """The name that a part has without an adapter around it."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module"))


def _sizes(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the parameters and buffers, as if no adapter were there and nothing were quantized."""
    for name, module in model.named_modules():
        if ".lora_" in name or ".modules_to_save" in name:
            continue
        plain = _plain(name)
        for part, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            # a quantized layer keeps its weight in another shape
            is_linear = isinstance(module, nn.Linear) and part == "weight"
            size = (module.out_features, module.in_features) if is_linear else tuple(tensor.shape)
            yield f"{plain}.{part}" if plain else part, size


def save_model_config(config: PreTrainedConfig, architecture: str, folder: str | os.PathLike) -> None:
    """Write the configuration of a model, and the name of its class, beside an adapter for it."""
    saved = type(config).from_dict(config.to_dict())
    saved.architectures = [architecture]
    vars(saved).pop("quantization_config", None)  # of the base in this run; the adapter serves any other as well
    saved.to_json_file(Path(folder) / ADAPTER_CONFIG_NAME, use_diff=False)
