# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Batches of the image processors: images of one size together, and images that were read before."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROCESSOR_CLASSES, run_tests_of_torchvision_class
from torch.nn import functional
from transformers.utils import is_torchvision_available

from eupe_hf.models import image_processing_eupe


rng = np.random.default_rng(0)
SIZES = [(20, 31), (40, 24), (20, 31), (64, 64), (40, 24), (20, 31)]
IMAGES = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
MIXED = [image if index % 3 else (image / 255).astype(np.float32) for index, image in enumerate(IMAGES)]
OPTIONS = {
    "resize": {"size": {"height": 32, "width": 48}},
    "bicubic": {"size": {"height": 32, "width": 48}, "resample": 3},
    "shortest edge and crop": {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": 28},
    "no resize, padded": {"do_resize": False, "do_pad": True, "size_divisor": 16},
}


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of torch's resize takes."""
    seen: list[int] = []
    interpolate = functional.interpolate

    def count(batch: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(len(batch))
        return interpolate(batch, *args, **kwargs)

    monkeypatch.setattr(functional, "interpolate", count)
    return seen


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("disable_grouping", [None, True, False])
@pytest.mark.parametrize("images", [IMAGES, MIXED], ids=["uint8", "mixed dtypes"])
def test_together_gives_what_each_gives_alone(
    processor: Any, images: list[np.ndarray], disable_grouping: bool | None, options: dict[str, Any]
) -> None:
    together = processor(images, return_tensors="pt", disable_grouping=disable_grouping, **options)["pixel_values"]
    alone = [processor(image, return_tensors="pt", **options)["pixel_values"][0] for image in images]
    for found, expected in zip(together, alone, strict=True):
        rows, columns = ((new - old) // 2 for new, old in zip(found.shape[1:], expected.shape[1:], strict=True))
        inside = found[:, rows : rows + expected.shape[1], columns : columns + expected.shape[2]]
        assert torch.equal(inside, expected)
        assert found.count_nonzero() == inside.count_nonzero()


def test_one_size_is_resized_in_one_call_if_grouped(processor: Any, calls: list[int]) -> None:
    processor(IMAGES, disable_grouping=False)
    assert sorted(calls) == [1, 2, 3]
    calls.clear()
    processor(MIXED, disable_grouping=False)  # 20 x 31 has two dtypes
    assert sorted(calls) == [1, 1, 2, 2]
    for disable_grouping in (None, True):  # on the CPU, one by one is faster
        calls.clear()
        processor(IMAGES, disable_grouping=disable_grouping)
        assert calls == [1] * 6


def test_results_do_not_share_memory_with_the_images(processor: Any) -> None:
    floats = [torch.rand(3, 8, 8) for _ in range(3)]
    copies = [image.clone() for image in floats]
    for images in (floats, floats[:1]):
        for _ in range(2):
            processor(images, do_resize=False)
            processor.preprocess_pixels(images, do_resize=False)
    assert all(map(torch.equal, floats, copies))


@pytest.mark.parametrize("images", [IMAGES, MIXED], ids=["uint8", "mixed dtypes"])
def test_read_pixels_give_the_same_values_unchecked(
    processor: Any, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = [rng.integers(0, 9, image.shape[:2]) for image in images]
    expected = processor(images, segmentation_maps=maps, return_tensors="pt")
    pixels = [processor.process_image(image) for image in images]
    monkeypatch.setattr(type(processor), "process_image", None)
    monkeypatch.setattr(image_processing_eupe, "read_pixels", None)
    found = processor.preprocess_pixels(pixels, segmentation_maps=maps, return_tensors="pt")
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert torch.equal(found["labels"], expected["labels"])
    coco = {"image_id": 7, "annotations": [{"bbox": [2, 3, 10, 12], "category_id": 3}]}
    (labels,) = processor.preprocess_pixels(pixels[:1], annotations=coco, return_tensors="pt")["labels"]
    torch.testing.assert_close(labels["boxes"], torch.tensor([[7 / 31, 9 / 20, 10 / 31, 12 / 20]]))


def test_an_image_is_checked_once(processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = image_processing_eupe.read_pixels
    monkeypatch.setattr(image_processing_eupe, "read_pixels", lambda *args: seen.append(1) or read(*args))
    processor.preprocess_pixels([processor.process_image(image) for image in MIXED])
    assert len(seen) == len(MIXED)


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Any) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) == 29
