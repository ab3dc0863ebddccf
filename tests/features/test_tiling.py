# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Feature maps in tiles, against the same made tile by tile."""

import pytest
import torch
from modeling_common import FAMILIES, NAMES, randomise, tiny_config

from eupe_hf import EupeBackbone, variant_config
from eupe_hf.features.tiling import tiled_feature_map


def backbone_of(family: str, **settings: list[int]) -> EupeBackbone:
    """A tiny encoder in which every weight matters."""
    return randomise(EupeBackbone(tiny_config(family, **settings))).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_are_averaged_where_they_overlap(family: str) -> None:
    backbone = backbone_of(family)
    stride = backbone.config.patch_size
    pixel_values = torch.randn(2, 3, 5 * stride, 7 * stride)
    found = tiled_feature_map(backbone, pixel_values, tile=4 * stride, overlap=2 * stride, batch_size=3)
    total, count = torch.zeros(2, found.shape[1], 5, 7), torch.zeros(5, 7)
    for top in (0, 1):  # the last tile ends with the image
        for left in (0, 2, 3):
            rows, columns = slice(top, top + 4), slice(left, left + 4)
            view = pixel_values[..., top * stride : (top + 4) * stride, left * stride : (left + 4) * stride]
            with torch.no_grad():
                total[..., rows, columns] += backbone(view).feature_maps[-1]
            count[rows, columns] += 1
    assert count.max() == 6 and count.min() == 1
    torch.testing.assert_close(found, total / count, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_tile_is_encoded_as_ever(name: str) -> None:
    torch.manual_seed(0)
    backbone = EupeBackbone(variant_config(name)).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = backbone(pixel_values).feature_maps[-1]
    assert torch.equal(tiled_feature_map(backbone, pixel_values, tile=96), expected)


def test_earlier_stages_of_a_convnext_have_finer_maps() -> None:
    backbone = backbone_of("convnext", out_indices=[2])  # stride 8
    pixel_values = torch.randn(1, 3, 64, 96)
    found = tiled_feature_map(backbone, pixel_values, tile=32, overlap=0)
    assert found.shape == (1, 12, 8, 12)
    with torch.no_grad():
        corner = backbone(pixel_values[..., 32:, 64:]).feature_maps[0]
    torch.testing.assert_close(found[..., 4:, 8:], corner, atol=1e-6, rtol=1e-6)


def test_the_overlap_is_half_a_tile_unless_told() -> None:
    backbone = backbone_of("vit")
    pixel_values = torch.randn(1, 3, 96, 96)
    found = tiled_feature_map(backbone, pixel_values, tile=48)
    assert torch.equal(found, tiled_feature_map(backbone, pixel_values, tile=48, overlap=16))
    assert not torch.allclose(found, tiled_feature_map(backbone, pixel_values, tile=48, overlap=0))


@pytest.mark.parametrize(
    ("height", "tile", "overlap", "sentence"),
    [
        (70, 64, 0, "multiples of 16, got 70 x 64: .* size_divisor=16"),
        (64, 40, 0, "tile must be a multiple of 16, .* got 40 and 0"),
        (64, 0, 0, "got 0 and 0"),
        (64, 32, 8, "got 32 and 8"),
        (64, 32, 32, "got 32 and 32"),
        (64, 32, -16, "got 32 and -16"),
    ],
)
def test_what_does_not_fit_is_refused(height: int, tile: int, overlap: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        tiled_feature_map(backbone_of("vit"), torch.randn(1, 3, height, 64), tile, overlap)
