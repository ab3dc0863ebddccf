# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Targets in the image processors: geometry worked out by hand, inputs, outputs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROCESSOR_CLASSES, run_tests_of_torchvision_class, tiny_config
from image_common import coco
from PIL import Image
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil
from transformers.utils import is_torchvision_available

from eupe_hf import EupeForSegmentation
from eupe_hf.models import image_processing_eupe_targets


HEIGHT, WIDTH = 20, 31
rng = np.random.default_rng(0)
IMAGE = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
IDS = rng.integers(0, 150, (HEIGHT, WIDTH), dtype=np.uint8)
NATIVE = {"do_resize": False}
CROP = {"size": {"shortest_edge": 4}, "do_center_crop": True}


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def processor(processor_class: type) -> Any:
    return processor_class()


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), dtype=np.uint8)


def map_of(processor: Any, ids: Any, image: Any = None, **options: Any) -> torch.Tensor:
    """Returns one processed map, (h, w), of the size of its pixel values."""
    image = blank(*ids.shape) if image is None else image
    features = processor(image, segmentation_maps=ids, return_tensors="pt", **options)
    assert features["labels"].dtype == torch.int64
    assert features["labels"].shape == (1, *features["pixel_values"].shape[2:])
    return features["labels"][0]


def labels_of(processor: Any, shape: tuple[int, int], /, *boxes: Any, **options: Any) -> Any:
    (labels,) = processor(blank(*shape), annotations=coco(*boxes), return_tensors="pt", **options)["labels"]
    return labels


def corners(labels: Any) -> list[list[float]]:
    """Boxes as left, top, right and bottom, in pixels of the processed image."""
    height, width = labels["size"].tolist()
    x, y, w, h = (labels["boxes"].double() * torch.tensor([width, height] * 2)).unbind(-1)
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1).round(decimals=4).tolist()


# 1. geometry, worked by hand

COLUMNS = np.arange(8, dtype=np.uint8)[None].repeat(4, axis=0)  # 4x8, each pixel its column
ROWS = np.arange(8, dtype=np.uint8)[:, None].repeat(4, axis=1)  # 8x4, each pixel its row


def test_resize_takes_the_nearest_pixel_of_maps(processor: Any) -> None:
    smaller = map_of(processor, COLUMNS, size={"height": 2, "width": 4})
    assert smaller.tolist() == [[1, 3, 5, 7]] * 2  # centres at 1, 3, 5, 7: as torch's nearest-exact
    larger = map_of(processor, COLUMNS, size={"height": 4, "width": 12})
    assert larger.tolist() == [[0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 7, 7]] * 4
    ids = map_of(processor, IDS, size=64)
    expected = torch.nn.functional.interpolate(torch.from_numpy(IDS)[None, None], (64, 64), mode="nearest-exact")
    assert torch.equal(ids, expected[0, 0].to(torch.int64))
    assert ids.unique().numel() > 140


def test_resize_scales_boxes(processor: Any) -> None:
    labels = labels_of(processor, (100, 200), [50, 20, 100, 40], [0, 0, 200, 100], size={"height": 50, "width": 400})
    assert corners(labels) == [[100, 10, 300, 30], [0, 0, 400, 50]]
    np.testing.assert_allclose(labels["boxes"], [[0.5, 0.4, 0.5, 0.4], [0.5, 0.5, 1, 1]])
    assert labels["area"].tolist() == [4000, 20000]


def test_shortest_edge_and_centre_crop_on_maps(processor: Any) -> None:
    assert map_of(processor, COLUMNS, **CROP, crop_size=4).tolist() == [[2, 3, 4, 5]] * 4
    upright = map_of(processor, ROWS, **CROP, crop_size={"height": 3, "width": 2})
    assert upright.tolist() == [[row] * 2 for row in (2, 3, 4)]  # 2.5 is rounded to the even number
    half = map_of(processor, COLUMNS, size={"shortest_edge": 2}, do_center_crop=True, crop_size=2)
    assert half.tolist() == [[3, 5]] * 2


