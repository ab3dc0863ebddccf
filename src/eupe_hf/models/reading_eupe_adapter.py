# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Reading the two JSON files of an adapter: what peft builds layers from, and the configuration of the model.

peft compiles the patterns, imports the modules and builds the sizes that such a file names: they are checked first.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from transformers.configuration_utils import PreTrainedConfig

from .reading_eupe import get_field, read_json


# What building a model from a file's values, or peft's layers, may raise.
FAULTS = (AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError, ValueError, re.error)
_MANY = 1_000_000  # more classes, or a larger width, have no model
_DEEP = 1_000  # blocks of an encoder, likewise
# Of one alternative: each repetition multiplies the time by the length of a name, and so may a group of names.
_REPETITIONS, _CHOICES, _ALTERNATIVES = 3, 5, 8
_GROUP = re.compile(r"\((?:\?:)?([^()*+?\[\]{}^$]*)\)")
_ATOM = r"(?:[\w.-]|\\[.dw-]|\[\^?[\w.-]+\])"
_QUICK = re.compile(rf"\^?(?:\(\)|{_ATOM}[*+?]?)*\$?")


def is_quick(pattern: Any) -> bool:
    """Whether a pattern is plain text, with few alternatives and few repetitions of single characters in it.

    peft compiles what an adapter's file holds: repeated groups take years for some names.
    """
    if not isinstance(pattern, str) or len(pattern) > 10_000:
        return False
    pattern = pattern.replace(r"(?:.*\.)?", ".*")  # in whatever part of the model
    groups = [group.split("|") for group in _GROUP.findall(pattern)]
    alternatives = _GROUP.sub("()", pattern).split("|")
    if len(alternatives) > _ALTERNATIVES or any(len(set(names)) < len(names) for names in groups):
        return False
    for alternative in alternatives:
        repetitions = len(re.findall(rf"{_ATOM}[*+?]", alternative))
        is_small = repetitions <= _REPETITIONS and repetitions + alternative.count("()") <= _CHOICES
        if not is_small or _QUICK.fullmatch(alternative) is None:
            return False
    return True


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MANY


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _MANY  # not so for NaN


def _is_layers(value: Any) -> bool:
    return type(value) is int or (isinstance(value, list) and all(type(layer) is int for layer in value))


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_PATTERN = "a list of names, or a pattern of plain names with few alternatives and repetitions"
_FLAG = ("true or false", _is_flag)
# By field: what it must be, where it is not null, in words, and the check.
_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "peft_type": ("LORA or ADALORA, as for these models", lambda value: value in ("LORA", "ADALORA")),
    "r": ("a whole number of at least 1", _is_count),
    "lora_alpha": (f"a number of at most {_MANY:,}", _is_number),
    "lora_dropout": ("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "bias": ("none, all or lora_only", lambda value: value in ("none", "all", "lora_only")),
    "target_modules": (_PATTERN, lambda value: _is_names(value) or is_quick(value)),
    "exclude_modules": (_PATTERN, lambda value: _is_names(value) or is_quick(value)),
    "modules_to_save": ("a list of names", _is_names),
    "layers_to_transform": ("numbers of layers", _is_layers),
    "layers_pattern": ("the name of a list of layers", lambda value: _is_names(value) or _is_names([value])),
    "rank_pattern": (
        "ranks by name, or by a pattern of plain names",
        lambda value: isinstance(value, dict) and all(map(is_quick, value)) and all(map(_is_count, value.values())),
    ),
    "alpha_pattern": (
        "numbers by name, or by a pattern of plain names",
        lambda value: isinstance(value, dict) and all(map(is_quick, value)) and all(map(_is_number, value.values())),
    ),
    "init_lora_weights": ("true, false or a name", lambda value: isinstance(value, bool | str)),
    "target_parameters": ("a list of names", _is_names),
    "base_model_name_or_path": ("text", lambda value: isinstance(value, str)),
    "task_type": ("text", lambda value: isinstance(value, str)),
    **dict.fromkeys(("init_r", "target_r"), ("a whole number of at least 1", _is_count)),
    **dict.fromkeys(("use_dora", "use_rslora", "fan_in_fan_out", "lora_bias", "inference_mode"), _FLAG),
    # a module that peft would import by its name, and layers that it would multiply
    **dict.fromkeys(("megatron_config", "layer_replication"), ("null, for these models", lambda value: False)),
}


def read_lora(file: str | os.PathLike) -> dict[str, Any]:
    """Read an `adapter_config.json`. Raises `ValueError` if it holds what peft must not be given."""
    values = read_json(file)
    for name, (words, is_right) in _FIELDS.items():
        value = values.get(name)
        if value is not None and not is_right(value):
            raise ValueError(f"{file}: {name!r} must be {words}, got {str(value)[:80]!r}. Correct it by hand.")
    for name in ("peft_type", "r", "lora_alpha"):  # peft would fill them in
        if values.get(name) is None:
            raise ValueError(f"{file} has no {name!r}: it does not describe an adapter that peft saved.")
    return values


def base_of(lora: dict[str, Any], source: str | os.PathLike) -> str:
    """The model that an adapter is for, from its `adapter_config.json`.

    Raises:
        OSError: What it names is no path of this machine, and can't be a repository on the Hub.
        ValueError: It names none.
    """
    if not (base := lora.get("base_model_name_or_path")):
        raise ValueError(
            f"The adapter {source} does not say which model it is for: base_model_name_or_path in its "
            "adapter_config.json is empty, as for a model that was not loaded with from_pretrained. Fill it "
            "in, or build the model and load with peft.PeftModel.from_pretrained(model, ADAPTER)."
        )
    try:
        validate_repo_id(base)
    except HFValidationError:
        try:
            is_there = Path(base).exists()
        except (OSError, ValueError):  # too long, or with a NUL in it
            is_there = False
        if not is_there:
            raise base_not_found(source, base, "the folder does not exist.") from None
    return base


def base_not_found(source: str | os.PathLike, base: str, why: str) -> OSError:
    """The error to raise for an adapter whose base is not there."""
    return OSError(
        f"The adapter {source} is for {base[:500]!r}, which was not found: {why}\nIf the base has moved, change "
        "base_model_name_or_path in the adapter's adapter_config.json."
    )


def read_model_config(config_class: type[PreTrainedConfig], file: Path | None) -> PreTrainedConfig:
    """The configuration in an `eupe_config.json`. Raises `ValueError` for what can't be one."""
    values = read_json(str(file))
    for name in ("attn_implementation", "quantization_config"):  # of a run, not of the model
        values.pop(name, None)
    for name, kind in (
        ("id2label", dict[str, str]),
        ("label2id", dict[str, int]),
        ("dtype", str),
        ("model_type", str),
    ):
        get_field(values, name, kind, str(file))
    for name, value in values.items():
        if callable(getattr(config_class, name, None)):
            raise ValueError(f"{file}: {name[:80]!r} is not a field of {config_class.__name__}.")
        counts = value if isinstance(value, list) else [value]
        limit = _DEEP if name in ("num_hidden_layers", "depths") else _MANY
        if largest := next((one for one in counts if type(one) is int and one > limit), None):
            raise ValueError(f"{file}: {name[:80]!r} must be at most {limit:,}, got {largest}.")
    try:
        return config_class.from_dict(values)
    except FAULTS as error:
        reason = " ".join(str(error).split())[:500]
        raise ValueError(f"{file} does not describe a model: {reason}") from error
