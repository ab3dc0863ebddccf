# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Targets that the image processors refuse, each with a message that says what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROCESSOR_CLASSES, run_tests_of_torchvision_class
from image_common import RGB as IMAGE
from image_common import coco
from PIL import Image
from transformers.image_utils import AnnotationFormat
from transformers.utils import is_torchvision_available


IDS = np.random.default_rng(0).integers(0, 150, IMAGE.shape[:2], dtype=np.uint8)


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def processor(processor_class: type) -> Any:
    return processor_class()


def test_one_target_per_image(processor: Any) -> None:
    for maps, count in (([IDS], 1), ([IDS] * 3, 3), (IDS, 1), (np.stack([IDS] * 3), 1), ([], 0)):
        with pytest.raises(ValueError, match=f"There are 2 images and {count} segmentation maps: pass one for each"):
            processor([IMAGE, IMAGE], segmentation_maps=maps)
    for annotations, count in ((coco(), 1), ([coco()] * 3, 3), ([], 0)):
        with pytest.raises(ValueError, match=f"There are 2 images and {count} annotations: pass one for each"):
            processor([IMAGE, IMAGE], annotations=annotations)
    with pytest.raises(ValueError, match="would both become labels: pass one of them"):
        processor(IMAGE, segmentation_maps=IDS, annotations=coco())


BAD_MAPS = [
    (IDS.T, ValueError, r"is 31x20 and images\[1\] is 20x31, .* pass the map that belongs to the image"),
    (IDS.astype("f4"), ValueError, "is of dtype float32: pass class ids as integers"),
    (torch.from_numpy(IDS).half(), ValueError, "is of dtype torch.float16: pass class ids as integers"),
    (IDS.astype(object), ValueError, "is of dtype object: pass class ids as integers"),
    (IMAGE, ValueError, r"has the shape \(20, 31, 3\): pass one class id per pixel"),
    (Image.fromarray(IMAGE), ValueError, r"has the mode RGB: pass one class id per pixel, in the modes 1, L, P"),
    (Image.fromarray(IDS.astype("f4")), ValueError, "has the mode F: pass one class id"),
    (None, TypeError, "is of type NoneType: pass a PIL image, a path, an array or a tensor"),
    (IDS.tolist(), TypeError, "is of type list: pass a PIL image"),
]


@pytest.mark.parametrize(("ids", "error", "message"), BAD_MAPS)
def test_bad_maps_are_named_with_their_place(processor: Any, ids: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=rf"segmentation_maps\[1\] {message}"):
        processor([IMAGE, IMAGE], segmentation_maps=[IDS, ids], return_tensors="pt")


def test_damaged_maps_are_errors(processor: Any, tmp_path: Path) -> None:
    path = tmp_path / "ids.png"
    Image.fromarray(IDS).save(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"segmentation_maps\[0\] can't be read \(.*truncated.*\): pass an intact"):
        processor(IMAGE, segmentation_maps=Image.open(path))
    with pytest.raises(ValueError, match=r"ids.png' can't be read \(.*truncated"):
        processor(IMAGE, segmentation_maps=path)


BAD_BOXES = [
    ({}, r"has no bbox and no category_id: give bbox, COCO is \[left, top, width, height\] in pixels"),
    ({"bbox": [1, 2, 3, 4]}, "has no category_id: give bbox"),
    ({"bbox": [1, 2, 3], "category_id": 0}, r"has bbox=\[1, 2, 3\]: give 4 numbers, COCO is \[left, top, width"),
    ({"bbox": [1, 2, 3, "4"], "category_id": 0}, r"has bbox=\[1, 2, 3, '4'\]: give 4 numbers"),
    ({"bbox": [1, 2, 3, float("nan")], "category_id": 0}, r"has bbox=\[1, 2, 3, nan\]: give 4 numbers"),
    ({"bbox": "1234", "category_id": 0}, r"has bbox='1234': give 4 numbers"),
    ({"bbox": None, "category_id": 0}, r"has bbox=None: give 4 numbers"),
    ({"bbox": np.ones((1, 4)), "category_id": 0}, r"has bbox=\[\[1.0, .*\]\]: give 4 numbers"),
    ({"bbox": [9, 8, -3, 4], "category_id": 0}, r"has bbox=.*, of negative width or height: COCO is \[left"),
    ({"bbox": [9, 8, 3, -4], "category_id": 0}, r"has bbox=.*, of negative width or height"),
    ({"bbox": [31, 8, 3, 4], "category_id": 0}, r"has bbox=.*, outside its image of height 20 and width 31: COCO is"),
    ({"bbox": [3, 20, 3, 4], "category_id": 0}, r"has bbox=.*, outside its image"),
    ({"bbox": [-3, 2, 3, 4], "category_id": 0}, r"has bbox=.*, outside its image"),
    ({"bbox": [1, 2, 3, 4], "category_id": "cat"}, r"has category_id='cat': give a whole number from 0"),
    ({"bbox": [1, 2, 3, 4], "category_id": 1.5}, r"has category_id=1.5: give a whole number from 0"),
    ({"bbox": [1, 2, 3, 4], "category_id": -1}, r"has category_id=-1: give a whole number from 0"),
    ({"bbox": [1, 2, 3, 4], "category_id": 1, "area": None}, r"has area=None: give a number of pixels from 0"),
    ({"bbox": [1, 2, 3, 4], "category_id": 1, "area": -2.0}, r"has area=-2.0: give a number of pixels from 0"),
]


@pytest.mark.parametrize(("item", "message"), BAD_BOXES)
def test_bad_boxes_are_named_with_their_place(processor: Any, item: dict, message: str) -> None:
    bad = coco([0, 0, 2, 2], [0, 0, 3, 3])
    bad["annotations"].append(item)
    with pytest.raises(ValueError, match=rf"annotations\[1\]\['annotations'\]\[2\] {message}"):
        processor([IMAGE, IMAGE], annotations=[coco(), bad], return_tensors="pt")


BAD_ANNOTATIONS = [
    ([], "has the type list: give a dictionary with image_id and annotations"),
    ({"image_id": 3, "boxes": []}, r"has the keys \['image_id', 'boxes'\]: give a dictionary with"),
    ({"annotations": []}, r"has the keys \['annotations'\]: give a dictionary with"),
    ({"image_id": "a.jpg", "annotations": []}, "has image_id='a.jpg': give a whole number"),
    ({"image_id": 3, "annotations": {"bbox": []}}, r"\['annotations'\] must be a list with one dictionary for each"),
    ({"image_id": 3, "annotations": [[1, 2, 3, 4]]}, r"\['annotations'\] must be a list with one dictionary for each"),
]


@pytest.mark.parametrize(("target", "message"), BAD_ANNOTATIONS)
def test_bad_annotations_are_named_with_their_place(processor: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"annotations\[1\] ?{message}"):
        processor([IMAGE, IMAGE], annotations=[coco(), target])


def test_only_the_detection_format_is_taken(processor: Any) -> None:
    for name in ("coco_detection", AnnotationFormat.COCO_DETECTION):
        (labels,) = processor(IMAGE, annotations=coco([1, 2, 3, 4]), format=name)["labels"]
        assert len(labels["boxes"]) == 1
    with pytest.raises(ValueError, match="format='coco_panoptic' is not supported: give coco_detection"):
        processor(IMAGE, annotations=coco(), format="coco_panoptic")


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Path) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) == 36
