# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Object detection: boxes with a class each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import PIL.ImageOps
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import center_to_corners_format
from transformers.utils import logging

from eupe_hf.data.checks import readable
from eupe_hf.data.coco import is_coco_folder, load_coco
from eupe_hf.data.options import DataArguments, check_named
from eupe_hf.data.rows import Classes, Rows
from eupe_hf.data.splits import TaskData, load_splits, read_names
from eupe_hf.data.streams import as_rows
from eupe_hf.evaluation.metrics import average_precision
from eupe_hf.models.modeling_eupe_detection import EupeObjectDetectionOutput
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.rows import TrainingRows

from .base import RecipeTask


logger = logging.get_logger(__name__)


_CATEGORIES = ("category", "category_id", "label", "labels")  # keys beside `bbox` in data sets of the Hub


_FOUND = 100  # detections of an image that count, as in COCO


_SMALLEST = 0.1  # pixels: a side of which rounding could leave nothing is none


_ABSENT = -100.0  # fills up lists of boxes


@dataclass
class DetectionDataArguments(DataArguments):
    """Options of the data, and of boxes."""

    label_column: str = field(default="objects", metadata={"help": "column with the objects"})


def load_detection(arguments: DetectionDataArguments, seed: int) -> TaskData:
    """Images with boxes.

    Args:
        arguments: `dataset` may also be a folder with COCO's JSON, as in `data.coco`. In other data sets a column has,
            per image, `bbox`, as in COCO, and `category`, as lists or one by one.
        seed: Of the held-out part.

    Returns:
        The data, with category ids mapped to 0, 1, ... in their order. Faulty boxes are still in it.

    Raises:
        ValueError: No images, no boxes in one of the parts, categories without a name or with two, and, with
            `--strict`, unreadable files and boxes without an area inside their image.
    """
    if is_coco_folder(arguments.dataset):
        train, evaluation, split, names = load_coco(arguments, seed)
    else:
        columns = {"image": arguments.image_column, "objects": arguments.label_column}
        train, evaluation, split = load_splits(arguments, columns, seed)
        names = _column_names(train, evaluation, arguments)
    known = Classes({value: index for index, value in enumerate(names)})
    parts = []
    for what, part in (("training", train), ("evaluation", evaluation)):
        columns = {"image": arguments.image_column, "objects": arguments.label_column}
        rows = as_rows(part, columns, arguments, seed, known)
        if arguments.check:
            rows, found = readable(rows, arguments.strict, partial(_count, classes=known))
            _report(found, what, arguments)
        parts.append(rows)
    return TaskData(parts[0], parts[1], list(names.values()), split)


# ---- objects ----


def _column_names(train: Any, evaluation: Any, arguments: DetectionDataArguments) -> dict[Any, str]:
    """Class names by category: those of the data set or of `--labels`, else the categories that occur, in order."""
    feature = train.features[arguments.label_column]
    feature = getattr(feature, "feature", feature)  # a list of objects, or an object of lists
    key = next((key for key in _CATEGORIES if isinstance(feature, Mapping) and key in feature), None)
    if key is None or "bbox" not in feature:
        raise ValueError(
            f"The column {arguments.label_column!r} must have, per image, bbox and category: lists of boxes, left, "
            f"top, width, height in pixels, and of their categories. It is {feature}."
        )
    category = feature[key]
    category = getattr(category, "feature", category)
    given = read_names(arguments.labels) if arguments.labels else getattr(category, "names", None)
    if given is None:
        check_named(arguments)
    parts = [evaluation] if arguments.streaming else [train, evaluation]
    occur = {value for part in parts for value in _categories(part[arguments.label_column])}
    if given is not None and not any(isinstance(value, str) for value in occur):
        names: dict[Any, str] = dict(enumerate(given))
    else:
        names = {value: str(value) for value in given or sorted(occur)}
    if beyond := occur - names.keys():
        raise ValueError(f"There are boxes of the category {min(beyond)!r}, beyond the {len(names)} class names.")
    return names


def _categories(values: Sequence[Any]) -> set[Any]:
    return {category for value in values for category in _lists(value)[1]}


