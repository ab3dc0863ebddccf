# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Compare what an encoder computes with recorded outputs of the original, or with a second model.

Inputs come from a frozen random stream (numpy's `RandomState`, seeded by the size), so they are the same on every
machine, and outputs recorded elsewhere can be compared.
"""

import copy
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from eupe_hf.models.modeling_eupe import EupeBackbone, EupeModel, EupePreTrainedModel


# (batch, height, width): a square, a batch, an oblong, and sides that are not multiples of a patch
SIZES = ((1, 256, 256), (2, 224, 224), (1, 256, 384), (1, 250, 230))
_SAMPLED_TOKENS = 16
_SIZE = re.compile(r"(\d+)x(\d+)x(\d+)/")
_HEADS = ("seg_", "depth_")
_Encoder = TypeVar("_Encoder", bound=EupePreTrainedModel)


@dataclass(frozen=True)
class Row:
    """One compared array.

    Args:
        name: As in "1x256x256/cls".
        max_abs_error: NaN if either side holds a NaN, or both the same infinity.
        shape: Of the array.
    """

    name: str
    max_abs_error: float
    shape: tuple[int, ...]

    def within(self, tolerance: float) -> bool:
        """Whether the error is a number and at most `tolerance`."""
        return self.max_abs_error <= tolerance  # False for NaN


def frozen_pixel_values(batch: int, height: int, width: int, num_channels: int = 3) -> torch.Tensor:
    """Random normalised images, the same on every machine: (batch, num_channels, height, width), float32."""
    stream = np.random.RandomState(zlib.crc32(f"pixels/0/{batch}x{height}x{width}".encode()))
    return torch.from_numpy(stream.standard_normal((batch, num_channels, height, width)).astype(np.float32))


@torch.inference_mode()
def compare_with_golden(model: EupeModel | EupeBackbone, golden_path: str | os.PathLike) -> list[Row]:
    """Compare an encoder with recorded outputs of the original code: one row per recorded array.

    Every array of the file is compared: the outputs of `EupeModel`, and the maps that `EupeBackbone` gives for the
    recorded blocks or stages, normed and raw. Patches are compared at 16 recorded positions. Outputs of heads
    (`seg_*`, `depth_*`) are left out.

    Args:
        model: The encoder, of either class; the other class shares its weights. It runs in its own dtype, in eval
            mode, and is not changed.
        golden_path: Safetensors file with arrays named "BxHxW/<output>", recorded on `frozen_pixel_values(B, H, W)`,
            and "masked/<output>".

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not a safetensors file, or has no outputs of an encoder, or of one of another shape.
    """
    golden = _read_golden(Path(golden_path))
    sizes = sorted({tuple(map(int, match.groups())) for key in golden if (match := _SIZE.match(key))})
    encoder = _on_same_weights(EupeModel, model)
    settings: dict[str, Any] = {"return_class_token": True, "reshape_hidden_states": True}
    settings["out_indices"] = list(range(1, model.config.num_stages + 1))
    normed, raw = (_on_same_weights(EupeBackbone, model, apply_layernorm=norm, **settings) for norm in (True, False))
    found: dict[str, torch.Tensor] = {}
    for size in sizes:
        prefix = "x".join(map(str, size))
        pixel_values = frozen_pixel_values(*size).to(model.device)
        outputs = _encoder_outputs(encoder, pixel_values)
        if any(key.startswith(f"{prefix}/layer") for key in golden):
            outputs |= _stage_outputs(normed, raw, pixel_values)
        found |= {f"{prefix}/{name}": output for name, output in outputs.items()}
    if "masked/mask" in golden and model.config.backbone_type == "vit":
        mask = golden.pop("masked/mask").to(model.device)
        outputs = _encoder_outputs(encoder, frozen_pixel_values(1, 256, 256).to(model.device), mask)
        found |= {f"masked/{name}": output for name, output in outputs.items()}
    for key, expected in golden.items():
        shape = tuple(found[key].shape) if key in found else None
        if shape != tuple(expected.shape):
            raise ValueError(
                f"{golden_path} holds outputs of another model: its {key!r} has shape {tuple(expected.shape)}, this "
                f"{model.config.backbone_type} of width {model.config.hidden_size} gives {shape or 'no such output'}."
            )
    return [_row(key, output, golden[key]) for key, output in found.items() if key in golden]


def _read_golden(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"No file with recorded outputs at {path}.")
    try:
        golden = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged ({error}).") from error
    golden = {key: tensor for key, tensor in golden.items() if not key.startswith(_HEADS)}
    strange = [key for key in golden if not _SIZE.match(key) and not key.startswith("masked/")]
    if strange or not golden:
        raise ValueError(
            f"{path} holds no recorded outputs of an encoder, which have names like '1x256x256/cls'; found "
            f"{', '.join(map(repr, strange[:3])) or 'none'}."
        )
    return golden


def _on_same_weights(cls: type[_Encoder], model: EupePreTrainedModel, **settings: Any) -> _Encoder:
    """A `cls` that shares the parameters of `model`, with these settings."""
    config = copy.deepcopy(model.config)
    config.set_output_features_output_indices(out_features=None, out_indices=settings.pop("out_indices", None))
    for name, value in settings.items():
        setattr(config, name, value)
    with torch.device("meta"):
        twin = cls(config)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin.eval()


def _sampled(tokens: torch.Tensor) -> torch.Tensor:
    """The recorded ones of tokens (B, N, C): 16, evenly spaced, or all if there are fewer."""
    count = tokens.shape[1]
    return tokens[:, torch.linspace(0, count - 1, min(_SAMPLED_TOKENS, count)).round().long().to(tokens.device)]


def _flat(feature_map: torch.Tensor) -> torch.Tensor:
    return feature_map.flatten(2).transpose(1, 2)  # (B, H * W, C)


def _encoder_outputs(
    model: EupeModel, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    prefix = model.config.num_prefix_tokens
    outputs = model(pixel_values, bool_masked_pos=bool_masked_pos, output_hidden_states=-1)
    patches, last = outputs.last_hidden_state[:, prefix:], outputs.hidden_states[-1]
    return {
        "cls": outputs.pooler_output,
        **({"registers": outputs.last_hidden_state[:, 1:prefix]} if prefix else {}),
        "patches": _sampled(patches),
        "n_patches": torch.tensor([patches.shape[1]]),
        "prenorm": _sampled(_flat(last) if last.ndim == 4 else last),
    }


def _stage_outputs(normed: EupeBackbone, raw: EupeBackbone, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs, raw_maps = normed(pixel_values), raw(pixel_values).feature_maps
    found = {}
    for i, (feature_map, token) in enumerate(zip(outputs.feature_maps, outputs.cls_tokens, strict=True)):
        found[f"layer{i}/map"] = _sampled(_flat(feature_map))
        found[f"layer{i}/map_raw"] = _sampled(_flat(raw_maps[i]))
        found[f"layer{i}/cls"] = token
        found[f"layer{i}/hw"] = torch.tensor(feature_map.shape[2:])
    return found


def _row(name: str, found: torch.Tensor, expected: torch.Tensor) -> Row:
    error = (found.cpu().double() - expected.cpu().double()).abs().max()  # the maximum keeps a NaN
    return Row(name, error.item(), tuple(expected.shape))


@torch.inference_mode()
def compare_models(a: PreTrainedModel, b: PreTrainedModel, sizes: Sequence[tuple[int, int, int]] = SIZES) -> list[Row]:
    """Compare all outputs of two encoders on frozen inputs: last hidden state, pooled output and every hidden state.

    Args:
        a: An `EupeModel`, or a model with the same outputs. Both run in their own dtype, in eval mode, unchanged.
        b: The other one.
        sizes: (batch, height, width) of each input, in pixels.

    Raises:
        ValueError: The models have different numbers or shapes of outputs.
    """
    rows = []
    with _evaluating(a), _evaluating(b):
        for size in sizes:
            pixel_values = frozen_pixel_values(*size, num_channels=a.config.num_channels)
            name = "x".join(map(str, size))
            ours, theirs = (_all_outputs(model, pixel_values) for model in (a, b))
            shapes = [{key: tuple(tensor.shape) for key, tensor in outputs.items()} for outputs in (ours, theirs)]
            if shapes[0] != shapes[1]:
                key = next(key for key in (*ours, *theirs) if shapes[0].get(key) != shapes[1].get(key))
                raise ValueError(
                    f"The models have different shapes: {key} of {name} is {shapes[0].get(key, 'missing')} in the "
                    f"first and {shapes[1].get(key, 'missing')} in the second."
                )
            rows += [_row(f"{name}/{key}", output, theirs[key]) for key, output in ours.items()]
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _all_outputs(model: PreTrainedModel, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = model(pixel_values.to(model.device), output_hidden_states=True)
    return {
        "last_hidden_state": outputs.last_hidden_state,
        "pooler_output": outputs.pooler_output,
        **{f"hidden_states.{i}": state for i, state in enumerate(outputs.hidden_states)},
    }


def compare_tensors(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[Row]:
    """Compare two state dicts: one row per tensor.

    Raises:
        ValueError: Names, shapes or dtypes differ. The message gives the first of these tensors.
    """
    kinds = [{key: (tuple(t.shape), t.dtype) for key, t in tensors.items()} for tensors in (expected, found)]
    for key in (*expected, *found):
        wanted, got = (kind.get(key, "absent") for kind in kinds)
        if wanted != got:
            raise ValueError(f"{key!r} should be {wanted} and is {got}.")
    # torch.equal is several times faster than a difference, and the usual case
    return [
        Row(key, 0.0, tuple(tensor.shape)) if torch.equal(found[key], tensor) else _row(key, found[key], tensor)
        for key, tensor in expected.items()
    ]


def format_table(rows: Sequence[Row], tolerance: float) -> str:
    """A table of the rows, of which there is at least one, with a summary in the last line."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'array':<{width}}  {'shape':<15}  max abs error"]
    for row in rows:
        verdict = "" if row.within(tolerance) else "  TOO LARGE"
        lines.append(f"{row.name:<{width}}  {'x'.join(map(str, row.shape)):<15}  {row.max_abs_error:<13.2e}{verdict}")
    worst = max(rows, key=lambda row: (math.isnan(row.max_abs_error), row.max_abs_error))
    passed = sum(row.within(tolerance) for row in rows)
    lines.append(
        f"{passed} of {len(rows)} arrays are the same within {tolerance:g}; the largest error is "
        f"{worst.max_abs_error:.2e}, in {worst.name}."
    )
    return "\n".join(line.rstrip() for line in lines)
