# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training rows: what the model takes, by hand, and the same pixels as any other way through the processor."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from eupe_hf import EupeImageProcessorPil
from eupe_hf.data.rows import Rows
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.depth import DepthRows
from eupe_hf.training.tasks.detection import DetectionRows


def picture(kind: str) -> Image.Image:
    """An image of 12 x 8 pixels, upright."""
    noise = np.random.default_rng(0)
    if kind == "float":
        return Image.fromarray(noise.random((8, 12), dtype=np.float32))
    if kind == "16 bits":
        return Image.fromarray(noise.integers(0, 65536, (8, 12)).astype(np.uint16))
    pixels = noise.integers(0, 256, (8, 12, 4)).astype(np.uint8)
    if kind == "turned":
        image = Image.fromarray(pixels[..., :3]).transpose(Image.Transpose.ROTATE_90)
        image.getexif()[0x0112] = 6
        return image
    return Image.fromarray(pixels[..., 0] if kind == "grey" else pixels if kind == "alpha" else pixels[..., :3])


class OneRow(Rows):
    """One row, without a data set behind it."""

    def __init__(self, *cells: Any):
        super().__init__([None], {})
        self.cells = cells

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return self.cells


PROCESSORS = {
    "resized": {"size": {"height": 16, "width": 32}},
    "cropped": {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": {"height": 16, "width": 16}},
    "padded": {"do_resize": False, "do_pad": True, "size_divisor": 16},
    "cut": {"do_resize": False, "size_divisor": 4},
}


@pytest.mark.parametrize("kind", ["colour", "grey", "alpha", "16 bits", "float", "turned"])
@pytest.mark.parametrize("options", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("augment", [False, True])
def test_pixels_and_maps_equal_those_of_checked_tensors(kind: str, options: dict[str, Any], augment: bool) -> None:
    processor, image = EupeImageProcessorPil(**options), picture(kind)
    mask = torch.arange(96).reshape(8, 12) % 5
    augmentation = Augmentation(16, (1.0, 2.0), "side") if augment else None
    pixels = processor.process_image(image)
    assert pixels.shape == (3, 8, 12)
    sample = {"image": pixels, "mask": mask}
    if augmentation is not None:
        sample = augmentation(sample, int(np.random.SeedSequence((0, 0, 0)).generate_state(1)[0]))
    maps = processor([sample["image"]], segmentation_maps=[sample["mask"]], return_tensors="pt")
    row = TrainingRows(OneRow(image, mask), processor, "mask", augmentation)[0]
    assert torch.equal(row["pixel_values"], maps["pixel_values"][0]) and torch.equal(row["labels"], maps["labels"][0])
    row = TrainingRows(OneRow(image, 3), processor, "class")[0]
    assert torch.equal(row["pixel_values"], processor([pixels], return_tensors="pt")["pixel_values"][0])
    assert row["labels"].dtype == torch.int64 and row["labels"] == 3


def test_numbers_beyond_the_last_row_start_over_with_other_augmentation() -> None:
    data = datasets.Dataset.from_dict({"image": [picture("colour")] * 2, "label": [0, 1]})
    data = data.cast_column("image", datasets.Image(decode=False))
    rows = Rows(data, {"image": "image", "label": "label"}, {0: 0, 1: 1})
    reader = TrainingRows(rows, EupeImageProcessorPil(size=16), "class", Augmentation(16))
    assert [int(row["labels"]) for row in reader] == [0, 1]
    assert int(reader[3]["labels"]) == 1
    assert not torch.equal(reader[1]["pixel_values"], reader[3]["pixel_values"])
    assert torch.equal(reader.make(3, rows[1])["pixel_values"], reader[3]["pixel_values"])


def test_depth_is_that_of_the_nearest_pixel_in_metres() -> None:
    metres = torch.arange(96).reshape(8, 12)
    processor = EupeImageProcessorPil(size={"height": 4, "width": 4})
    labels = DepthRows(OneRow(picture("grey"), metres), processor, "mask", depth_scale=10)[0]["labels"]
    assert labels.dtype == torch.float32 and torch.equal(labels, metres[1::2, 1::3].float() / 10)


@pytest.mark.parametrize(
    ("name", "boxes"),
    [
        # 12 x 8 to 32 x 16: left 3, top 2, right 9, bottom 6 become 8, 4, 24, 12; the second box is the right half
        ("resized", [[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 1]]),
        # to 24 x 16, of which columns 4 to 20 are kept: 2, 4, 14, 12 and 8, 0, 16, 16 of 16 x 16
        ("cropped", [[0.5, 0.5, 0.75, 0.5], [0.75, 0.5, 0.5, 1]]),
        # 2 columns before and after, 4 rows above and below: 5, 6, 11, 10 and 8, 4, 14, 12 of 16 x 16
        ("padded", [[0.5, 0.5, 0.375, 0.25], [0.6875, 0.5, 0.375, 0.5]]),
        ("cut", [[0.5, 0.5, 0.5, 0.5], [0.75, 0.5, 0.5, 1]]),
    ],
)
@pytest.mark.parametrize("kind", ["colour", "turned"])
def test_labels_of_boxes_by_hand(name: str, boxes: list[list[float]], kind: str) -> None:
    objects = {"bbox": [[3, 2, 6, 4], [6, -1, 9, 20], [20, 2, 3, 3]], "category": [7, 4, 7]}
    rows = OneRow(picture(kind), objects)
    rows.classes = {4: 0, 7: 1}
    processor = EupeImageProcessorPil(**PROCESSORS[name])
    labels = DetectionRows(rows, processor)[0]["labels"]
    assert labels["boxes"].dtype == torch.float32 and labels["boxes"].tolist() == boxes
    assert labels["class_labels"].tolist() == [1, 0]


@pytest.mark.parametrize("options", PROCESSORS.values(), ids=PROCESSORS)
@pytest.mark.parametrize("augment", [False, True])
def test_labels_of_boxes_equal_those_of_annotations(options: dict[str, Any], augment: bool) -> None:
    random = np.random.default_rng(0)
    boxes = np.concatenate([random.uniform(-2, 10, (40, 2)), random.uniform(0.2, 6, (40, 2))], axis=1).tolist()
    rows = OneRow(picture("colour"), {"bbox": boxes, "category": [i % 3 for i in range(40)]})
    rows.classes = {i: i for i in range(3)}
    processor = EupeImageProcessorPil(**options)
    augmentation = Augmentation(16, (0.8, 1.25), "window", boxes=True) if augment else None
    reader = DetectionRows(rows, processor, augmentation)
    for number in range(20 if augment else 1):
        sample = reader.read(rows.cells)
        if augmentation is not None:
            seed = int(np.random.SeedSequence((0, 0, number)).generate_state(1)[0])
            sample = augmentation({**sample, "image": processor.process_image(sample["image"])}, seed)
        left, top, right, bottom = sample["boxes"].unbind(dim=1)
        coco = torch.stack([left, top, right - left, bottom - top], dim=1).tolist()
        objects = [{"bbox": b, "category_id": k} for b, k in zip(coco, sample["box_labels"].tolist(), strict=True)]
        annotations = [{"image_id": 0, "annotations": objects}]
        expected = processor([sample["image"]], annotations=annotations, return_tensors="pt")
        found = reader[number]
        assert torch.equal(found["pixel_values"], expected["pixel_values"][0])
        assert found["labels"].keys() == {"boxes", "class_labels"}
        for key, value in found["labels"].items():
            assert value.dtype == expected["labels"][0][key].dtype and torch.equal(value, expected["labels"][0][key])