def test_shortest_edge_and_centre_crop_on_boxes(processor: Any) -> None:
    # 100x200 becomes 50x100, of which the columns 25 to 75 are left: 50 to 150 of the original
    boxes = ([60, 20, 20, 40], [0, 0, 200, 100], [40, 10, 20, 20], [0, 0, 50, 100], [150, 0, 50, 100])
    options = {"size": {"shortest_edge": 50}, "do_center_crop": True, "crop_size": 50}
    labels = labels_of(processor, (100, 200), *boxes, **options)
    assert corners(labels) == [[5, 10, 15, 30], [0, 0, 50, 50], [0, 5, 5, 15]]
    assert labels["class_labels"].tolist() == [0, 1, 2]
    assert labels["area"].tolist() == [200, 2500, 50]
    assert labels["size"].tolist() == [50, 50]
    assert labels["orig_size"].tolist() == [100, 200]


def test_a_crop_larger_than_the_image_is_ignored_around_it(processor: Any) -> None:
    options = {**NATIVE, "do_center_crop": True, "crop_size": {"height": 5, "width": 4}}
    ids = map_of(processor, np.array([[7, 8, 9]]), **options)
    assert ids.tolist() == [[255] * 4] * 2 + [[7, 8, 9, 255]] + [[255] * 4] * 2
    labels = labels_of(processor, (1, 3), [1, 0, 2, 1], **options)
    assert corners(labels) == [[1, 2, 3, 3]]
    wide = {**options, "crop_size": {"height": 2, "width": 9}}  # one side cut, the other padded
    assert map_of(processor, ROWS, **wide).tolist() == [[255, 255, *[row] * 4, 255, 255, 255] for row in (3, 4)]
    assert corners(labels_of(processor, (8, 4), [1, 2, 2, 2], **wide)) == [[3, 0, 5, 1]]


def test_padding_to_whole_patches_is_ignored(processor: Any) -> None:
    options = {**NATIVE, "do_pad": True, "size_divisor": 8}
    expected = torch.full((24, 32), 255)
    expected[2:22, 0:31] = torch.from_numpy(IDS)
    assert torch.equal(map_of(processor, IDS, IMAGE, **options), expected)
    labels = labels_of(processor, (HEIGHT, WIDTH), [0, 0, WIDTH, HEIGHT], [3, 4, 5, 6], **options)
    assert corners(labels) == [[0, 2, 31, 22], [3, 6, 8, 12]]
    assert labels["size"].tolist() == [24, 32]


def test_padding_goes_to_the_largest_of_the_batch(processor: Any) -> None:
    images, options = [blank(4, 8), blank(3, 5)], {**NATIVE, "do_pad": True, "return_tensors": "pt"}
    maps = processor(images, segmentation_maps=[COLUMNS, COLUMNS[:3, :5]], **options)["labels"]
    assert maps[0].tolist() == COLUMNS.tolist()
    assert maps[1].tolist() == [[255, 0, 1, 2, 3, 4, 255, 255]] * 3 + [[255] * 8]
    first, second = processor(images, annotations=[coco([0, 0, 8, 4]), coco([0, 0, 5, 3])], **options)["labels"]
    assert corners(first) == [[0, 0, 8, 4]]
    assert corners(second) == [[1, 0, 6, 3]]


def test_size_divisor_cuts_maps_and_boxes(processor: Any) -> None:
    options = {**NATIVE, "size_divisor": 8}
    assert torch.equal(map_of(processor, IDS, IMAGE, **options), torch.from_numpy(IDS[:16, :24].astype(int)))
    labels = labels_of(processor, (HEIGHT, WIDTH), [20, 10, 8, 8], [24, 0, 7, 20], [0, 16, 31, 4], **options)
    assert corners(labels) == [[20, 10, 24, 16]]
    assert labels["area"].tolist() == [24]