def _lists(value: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """Boxes, categories and crowd marks of a cell, which is an object of lists or a list of objects."""
    if isinstance(value, list):
        value = {key: [entry[key] for entry in value] for key in (value[0] if value else ())}
    value = value or {}
    key = next((key for key in _CATEGORIES if key in value), "category")
    boxes, categories = value.get("bbox") or [], value.get(key) or []
    return boxes, categories, value.get("iscrowd") or [0] * len(boxes)


def read_objects(
    value: Any, width: int, height: int, classes: Mapping[Any, int]
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """The objects of one image, clipped to it.

    Args:
        value: `bbox` (left, top, width, height in pixels), `category` and perhaps `iscrowd`, as lists, or a list of
            dictionaries with these. Crowds are no objects to be found, and are left out.
        width: Of the image in pixels, upright.
        height: Of the image in pixels, upright.
        classes: Class ids by category.

    Returns:
        Boxes (N, 4) as left, top, right, bottom, class ids (N,), and how many boxes had no area inside the image, or
        were not finite, and are left out.

    Raises:
        ValueError: Not one category per box, or boxes that are not four numbers.
    """
    boxes, categories, crowds = _lists(value)
    if len(boxes) != len(categories) or any(len(box) != 4 for box in boxes):
        raise ValueError(f"there are {len(boxes)} boxes, of four numbers each, and {len(categories)} categories.")
    kept, labels, skipped = [], [], 0
    for (left, top, wide, high), category, crowd in zip(boxes, categories, crowds, strict=True):
        if crowd:
            continue
        box = [max(left, 0.0), max(top, 0.0), min(left + wide, width), min(top + high, height)]
        sides = box[2] - box[0], box[3] - box[1]
        if all(map(math.isfinite, (left, top, wide, high))) and min(sides) > _SMALLEST:
            kept.append(box)
            labels.append(classes[category])
        else:
            skipped += 1
    return torch.tensor(kept, dtype=torch.float64).reshape(-1, 4), torch.tensor(labels, dtype=torch.int64), skipped


def _count(name: str, cells: tuple[Any, ...], classes: Mapping[Any, int]) -> tuple[str, int, int]:
    image, objects = cells
    width, height = PIL.ImageOps.exif_transpose(image).size
    try:
        boxes, _, skipped = read_objects(objects, width, height, classes)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return name, len(boxes), skipped


def _report(found: list[tuple[str, int, int]], what: str, arguments: DetectionDataArguments) -> None:
    """Refuse a part without boxes, and tell of boxes that are none."""
    total, skipped = sum(row[1] for row in found), sum(row[2] for row in found)
    told = ""
    if skipped:
        first = next(name for name, _, bad in found if bad)
        told = (
            f"{skipped} of {total + skipped} boxes of the {what} part have no area inside their image, the first in "
            f"{first}: COCO's are left, top, width, height in pixels of the original image."
        )
    if not total:
        raise ValueError(told or f"The {what} part of {arguments.dataset} has {len(found)} images and no box.")
    if skipped and arguments.strict:
        raise ValueError(told)
    if skipped:
        logger.warning(f"{told} They are skipped.")


class DetectionRows(TrainingRows):
    """Rows with `labels` as `EupeForObjectDetection` takes them: `class_labels` (N,) and `boxes` (N, 4).

    Args:
        rows: Images and objects, with class ids by category.
        processor: As for `TrainingRows`.
        augmentation: For training, with boxes.
        seed: Of the augmentation.
    """

    def __init__(
        self, rows: Rows, processor: BaseImageProcessor, augmentation: Augmentation | None = None, seed: int = 0
    ):
        super().__init__(rows, processor, "objects", augmentation, seed)

    def read(self, row: int) -> dict[str, Any]:
        """The image (3, H, W) with `boxes` (N, 4), left, top, right, bottom in pixels, and `box_labels` (N,)."""
        sample = super().read(row)
        height, width = sample["image"].shape[1:]
        boxes, labels, _ = read_objects(sample.pop("objects"), width, height, self.rows.classes or {})
        return {**sample, "boxes": boxes, "box_labels": labels}

    def encode(self, sample: dict[str, Any]) -> dict[str, Any]:
        """From an augmented sample to what the model takes."""
        boxes = sample["boxes"].clone()
        boxes[:, 2:] -= boxes[:, :2]
        pairs = zip(boxes.tolist(), sample["box_labels"].tolist(), strict=True)
        objects = [{"bbox": box, "category_id": label} for box, label in pairs]
        annotations = [{"image_id": 0, "annotations": objects}]
        inputs = self.processor([sample["image"]], annotations=annotations, return_tensors="pt")
        labels = {key: inputs["labels"][0][key] for key in ("class_labels", "boxes")}
        return {"pixel_values": inputs["pixel_values"][0], "labels": labels}


# ---- evaluation ----


def boxes_for_metrics(
    output: EupeObjectDetectionOutput, labels: Sequence[Mapping[str, torch.Tensor]], processor: BaseImageProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Detections and objects of a batch as tensors, which a Trainer can cut and gather: lists of them it cuts wrongly.

    Args:
        output: Of `EupeForObjectDetection`.
        labels: As it takes them.
        processor: The image processor.

    Returns:
        Detections after non-maximum suppression (B, 100, 6), label, score, left, top, right, bottom; and objects
        (B, N, 5), label and box. Boxes are shares of the image's sides, which changes no overlap; rows that are not
        there are -100.
    """
    found = processor.post_process_object_detection(output, threshold=0.0, top_k=_FOUND)
    rows = [torch.cat([one["labels"][:, None], one["scores"][:, None], one["boxes"]], dim=1) for one in found]
    rows[0] = torch.cat([rows[0], rows[0].new_full((_FOUND - len(rows[0]), 6), _ABSENT)])  # as many in each batch
    truth = [
        torch.cat([one["class_labels"][:, None], center_to_corners_format(one["boxes"])], dim=1) for one in labels
    ]
    truth[0] = torch.cat([truth[0], truth[0].new_full((1, 5), _ABSENT)])  # never without a row
    padded = [pad_sequence(part, batch_first=True, padding_value=_ABSENT) for part in (rows, truth)]
    return padded[0], padded[1]


class DetectionMetrics:
    """COCO's average precision of what `boxes_for_metrics` gives, batch by batch, for `StreamingMetrics`."""

    def __init__(self) -> None:
        self.found: list[dict[str, torch.Tensor]] = []
        self.truth: list[dict[str, torch.Tensor]] = []

    def update(self, found: torch.Tensor, truth: torch.Tensor) -> None:
        """Keep a batch of detections (B, P, 6) and objects (B, N, 5)."""
        for image in found.cpu():
            image = image[image[:, 0] >= 0]
            self.found.append({"labels": image[:, 0].long(), "scores": image[:, 1], "boxes": image[:, 2:]})
        for image in truth.cpu():
            image = image[image[:, 0] >= 0]
            self.truth.append({"labels": image[:, 0].long(), "boxes": image[:, 1:]})

    def compute(self) -> dict[str, float]:
        """`ap`, `ap50` and `ap75`.

        Raises:
            ValueError: No object was counted.
        """
        return average_precision(self.found, self.truth)


class DetectionTask(RecipeTask):
    """As in `finetune_lora_detection.py`."""

    name, score, data_class = "detection", "ap", DetectionDataArguments
    help = "data set with boxes"
    needs = ("pycocotools.coco",)
    # 0.8 to 1.25 times the size: the "standard scale jittering" of arXiv 2012.07177
    crops = {"scale": (0.8, 1.25), "crop": "window", "boxes": True}
    defaults = {
        # the paper has no detection. 36 epochs: the usual "3x" schedule of detectors (arXiv 1811.08883); 640: their
        # usual side where they are meant to be fast; the head's learning rate: a third of what our benchmark on drawn
        # shapes (tests/benchmarks/detection.py) uses, whose runs are far shorter
        "all": {
            "metric_for_best_model": "ap", "per_device_train_batch_size": 16, "num_train_epochs": 36,
            "head_learning_rate": 1e-3, "weight_decay": 1e-4, "warmup_steps": 0.05, "size": 640,
        },
        # peft has no recipe for detection: that for segmentation, the other task with many outputs per image
        "lora": {"learning_rate": 5e-4, "rank": 32, "dropout": 0.1},
        "probe": {"learning_rate": 1e-3},
        # ViTDet's fine-tuning of a ViT-B (arXiv 2203.16527): 1e-4 at batch 64, by the square root half of it at 16;
        # weight decay 0.1, decay by layers 0.7
        "full": {"learning_rate": 5e-5, "weight_decay": 0.1, "layer_decay": 0.7},
    }  # fmt: skip

    def load(self) -> TaskData:
        """Images with boxes."""
        return load_detection(self.arguments, self.seed)

    def make_rows(
        self, rows: Rows, processor: BaseImageProcessor, augmentation: Augmentation | None = None
    ) -> DetectionRows:
        """Rows with boxes."""
        return DetectionRows(rows, processor, augmentation, self.seed)

    def metrics(self) -> DetectionMetrics:
        """Average precision."""
        return DetectionMetrics()

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes after non-maximum suppression."""
        return boxes_for_metrics(output, labels, processor)
