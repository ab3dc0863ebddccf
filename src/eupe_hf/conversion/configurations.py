# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The `config.json` beside weights: what a conversion takes over, and what contradicts the weights."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import DINOv3ConvNextConfig, DINOv3ViTConfig
from transformers.utils import CONFIG_NAME

from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.configuration_eupe_sizes import check_sizes
from eupe_hf.models.modeling_eupe_vit import rotary_periods
from eupe_hf.models.reading_eupe import CheckpointError, get_field, read_json
from eupe_hf.models.reading_eupe_configuration import LABEL_FIELDS
from eupe_hf.variants import Variant, variant_config

from .layouts import StateDict


DINOV3_TYPES = (DINOv3ViTConfig.model_type, DINOv3ConvNextConfig.model_type)
_DECLARED = frozenset(field.name for field in fields(EupeConfig) if field.name in EupeConfig.__annotations__)
# What decides which features an encoder computes.
_COMPUTED = (
    "backbone_type", "num_channels", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "num_register_tokens", "rope_theta", "depths", "hidden_sizes", "hidden_act", "layer_norm_eps",
)  # fmt: skip
_PERIOD_TOLERANCE = 0.01  # published periods are rounded to 8 bits


def config_file(path: Path) -> Path:
    """Where the configuration of a checkpoint lies, if it has one."""
    return (path if path.is_dir() else path.parent) / CONFIG_NAME


def read_config(file: Path, state: StateDict | None = None) -> EupeConfig | None:
    """Read the configuration of an encoder or task model; `None` if there is none, or that of another model.

    Args:
        file: The `config.json`.
        state: Tensors of the encoder beside it, by their names in `EupeModel`, to check its sizes against.

    Raises:
        CheckpointError: It is damaged, describes no encoder or another one than the weights, or says that they are
            quantized. The message names the field.
    """
    values = read_json(file) if file.is_file() else {}
    if get_field(values, "model_type", str, file) != EupeConfig.model_type:
        return None
    if values.get("quantization_config") is not None:
        raise CheckpointError(
            f"{file}: 'quantization_config' says that the weights are quantized. Load the model, call its "
            "dequantize() and save it, then convert that."
        )
    for name, kind in LABEL_FIELDS.items():
        get_field(values, name, kind, file)
    # Everything else belongs to the folder that was read, or to a way of running the model.
    kept = {name: value for name, value in values.items() if name in _DECLARED or name in LABEL_FIELDS}
    if state is not None:
        check_sizes(kept, {key: tuple(tensor.shape) for key, tensor in state.items()}, file)
    try:
        return EupeConfig(**kept)
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise CheckpointError(f"{file} does not describe an EUPE encoder: {' '.join(str(error).split())}") from error


def dinov3_config(config: EupeConfig) -> DINOv3ViTConfig | DINOv3ConvNextConfig:
    """The configuration with which transformers' DINOv3 class computes the features of this encoder."""
    names = ["num_channels", "image_size", "hidden_act", "layer_norm_eps", "initializer_range"]
    if config.backbone_type == "convnext":
        fields = {name: getattr(config, name) for name in (*names, "depths", "hidden_sizes")}
        scale = config.layerscale_value
        return DINOv3ConvNextConfig(architectures=["DINOv3ConvNextModel"], layer_scale_init_value=scale, **fields)
    names += ["patch_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_register_tokens", "pos_embed_rescale", "layerscale_value"]
    fields = {name: getattr(config, name) for name in names}
    return DINOv3ViTConfig(architectures=["DINOv3ViTModel"], rope_theta=float(config.rope_theta), **fields)


def check_dinov3_config(path: Path, config: EupeConfig) -> None:
    """Refuse a DINOv3 configuration beside weights that makes another encoder of them than `config`."""
    file = config_file(path)
    values = read_json(file) if file.is_file() else {}
    if get_field(values, "model_type", str, file) not in DINOV3_TYPES:
        return
    if difference := _difference(values, dinov3_config(config)):
        raise CheckpointError(f"{file} contradicts the weights beside it: {difference}. Download both again.")


def difference_to(variant: Variant, config: EupeConfig) -> str | None:
    """In what a configuration computes other features than a published model, in words; `None` if in nothing.

    Rotary periods may be those of the model up to the rounding of its file.
    """
    published = variant_config(variant.name)
    values = {name: getattr(config, name) for name in _COMPUTED}
    if config.rope_periods is not None:
        expected = rotary_periods(published.rope_theta, published.hidden_size // published.num_attention_heads)
        if not torch.allclose(torch.tensor(config.rope_periods), expected, rtol=_PERIOD_TOLERANCE, atol=0):
            return f"its rotary periods are {config.rope_periods}, and should be {expected.tolist()}"
        values.pop("rope_theta")  # which then counts for nothing
    return _difference(values, published)


def _difference(values: Mapping[str, Any], expected: Any) -> str | None:
    for name in _COMPUTED:
        given, right = values.get(name), getattr(expected, name, None)
        if given is not None and given != right:
            return f"its {name} is {str(given)[:80]}, and should be {right}"
    return None