OPTIONS = [
    {"size": 16},
    {"size": {"height": 33, "width": 57}},
    {"size": {"shortest_edge": 13}, "size_divisor": 4},
    {"size": {"shortest_edge": 27}, "do_center_crop": True, "crop_size": 24},
    {"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": {"height": 15, "width": 10}},
    {**NATIVE, "do_center_crop": True, "crop_size": {"height": 9, "width": 40}, "size_divisor": 7},
    {**NATIVE, "do_center_crop": True, "crop_size": {"height": 9, "width": 40}, "size_divisor": 7, "do_pad": True},
    {**NATIVE, "do_pad": True, "size_divisor": 16},
]


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (7, 50)])
@pytest.mark.parametrize("options", OPTIONS)
def test_maps_and_boxes_go_where_the_image_goes(processor: Any, options: dict, size: tuple[int, int]) -> None:
    height, width = size
    if height < options.get("size_divisor", 0) and options is OPTIONS[2]:
        pytest.skip("the image would be cut to nothing")
    ids = rng.integers(1, 255, size, dtype=np.uint8)
    keep = {"resample": 0, "do_normalize": False, "do_rescale": False, "return_tensors": "pt", **options}
    features = processor(ids, segmentation_maps=ids, **keep)
    seen, labels = features["pixel_values"][0, 0].to(torch.int64), features["labels"][0]
    assert torch.equal(torch.where(seen == 0, 255, seen), labels)

    left, top, right, bottom = width // 4, height // 4, width - 3, height - 2
    painted = np.zeros(size, dtype=np.uint8)
    painted[top:bottom, left:right] = 1
    placed = processor(ids, segmentation_maps=painted, **keep)["labels"][0] == 1
    annotations = coco([left, top, right - left, bottom - top])
    (box,) = corners(processor(ids, annotations=annotations, **keep)["labels"][0])
    rows, columns = placed.nonzero().unbind(-1)
    extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    for edge, side in zip(extent, box, strict=True):
        assert abs(float(edge) - side) <= 0.5 + 1e-3  # the nearest pixel is half a pixel away at most


# 2. segmentation maps


MAPS = {
    "L": lambda: Image.fromarray(IDS),
    "I": lambda: Image.fromarray(IDS.astype(np.int32)),
    "I;16": lambda: Image.fromarray(IDS.astype(np.uint16)),
    "I;16B": lambda: Image.frombytes("I;16B", (WIDTH, HEIGHT), IDS.astype(">u2").tobytes()),
    **{f"numpy {dtype}": lambda dtype=dtype: IDS.astype(dtype) for dtype in ("u1", "i2", ">i4", "<u2", "i8")},
    "numpy flipped view": lambda: np.ascontiguousarray(IDS[::-1, ::-1])[::-1, ::-1],
    "numpy batch": lambda: IDS[None],
    "list": lambda: [IDS],
    **{f"{d}": lambda d=d: torch.from_numpy(IDS).to(d) for d in (torch.uint8, torch.uint16, torch.int64)},
    "torch batch": lambda: torch.from_numpy(IDS)[None],
}


@pytest.mark.parametrize("kind", MAPS)
def test_maps_of_every_kind_keep_their_ids(processor: Any, kind: str) -> None:
    labels = map_of(processor, MAPS[kind](), IMAGE, **NATIVE)
    assert torch.equal(labels, torch.from_numpy(IDS.astype(np.int64)))


def test_palettes_are_read_as_indices(processor: Any) -> None:
    picture = Image.fromarray(IDS, mode="L").convert("P")
    picture.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert picture.mode == "P"
    assert torch.equal(map_of(processor, picture, IMAGE, **NATIVE), torch.from_numpy(IDS.astype(np.int64)))


@pytest.mark.parametrize("mask", [Image.fromarray(IDS > 75), IDS > 75, torch.from_numpy(IDS > 75)])
def test_masks_of_two_values_are_0_and_1(processor: Any, mask: Any) -> None:
    assert torch.equal(map_of(processor, mask, IMAGE, **NATIVE), torch.from_numpy((IDS > 75).astype(np.int64)))


def test_ids_beyond_8_bits_are_kept(processor: Any) -> None:
    ids = np.array([[0, 256, 65535], [70000, 2**31 - 1, -1]])
    assert map_of(processor, ids, **NATIVE).tolist() == ids.tolist()
    large = 2**24 + 1  # no float32
    assert map_of(processor, np.full((4, 4), large), size=6).unique().tolist() == [large]


