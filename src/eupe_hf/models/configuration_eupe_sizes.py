# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The sizes in a configuration, checked against the tensors that are there, before anything is built from them."""

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from .configuration_eupe import FAMILY_DEFAULTS, EupeConfig
from .reading_eupe import CheckpointError, file_beside, get_field, read_header, read_json


_FLOATS = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
# Tensors that every encoder of a family has once.
_FIRST = ("encoder.embeddings.cls_token", "encoder.stem.conv.weight")


def check_folder(source: str | os.PathLike | None, subfolder: str | None = None) -> None:
    """Refuse the configuration of a model of any class if it is far larger than the encoder's tensors beside it.

    It would take very long to build, or all memory. What differs less is compared when the weights are there. Only the
    headers of safetensors files are read; a folder without them, or without an encoder, passes. So does what is not a
    folder.

    Raises:
        CheckpointError: A size in it has another type, or is more than twice that of the weights; the
            encoder's tensors are not floating point numbers; or a file is damaged.
    """
    folder = Path(source or "", subfolder or "")
    config, index = folder / CONFIG_NAME, folder / SAFE_WEIGHTS_INDEX_NAME
    if source is None or not config.is_file():
        return
    values, files = read_json(config), [folder / SAFE_WEIGHTS_NAME]
    shard_of: dict[str, str] = {}
    if not files[0].is_file() and index.is_file():
        shard_of = get_field(read_json(index), "weight_map", dict[str, str], index, required=True)
        if not shard_of:
            raise CheckpointError(f"{index} names no tensors: its 'weight_map' is empty. Save or download it again.")
        files = [file_beside(name, index) for name in sorted(set(shard_of.values()))]
    if not all(file.is_file() for file in files):
        return
    for name in ("", "encoder_config", "vision_config"):  # of an encoder or task model, several tasks, a VLM
        fields = get_field(values, name, dict, config) or {} if name else values
        if get_field(fields, "model_type", str, config) == EupeConfig.model_type:
            stored = {key: tensor for file in files for key, tensor in read_header(file).items()}
            if lost := next((key for key in shard_of if key not in stored), None):
                raise CheckpointError(f"{index} names {lost!r} in {shard_of[lost]}, which lacks it: download again.")
            first = next((key for key in stored if key.endswith(_FIRST)), "")
            prefix = first.removesuffix(next((end for end in _FIRST if first.endswith(end)), ""))
            inside = {key.removeprefix(prefix): found for key, found in stored.items() if key.startswith(prefix)}
            if first:
                check_sizes(fields, {key: found.shape for key, found in inside.items()}, config, factor=2)
            if first and values.get("quantization_config") is None:  # else the numbers are packed
                check_numbers({prefix + key: found.dtype for key, found in inside.items()}, folder)


def check_numbers(dtypes: Mapping[str, Any], source: str | os.PathLike) -> None:
    """Refuse weights that are not floating point numbers, as safetensors or torch name their types."""
    for name, dtype in dtypes.items():
        if str(dtype).removeprefix("torch.") not in _FLOATS:
            raise CheckpointError(
                f"{name} of {source} holds numbers of type {dtype}, and the weights of a model are float32, float16, "
                "bfloat16 or float64: save it again in one of these."
            )


def check_sizes(
    values: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    path: str | os.PathLike,
    factor: int | None = None,
) -> None:
    """Check the sizes in an encoder's configuration against its tensors, before anything is built from them.

    Args:
        values: Fields of an `EupeConfig`, as its `config.json` or its `to_dict()` has them.
        shapes: Shapes of the encoder's tensors by their names in `EupeModel`. Sizes of which the tensors are missing
            are passed over, but never the number of blocks.
        path: Where the configuration comes from, for the message.
        factor: Refuse only what is larger than this many times the size in the weights.

    Raises:
        CheckpointError: A field has another type, or another value than the tensors. The message names both.
    """
    family = get_field(values, "backbone_type", str, path) or "vit"
    if family not in FAMILY_DEFAULTS:
        raise CheckpointError(f"{path}: 'backbone_type' must be {' or '.join(FAMILY_DEFAULTS)}, got {family[:40]!r}.")
    defaults = {"num_channels": EupeConfig.num_channels, **FAMILY_DEFAULTS[family]}
    stated = {**defaults, **{name: value for name, value in values.items() if value is not None}}
    sizes = _sizes(family, shapes)
    if values.get("quantization_config") is not None:  # such tensors are packed, in shapes of their own
        sizes.pop("intermediate_size", None)
    for name, there in sizes.items():
        kind = list[int] if isinstance(there, list) else int
        given = get_field(stated, name, kind, path)
        if name == "intermediate_size" and given is None:
            given = 4 * get_field(stated, "hidden_size", int, path)
        if given != there if factor is None else _is_beyond(given, there, factor):
            raise CheckpointError(
                f"{path}: {name} is {given}, and the weights have {there}. One of them belongs to another model: "
                "save or download both again."
            )


def _is_beyond(given: Any, there: Any, factor: int) -> bool:
    if isinstance(there, list):
        return len(given) > len(there) or any(a > factor * b for a, b in zip(given, there, strict=False))
    return given > factor * there


def _sizes(family: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields of a configuration that the shapes of tensors tell."""

    def size(key: str, axis: int) -> int | None:
        shape = shapes.get(key, ())
        return shape[axis] if axis < len(shape) else None

    if family == "vit":
        blocks = {match[1] for key in shapes if (match := re.match(r"encoder\.layers\.(\d+)\.", key))}
        found: dict[str, Any] = {
            "num_hidden_layers": len(blocks),
            "hidden_size": size("encoder.embeddings.cls_token", 2),
            "intermediate_size": size("encoder.layers.0.mlp.up_proj.weight", 0),
            "num_register_tokens": size("encoder.embeddings.register_tokens", 1),
            "patch_size": size("encoder.embeddings.patch_embeddings.weight", 2),
            "num_channels": size("encoder.embeddings.patch_embeddings.weight", 1),
        }
    else:
        pattern = re.compile(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.")
        layers = {(int(match[1]), match[2]) for key in shapes if (match := pattern.match(key))}
        depths = Counter(stage for stage, _ in layers)
        widths = [size(f"encoder.stages.{stage}.layers.0.depthwise_conv.weight", 0) for stage in sorted(depths)]
        found = {
            "depths": [depths[stage] for stage in sorted(depths)],
            "hidden_sizes": None if None in widths else widths,
            "num_channels": size("encoder.stem.conv.weight", 1),
        }
    return {name: value for name, value in found.items() if value is not None}
