# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of features: values, not looks."""

import numpy as np
import pytest
import torch
from PIL import Image

from eupe_hf.visualization import heat_picture, mark_patch, pca_rgb, rgb_picture, side_by_side, similarity_map


def test_pca_rgb_gives_equal_parts_equal_colours() -> None:
    torch.manual_seed(0)
    prototypes = torch.randn(4, 16)
    labels = torch.arange(4).repeat_interleave(16).reshape(1, 8, 8)  # four bands of two rows
    maps = prototypes[labels].permute(0, 3, 1, 2) + 0.01 * torch.randn(1, 16, 8, 8)
    colours = pca_rgb(maps)[0]
    assert colours.shape == (8, 8, 3)
    assert colours.min() >= 0 and colours.max() <= 1
    bands = colours.reshape(4, 16, 3)
    assert bands.std(dim=1).max() < 0.05
    distances = torch.cdist(bands.mean(dim=1), bands.mean(dim=1)) + 10 * torch.eye(4)
    assert distances.min() > 0.3


def test_pca_rgb_matches_a_covariance_eigendecomposition() -> None:
    torch.manual_seed(1)
    maps = torch.randn(2, 6, 5, 7) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1]).view(1, 6, 1, 1)
    features = maps.permute(0, 2, 3, 1).reshape(-1, 6).double()
    features -= features.mean(dim=0)
    _, vectors = torch.linalg.eigh(features.T @ features)
    first = features @ vectors[:, -1]
    correlation = np.corrcoef(first, pca_rgb(maps)[..., 0].flatten())[0, 1]
    assert abs(correlation) > 0.99  # not 1: the colours are cut at the percentiles


def test_pca_rgb_is_joint_over_the_batch() -> None:
    torch.manual_seed(2)
    one, other = torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4) + 3
    together = pca_rgb(torch.cat((one, other, one)))
    assert torch.equal(together[0], together[2])
    assert not torch.allclose(together[0], pca_rgb(one)[0], atol=0.05)


@pytest.mark.parametrize("shape", [(8, 4, 4), (1, 2, 4, 4), (1, 8, 1, 2)])
def test_pca_rgb_refuses_what_has_no_three_components(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"got \(8, 4, 4\)|at least 3"):
        pca_rgb(torch.randn(shape))


def test_similarity_map_is_the_cosine() -> None:
    torch.manual_seed(3)
    features = torch.randn(5, 3, 4)
    expected = torch.nn.functional.cosine_similarity(features, features[:, 1, 2].view(5, 1, 1), dim=0)
    found = similarity_map(features, 1, 2)
    torch.testing.assert_close(found, expected)
    assert found[1, 2] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("row", "column"), [(3, 0), (0, 4), (-1, 0)])
def test_similarity_map_refuses_a_patch_outside(row: int, column: int) -> None:
    with pytest.raises(ValueError, match="outside the grid of 3 x 4"):
        similarity_map(torch.randn(5, 3, 4), row, column)


def test_pictures_have_the_size_asked_for() -> None:
    image = Image.new("RGB", (64, 48), "grey")
    picture = rgb_picture(torch.tensor([[[1.0, 0, 0], [0, 0, 1.0]]]), (64, 48))
    assert picture.size == (64, 48)
    assert picture.getpixel((2, 24))[0] > 240 and picture.getpixel((61, 24))[2] > 240
    heat = heat_picture(torch.tensor([[0.0, 1.0]]), image, opacity=1.0)
    # dark blue to yellow; the enlargement overshoots a little at the ends
    assert heat.getpixel((2, 24)) == pytest.approx((13, 8, 135), abs=20)
    assert heat.getpixel((61, 24)) == pytest.approx((240, 249, 33), abs=40)
    marked = mark_patch(image, 1, 2, (3, 4))
    assert marked.getpixel((33, 17)) == (255, 255, 255) and image.getpixel((33, 17)) == (128, 128, 128)
    sheet = side_by_side([image, marked], "caption")
    assert sheet.size == (64 + 8 + 64, 48 + 28)
    assert np.asarray(sheet)[50:].min() < 100  # the caption is drawn
    long = np.asarray(side_by_side([Image.new("RGB", (1, 1))], "random weights: eupe-s"))
    assert long.shape[1] > 150 and long[:, -8:].min() == 255  # whole, also below a picture of one pixel


def test_flat_features_draw_without_nan() -> None:
    assert pca_rgb(torch.ones(1, 8, 4, 4)).isfinite().all()
    assert heat_picture(torch.ones(4, 4), Image.new("RGB", (8, 8))).size == (8, 8)
