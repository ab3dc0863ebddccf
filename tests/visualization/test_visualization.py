# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of features: values, not looks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from eupe_hf.visualization import (
    attention_picture,
    boxes_picture,
    heat_picture,
    mark_patch,
    matches_picture,
    mutual_matches,
    pca_rgb,
    rgb_picture,
    side_by_side,
    similarity_map,
)


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


def test_mutual_matches_are_each_others_nearest() -> None:
    first = torch.eye(6).view(6, 2, 3)  # six patches, all different
    second = first.flip(2) + 0.1 * torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(0))
    found = mutual_matches(first, second)
    assert sorted(found) == [(row, column, row, 2 - column) for row in range(2) for column in range(3)]
    normed = [functional.normalize(one.flatten(1), dim=0) for one in (first, second)]
    similarity = (normed[0].T @ normed[1]).view(2, 3, 2, 3)
    values = [similarity[match].item() for match in found]
    assert values == sorted(values, reverse=True)
    assert mutual_matches(first, second, count=2) == found[:2]
    lonely = torch.ones(6, 1, 2)  # both patches are nearest to the same one, which is nearest to the first of them
    assert len(mutual_matches(lonely, first)) == 1
    with pytest.raises(ValueError, match=r"\(6, 2, 3\) and \(5, 2, 3\)"):
        mutual_matches(first, second[:5])


def test_matches_are_joined_by_lines() -> None:
    black = Image.new("RGB", (60, 40))
    picture = matches_picture(black, black, [(0, 0, 1, 2)], ((2, 3), (2, 3)))
    assert picture.size == (128, 40)
    pixels = np.asarray(picture).astype(int)
    assert pixels[10, 10].any() and pixels[30, 68 + 50].any()  # centres of the two patches
    assert pixels[16:24, 60:68].min() < 255  # the line crosses the gap between the two
    assert not pixels[35, 10].any()


def test_labels_of_boxes_stay_inside_the_picture() -> None:
    image = Image.new("RGB", (120, 80), "black")
    found = {"boxes": torch.tensor([[100.0, 2, 118, 30]]), "labels": torch.tensor([3]), "scores": torch.tensor([0.5])}
    names = {3: "square"}
    picture = np.asarray(boxes_picture(image, found, names)).astype(int)
    apart = {**found, "boxes": torch.tensor([[10.0, 40, 28, 70]])}  # a box with room for its label
    whole = np.asarray(boxes_picture(image, apart, names)).astype(int)
    widths = [int(drawn.any(axis=(0, 2)).sum()) for drawn in (picture, whole)]  # the label is wider than the box
    assert widths[0] == widths[1] > 40


def test_attention_has_a_picture_per_head() -> None:
    attention = torch.zeros(6, 2, 3)
    attention[0, 0, 0] = attention[3, 1, 2] = 1
    image = Image.new("RGB", (60, 40))
    picture = np.asarray(attention_picture(attention, image)).astype(int)
    assert picture.shape == (40 + 8 + 40, 3 * 60 + 2 * 8, 3)  # three to a row
    assert picture[5, 5].sum() > picture[35, 55].sum()
    assert picture[48 + 35, 55].sum() > picture[48 + 5, 5].sum()
    assert attention_picture(attention[:4], image).size == (4 * 60 + 3 * 8, 40)
    with pytest.raises(ValueError, match=r"\(heads, height, width\), got \(2, 3\)"):
        attention_picture(attention[0], Image.new("RGB", (60, 40)))
