# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The feature pyramid: strides and widths, and where each level comes from."""

import pytest
import torch

from eupe_hf.modeling_eupe_pyramid import EupeFeaturePyramid


STRIDES = (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("in_channels", "in_strides", "sources"),
    [
        ((24,), (16,), (16, 16, 16, 16)),  # a ViT
        ((24, 24), (16, 16), (16, 16, 16, 16)),  # two layers of a ViT
        ((8, 12, 16, 20), (4, 8, 16, 32), (4, 8, 16, 32)),  # a ConvNeXt
        ((12, 20), (8, 32), (8, 8, 8, 32)),  # of equally near stages the finer one
        ((20,), (32,), (32, 32, 32, 32)),
    ],
)
def test_every_level_has_its_stride_and_reads_the_nearest_map(in_channels, in_strides, sources) -> None:
    torch.manual_seed(0)
    pyramid = EupeFeaturePyramid(in_channels, in_strides, STRIDES, 16)
    assert pyramid.sources == sources
    maps = [
        torch.randn(2, c, 64 // s, 96 // s, requires_grad=True) for c, s in zip(in_channels, in_strides, strict=True)
    ]
    levels = pyramid(maps)
    assert [tuple(level.shape) for level in levels] == [(2, 16, 64 // s, 96 // s) for s in STRIDES]
    for level, source in zip(levels, sources, strict=True):
        read = torch.autograd.grad(level.square().sum(), maps, retain_graph=True, allow_unused=True)
        assert [gradient is not None for gradient in read] == [stride == source for stride in in_strides]
        torch.testing.assert_close(level.mean(1), torch.zeros_like(level.mean(1)), atol=1e-5, rtol=0)  # it is normed


def test_odd_sides_are_rounded_up_for_coarser_levels() -> None:
    levels = EupeFeaturePyramid((8,), (16,), (8, 16, 32), 4)([torch.randn(1, 8, 5, 7)])
    assert [tuple(level.shape[2:]) for level in levels] == [(10, 14), (5, 7), (3, 4)]
