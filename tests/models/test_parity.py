# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The six encoders against outputs recorded from the original code, and half precision against float32."""

import copy
from collections.abc import Iterator

import pytest
import torch
from conftest import requires_shared as needs_golden
from modeling_common import FULL_SIZE, GOLDEN, NAMES, golden_model, min_cosine, raw_weights
from safetensors import safe_open

from eupe_hf import EupeModel
from eupe_hf.conversion.verification import compare_with_golden
from eupe_hf.variants import VARIANTS


pytestmark = needs_golden

# Arrays of each file that are no output of a head, the mask itself aside: 4 sizes x (class token, registers, patches,
# their number, last block), 3 of them x 4 layers x (map, raw map, class token, shape), 2 masked; a ConvNeXt has no
# registers and no mask, but records its stages at all 4 sizes.
ARRAYS = {"vit": 4 * 5 + 3 * 4 * 4 + 2, "convnext": 4 * 4 + 4 * 4 * 4}

# Measured with torch 2.13 on two x86 cores: the largest absolute error over all arrays, and the smallest cosine of any
# token to float32, which is much the same at 256 x 384 and at 1024 x 1024 pixels.
#
#                    max abs error   bfloat16   float16
#   eupe-t                 3.8e-06   0.999929   0.999999
#   eupe-s                 2.9e-06   0.999937   0.999999
#   eupe-b                 3.3e-06   0.999943   0.999999
#   eupe-convnext-t        7.6e-06   0.999920   0.999999
#   eupe-convnext-s        9.5e-06   0.999885   0.999998
#   eupe-convnext-b        1.1e-05   0.999892   0.999998
TOLERANCE = {"vit": 1e-5, "convnext": 2e-5}
MIN_COSINE = {torch.bfloat16: 0.9998, torch.float16: 0.99999}  # the requirement is 0.999

SMALL, LARGE = (256, 384), (1024, 1024)


@pytest.fixture(scope="module", params=FULL_SIZE)
def model(request) -> Iterator[tuple[str, EupeModel, dict]]:
    """Name, model, and the float32 features that were computed with it, by size. One model is in memory at a time."""
    yield request.param, golden_model(request.param), {}


def test_parity_covers_the_six():
    assert len(NAMES) == 6
    assert {f"{variant.torch_hub_name}.safetensors" for variant in VARIANTS.values()} == {
        path.name for path in GOLDEN.glob("eupe_*.safetensors")
    }


def test_outputs_equal_those_of_the_original(model):
    name, encoder, _ = model
    path = GOLDEN / f"{VARIANTS[name].torch_hub_name}.safetensors"
    family = encoder.config.backbone_type
    rows = compare_with_golden(encoder, path)
    with safe_open(path, "pt") as golden:
        recorded = {key for key in golden.keys() if not key.startswith(("seg_", "depth_"))}  # noqa: SIM118
    assert {row.name for row in rows} == recorded - {"masked/mask"}
    assert len(rows) == ARRAYS[family]
    wrong = {row.name: row.max_abs_error for row in rows if not row.within(TOLERANCE[family])}
    assert wrong == {}
    # what is only counted is exact
    assert all(row.max_abs_error == 0 for row in rows if row.name.endswith(("/hw", "/n_patches")))


def _features(model: EupeModel, size: tuple[int, int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(raw_weights().pixel_values(1, *size)).last_hidden_state


def _check_half(model: tuple[str, EupeModel, dict], size: tuple[int, int], dtype: torch.dtype) -> None:
    name, encoder, features = model
    if size not in features:
        features[size] = _features(encoder, size)
    lowered = _features(copy.deepcopy(encoder).to(dtype), size)
    assert lowered.dtype == dtype
    assert torch.isfinite(lowered).all()
    cosine = min_cosine(lowered, features[size])
    assert cosine >= MIN_COSINE[dtype], f"{name}, {dtype}, {size}: {cosine:.6f}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_the_direction_of_every_token(model, dtype):
    _check_half(model, SMALL, dtype)


# On a CPU this takes up to a minute per model, float16 most of all: the cheapest of each family stay in the daily run.
AT_1024 = [
    pytest.param(
        name,
        dtype,
        marks=() if name in ("eupe-t", "eupe-convnext-t") and dtype == torch.bfloat16 else pytest.mark.slow,
        id=f"{name}-{dtype}",
    )
    for name in NAMES
    for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("model", "dtype"), AT_1024, indirect=["model"], scope="module")
def test_half_precision_keeps_the_direction_of_every_token_at_1024_pixels(model, dtype):
    _check_half(model, LARGE, dtype)