@pytest.mark.parametrize("as_path", [str, Path])
def test_maps_are_read_from_files_with_exif_rotation_undone(processor: Any, tmp_path: Path, as_path: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise when shown
    image, ids = tmp_path / "image.png", tmp_path / "ids.png"
    Image.fromarray(IMAGE).save(image, exif=exif)
    upright = np.rot90(IDS, -1)
    Image.fromarray(np.ascontiguousarray(upright)).save(ids)
    expected = torch.from_numpy(upright.astype(np.int64))
    assert torch.equal(map_of(processor, as_path(ids), as_path(image), **NATIVE), expected)
    Image.fromarray(IDS).save(ids, exif=exif)
    assert torch.equal(map_of(processor, as_path(ids), as_path(image), **NATIVE), expected)


def test_do_reduce_labels_counts_from_0(processor_class: type) -> None:
    ids = np.array([[0, 1, 150, 255]], dtype=np.uint8)
    processor = processor_class(do_resize=False, do_reduce_labels=True)
    assert map_of(processor, ids).tolist() == [[255, 0, 149, 255]]
    assert map_of(processor, ids, do_reduce_labels=False).tolist() == ids.tolist()
    assert map_of(processor_class(**NATIVE), ids).tolist() == ids.tolist()
    assert ids.tolist() == [[0, 1, 150, 255]]
    padded = map_of(processor, ids, do_pad=True, size_divisor=3)
    assert padded.tolist() == [[255] * 6, [255, 255, 0, 149, 255, 255], [255] * 6]


def test_the_ignore_index_can_be_another(processor: Any) -> None:
    options = {**NATIVE, "do_pad": True, "size_divisor": 4, "semantic_loss_ignore_index": -100}
    ids = np.array([[0, 1, 255]])
    empty = [-100] * 4
    assert map_of(processor, ids, **options).tolist() == [empty, [0, 1, 255, -100], empty, empty]
    reduced = map_of(processor, ids, **options, do_reduce_labels=True)
    assert reduced.tolist() == [empty, [-100, 0, 254, -100], empty, empty]


def test_maps_have_the_type_of_the_pixel_values(processor: Any) -> None:
    images, maps = [blank(4, 8), blank(8, 4)], [COLUMNS, ROWS]
    untyped = processor(images, segmentation_maps=maps, **NATIVE)["labels"]
    kind = np.ndarray if processor.backend == "pil" else torch.Tensor
    assert [(type(ids), tuple(ids.shape)) for ids in untyped] == [(kind, (4, 8)), (kind, (8, 4))]
    array = processor(images, segmentation_maps=maps, size=4, return_tensors="np")["labels"]
    assert isinstance(array, np.ndarray)
    assert (array.dtype, array.shape) == (np.int64, (2, 4, 4))
    features = processor(IMAGE, segmentation_maps=IDS, device="meta", return_tensors="pt")
    assert features["labels"].device.type == "meta"
    (labels,) = processor(IMAGE, annotations=coco([1, 2, 3, 4]), device="meta", return_tensors="pt")["labels"]
    assert {value.device.type for value in labels.values()} == {"meta"}


def test_maps_train_a_segmentation_model(processor: Any) -> None:
    model = EupeForSegmentation(tiny_config("vit", num_labels=150, out_indices=[1, 2])).eval()
    ids = np.where(IDS == 0, 255, IDS)
    options = {**NATIVE, "do_pad": True, "size_divisor": 16, "do_reduce_labels": True}
    features = processor(IMAGE, segmentation_maps=ids, return_tensors="pt", **options)
    outputs = model(**features)
    labelled = features["labels"][0] != 255
    assert labelled.sum() == (ids != 255).sum()
    logits = torch.nn.functional.interpolate(outputs.logits, (32, 32), mode="bilinear", align_corners=False)[0]
    expected = torch.nn.functional.cross_entropy(logits[:, labelled].T, features["labels"][0][labelled])
    torch.testing.assert_close(outputs.loss, expected)


def test_maps_come_back_from_post_processing(processor: Any) -> None:
    coarse = rng.integers(0, 9, (6, 4))
    ids = coarse.repeat(8, axis=0).repeat(8, axis=1)
    labels = processor(blank(48, 32), segmentation_maps=ids, size={"height": 6, "width": 4}, return_tensors="pt")
    logits = torch.nn.functional.one_hot(labels["labels"], 9).permute(0, 3, 1, 2).float()
    assert labels["labels"][0].tolist() == coarse.tolist()
    (found,) = processor.post_process_semantic_segmentation(SimpleNamespace(logits=logits), target_sizes=[(48, 32)])
    assert torch.equal(found[3::8, 3::8], torch.from_numpy(coarse))  # in the middle of each cell


# 3. boxes


def test_labels_are_those_of_transformers(processor: Any) -> None:
    items = [
        {"bbox": [10.5, 20.25, 100, 40], "category_id": 17, "area": 1234.5, "iscrowd": 0},
        {"bbox": [150, 90, 50.5, 10.5], "category_id": 3, "area": 500, "id": 8},
        {"bbox": [5, 5, 50, 50], "category_id": 4, "area": 2500, "iscrowd": 1},
        {"bbox": [5, 5, 0, 50], "category_id": 5, "area": 0},
    ]
    annotations = {"image_id": 39769, "annotations": items}
    theirs = RTDetrImageProcessorPil()
    for return_tensors in ("pt", "np"):
        options = {"size": {"height": 64, "width": 96}, "annotations": annotations, "return_tensors": return_tensors}
        (expected,) = theirs(blank(100, 200), **options)["labels"]
        (labels,) = processor(blank(100, 200), **options)["labels"]
        assert type(labels) is type(expected)
        assert labels.keys() == expected.keys()
        for key, value in expected.items():
            assert type(labels[key]) is type(value), key
            assert labels[key].dtype == value.dtype, key
            assert labels[key].shape == value.shape, key
            if key != "area":
                np.testing.assert_allclose(labels[key], value, atol=1e-6, err_msg=key)
        # of the second box 50 of 50.5 and 10 of 10.5 pixels are in the image: ours is scaled with the clipped box
        np.testing.assert_allclose(labels["area"], expected["area"], rtol=1e-6)


def test_areas_and_image_ids_are_optional_or_given(processor: Any) -> None:
    given = coco([10, 10, 20, 20], area=300, iscrowd=False)
    (labels,) = processor(blank(40, 40), annotations=given, size=20, return_tensors="pt")["labels"]
    assert labels["area"].tolist() == [75]  # a quarter
    (labels,) = processor(
        blank(40, 40), annotations=given, **NATIVE, do_center_crop=True, crop_size={"height": 40, "width": 20}
    )["labels"]
    assert labels["area"].tolist() == [300]
    cut = {**NATIVE, "do_center_crop": True, "crop_size": {"height": 10, "width": 40}}
    (labels,) = processor(blank(40, 40), annotations=given, **cut)["labels"]
    assert labels["area"].tolist() == [150]  # half of the box is left
    assert labels["image_id"].tolist() == [39769]


def test_numbers_may_be_numpys_and_boxes_tensors(processor: Any) -> None:
    for bbox in (np.array([1, 2, 3, 4]), torch.tensor([1.0, 2, 3, 4]), (np.float32(1), 2, 3.0, np.int64(4))):
        item = {"bbox": bbox, "category_id": np.int64(6), "area": np.float32(12), "iscrowd": np.bool_(False)}
        (labels,) = processor(
            blank(8, 8), annotations={"image_id": np.int32(3), "annotations": (item,)}, return_tensors="pt"
        )["labels"]
        assert labels["boxes"].tolist() == [[2.5 / 8, 0.5, 3 / 8, 0.5]]
        assert labels["class_labels"].tolist() == [6]


@pytest.mark.parametrize("size", [(2, 2), (0, 5)])
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_no_boxes_are_empty_tensors(processor: Any, size: tuple[int, int], return_tensors: str | None) -> None:
    cut = {**NATIVE, "do_center_crop": True, "crop_size": 4}
    for annotations in (coco(), coco([0, 0, *size])):  # none given, and none left
        (labels,) = processor(blank(16, 16), annotations=annotations, return_tensors=return_tensors, **cut)["labels"]
        assert tuple(labels["boxes"].shape) == (0, 4)
        for key in ("class_labels", "area", "iscrowd"):
            assert tuple(labels[key].shape) == (0,), key
        assert torch.as_tensor(labels["class_labels"]).dtype == torch.int64
        assert torch.as_tensor(labels["boxes"]).dtype == torch.float32


def test_rounding_leaves_no_sliver_beside_a_crop(processor: Any) -> None:
    # 3x9 becomes 7x21, of which the columns 7 to 14 are left: 3 to 6 of the original
    options = {"size": {"shortest_edge": 7}, "do_center_crop": True, "crop_size": 7}
    labels = labels_of(processor, (3, 9), [1.1, 0, 1.9 + 1e-9, 3], [6 - 1e-9, 0, 3, 3], **options)
    assert labels["boxes"].shape == (0, 4)


def test_boxes_follow_the_image_as_it_is_shown(processor: Any, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    path = tmp_path / "rotated.png"
    Image.fromarray(IMAGE).save(path, exif=exif)
    (labels,) = processor(path, annotations=coco([5, 25, 10, 6]), **NATIVE, return_tensors="pt")["labels"]
    assert labels["orig_size"].tolist() == [WIDTH, HEIGHT]
    assert corners(labels) == [[5, 25, 15, 31]]


def test_a_prediction_of_the_targets_comes_back_as_they_were(processor: Any) -> None:
    sizes, boxes = [(100, 200), (480, 333)], [[50, 20.5, 100, 40], [300, 7, 33, 473]]
    annotations = [coco(box) for box in boxes]
    labels = processor([blank(*size) for size in sizes], annotations=annotations, return_tensors="pt")["labels"]
    outputs = SimpleNamespace(
        logits=torch.full((2, 1, 1), 9.0), pred_boxes=torch.stack([label["boxes"] for label in labels])
    )
    detector = processor if hasattr(processor, "post_process_object_detection") else RTDetrImageProcessorPil()
    found = detector.post_process_object_detection(outputs, target_sizes=sizes)
    for (left, top, width, height), detections in zip(boxes, found, strict=True):
        expected = torch.tensor([[left, top, left + width, top + height]]).float()
        torch.testing.assert_close(detections["boxes"], expected, atol=1e-3, rtol=0)


def test_boxes_that_reach_beyond_the_image_are_clipped(processor: Any, monkeypatch: Any) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(image_processing_eupe_targets.logger, "warning_once", warnings.append)
    assert corners(labels_of(processor, (10, 20), [-0.5, 4, 6, 6.5], **NATIVE)) == [[0, 4, 5.5, 10]]
    assert not warnings  # rounding, in many data sets
    labels = labels_of(processor, (10, 20), [12, 4, 12, 4], [-9, -9, 10, 10], **NATIVE)
    assert corners(labels) == [[12, 4, 20, 8], [0, 0, 1, 1]]
    assert len(warnings) == 2
    assert len(set(warnings)) == 1
    assert "clipped: COCO is [left, top, width, height]" in warnings[0]


# 4. saving, and no targets


def test_options_of_targets_are_saved(processor_class: type, tmp_path: Path) -> None:
    processor_class(do_reduce_labels=True, semantic_loss_ignore_index=65535).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (config["do_reduce_labels"], config["semantic_loss_ignore_index"]) == (True, 65535)
    assert (tmp_path / "image_processing_eupe_targets.py").is_file()
    loaded = processor_class.from_pretrained(tmp_path)
    assert map_of(loaded, np.array([[0, 1, 255]]), **NATIVE).tolist() == [[65535, 0, 254]]
    del config["do_reduce_labels"], config["semantic_loss_ignore_index"], config["format"]  # saved before there were
    assert map_of(processor_class.from_dict(config), COLUMNS, **NATIVE).tolist() == COLUMNS.tolist()


def test_without_targets_there_are_no_labels(processor: Any) -> None:
    plain = processor(IMAGE, return_tensors="pt")
    assert plain.keys() == {"pixel_values"}
    with_map = processor(IMAGE, segmentation_maps=IDS, return_tensors="pt")
    assert torch.equal(with_map["pixel_values"], plain["pixel_values"])


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Path) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) > 70
