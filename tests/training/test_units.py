# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Values whose unit is plainly another are refused, with the likely cause."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from eupe_hf import EupeForDepthEstimation, EupeForImageClassification, EupeForObjectDetection, EupeImageProcessorPil
from eupe_hf.data.options import DataArguments
from eupe_hf.evaluation.metrics import ClassificationMetrics, average_precision
from eupe_hf.training.options import AdapterArguments
from eupe_hf.training.tasks.detection import DetectionDataArguments, load_detection


SHARES = [[0.5, 0.4, 0.2, 0.3], [0, 0, 1, 1]]
PIXELS = [[5.0, 4.0, 20.0, 10.0], [0, 0, 1, 1]]


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def coco_folder(root: Path, boxes: list[list[float]], crowd: list[float] | None = None) -> DetectionDataArguments:
    """Images of 40 x 30 pixels with these boxes each, and perhaps a box around a crowd."""
    (root / "images").mkdir(parents=True)
    content: dict[str, list[dict[str, Any]]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "a"}],
    }
    for i in range(4):
        Image.new("RGB", (40, 30)).save(root / "images" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.png"})
        for box in boxes:
            content["annotations"].append({"image_id": i, "bbox": box, "category_id": 1})
        if crowd is not None:
            content["annotations"].append({"image_id": i, "bbox": crowd, "category_id": 1, "iscrowd": 1})
    (root / "annotations.json").write_text(json.dumps(content))
    return DetectionDataArguments(str(root), held_out=0.25)


# ---- boxes ----


@pytest.mark.parametrize("crowd", [None, [0.0, 0.0, 30.0, 20.0]])
def test_boxes_that_are_shares_are_refused_by_the_recipe(crowd: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training part .* from 0 to 1, as shares .*: multiply them by the width"):
        load_detection(coco_folder(tmp_path / "shares", SHARES, crowd), seed=0)
    assert len(load_detection(coco_folder(tmp_path / "pixels", PIXELS, crowd), seed=0).train) == 3
    assert len(load_detection(coco_folder(tmp_path / "corner", PIXELS[1:], crowd), seed=0).train) == 3  # one pixel
    assert len(load_detection(coco_folder(tmp_path / "mixed", SHARES + PIXELS, crowd), seed=0).train) == 3


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_boxes_that_are_shares_are_refused_by_the_processor(kind: Any) -> None:
    processor, image = EupeImageProcessorPil(size=32), np.zeros((30, 40, 3), np.uint8)

    def call(boxes: list[list[float]]) -> Any:
        items = [{"bbox": kind(box), "category_id": 0} for box in boxes]
        return processor(image, annotations={"image_id": 0, "annotations": items})["labels"][0]["boxes"]

    with pytest.raises(ValueError, match=r"annotations\[0\] has boxes from 0 to 1 .* by its width 40 and height 30"):
        call(SHARES)
    assert len(call(PIXELS)) == 2 and len(call(PIXELS[1:])) == 1 and len(call(SHARES + PIXELS)) == 4


def entry(*boxes: list[float], **extra: list[float]) -> dict[str, torch.Tensor]:
    values = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.zeros(len(boxes), dtype=torch.int64)}
    return values | {key: torch.tensor(value) for key, value in extra.items()}


def test_average_precision_of_crowds_alone_is_refused() -> None:
    crowds = [entry([0.0, 0.0, 20.0, 20.0], iscrowd=[1])] * 2
    found = [entry([0.0, 0.0, 20.0, 20.0], scores=[0.9])] * 2
    with pytest.raises(ValueError, match="The targets hold no boxes but crowds, so average precision is not defined"):
        average_precision(found, crowds)
    with pytest.raises(ValueError, match="The targets hold no boxes, so average precision is not defined"):
        average_precision(found, [entry()] * 2)
    both = [entry([0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 20.0], iscrowd=[0, 1])] * 2
    assert average_precision(found, both)["ap"] == 1.0


def test_average_precision_of_two_units_is_refused() -> None:
    shares, in_pixels = [0.1, 0.1, 0.5, 0.5], [3.0, 3.0, 16.0, 16.0]
    with pytest.raises(ValueError, match=r"predictions reach to 0\.5, as shares .* targets to 16, as pixels do"):
        average_precision([entry(shares, scores=[0.9])], [entry(in_pixels)])
    with pytest.raises(ValueError, match=r"targets reach to 0\.5, as shares .* predictions to 16, as pixels do"):
        average_precision([entry(in_pixels, scores=[0.9])], [entry(shares)])
    for box in (shares, in_pixels):
        assert average_precision([entry(box, scores=[0.9])], [entry(box)])["ap"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["threshold", "nms_threshold"])
def test_a_threshold_in_percent_is_refused(name: str) -> None:
    model = EupeForObjectDetection(tiny_config("vit", num_labels=2, detection_hidden_size=8)).eval()
    outputs, processor = model(pixels()), EupeImageProcessorPil()
    with pytest.raises(ValueError, match=rf"{name} must be a share from 0 to 1, got 50\. It looks like percent"):
        processor.post_process_object_detection(outputs, **{name: 50})
    with pytest.raises(ValueError, match=f"{name} must be a share"):
        processor.post_process_object_detection(outputs, **{name: -0.1})
    assert len(processor.post_process_object_detection(outputs, **{name: 1.0})) == 2


# ---- depth, classes, pixels, options ----


def test_depth_in_millimetres_is_refused_and_unknown_depth_is_not() -> None:
    model = EupeForDepthEstimation(tiny_config("vit"))
    metres = torch.linspace(0.5, 9, 2 * 32 * 32).reshape(2, 32, 32)
    assert model(pixels(), labels=metres).loss > 0
    for labels in (1000 * metres, (1000 * metres).to(torch.int32), [None, 1000 * metres[0]]):
        with pytest.raises(ValueError, match=r"and depth counts up to max_depth=10\.0 metres\. They look like mill"):
            model(pixels(), labels=labels)
    for unknown in (0.0, float("nan"), float("inf"), 65535.0, -1.0):
        assert model(pixels(), labels=torch.full((2, 32, 32), unknown)).loss == 0
    assert model(pixels(), labels=metres + 40).loss == 0  # far away, but metres
    sparse = torch.zeros(2, 32, 32).index_fill(1, torch.tensor([3]), 2500.0)
    sparse[0, 3, 0] = 700
    with pytest.raises(ValueError, match="labels go from 700 to 2500"):
        model(pixels(), labels=sparse)


def test_classes_that_count_from_one_are_named_so() -> None:
    model, metrics = EupeForImageClassification(tiny_config("vit", num_labels=2)), ClassificationMetrics(2)
    with pytest.raises(ValueError, match=r"labels go from 1 to 2, but the model .*, 0 to 1\. They count from 1: sub"):
        model(pixels(), labels=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="They count from 1: subtract 1"):
        metrics.update(torch.tensor([0, 1]), torch.tensor([1, 2]))


def test_a_mean_of_pixels_up_to_255_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_mean=.*numbers on the scale of the rescaled pixels: divided by 255"):
        EupeImageProcessorPil(image_mean=[123.7, 116.3, 103.5], image_std=[58.4, 57.1, 57.4])
    assert EupeImageProcessorPil(image_mean=[123.7, 116.3, 103.5], image_std=58.4, do_rescale=False).image_std == 58.4
    assert EupeImageProcessorPil(image_mean=1.0, image_std=1.0, rescale_factor=1 / 127.5).image_mean == 1.0


@pytest.mark.parametrize(("option", "value"), [("flip", 50), ("flip", -0.1), ("colour", 25)])
def test_shares_in_percent_are_refused_as_options(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"--{option} must be a share from 0 to 1, got {value}"):
        DataArguments("d", **{option: value})
    with pytest.raises(ValueError, match="--dropout must be a share from 0 to below 1, got 10"):
        AdapterArguments(dropout=10)
