# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Object detection: boxes with a class each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import center_to_corners_format
from transformers.utils import logging

from eupe_hf.data.boxes import (
    are_shares,
    category_names,
    count_boxes,
    read_objects,
    refuse_shares,
    report_boxes,
)
from eupe_hf.data.checks import readable
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Classes, image_size
from eupe_hf.data.splits import TaskData, load_splits
from eupe_hf.evaluation.metrics import average_precision
from eupe_hf.models.modeling_eupe_detection import EupeObjectDetectionOutput
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.rows import TrainingRows

from .base import RecipeTask


logger = logging.get_logger(__name__)

_FOUND = 100  # detections of an image that count, as in COCO
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
        ValueError: No images, no boxes in one of the parts, boxes in [0, 1] instead of pixels, categories without a
            name or with two, and, with `--strict`, unreadable files and boxes without an area inside their image.
    """
    columns = {"image": arguments.image_column, "objects": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed)
    named = [evaluation] if arguments.streaming else [train, evaluation]
    names = category_names(named, arguments, train.data.features[arguments.label_column])
    train.classes = evaluation.classes = Classes({value: index for index, value in enumerate(names)})
    parts = []
    for what, rows in (("training", train), ("evaluation", evaluation)):
        if arguments.check:
            rows, found = readable(rows, arguments.strict, partial(_check_boxes, classes=train.classes))
            refuse_shares([is_share for _, is_share in found], what, arguments)
            report_boxes([counts for counts, _ in found], what, arguments)
        parts.append(rows)
    return TaskData(parts[0], parts[1], list(names.values()), split)


def _check_boxes(name: str, cells: tuple[Any, ...], classes: Mapping[Any, int]) -> tuple[Any, bool | None]:
    return count_boxes(name, cells, classes), are_shares(cells)


class DetectionRows(TrainingRows):
    """Rows with `labels` as `EupeForObjectDetection` takes them: `class_labels` (N,) and `boxes` (N, 4).

    Args:
        rows: Images and objects, with class ids by category.
        processor: As for `TrainingRows`.
        augmentation: For training, with boxes.
        seed: Of the augmentation.
    """

    def __init__(
        self, rows: Any, processor: BaseImageProcessor, augmentation: Augmentation | None = None, seed: int = 0
    ):
        super().__init__(rows, processor, "objects", augmentation, seed)

    def read(self, cells: tuple[Any, ...]) -> dict[str, Any]:
        """The image with `boxes` (N, 4), left, top, right, bottom in pixels, and `box_labels` (N,)."""
        image, objects = cells
        height, width = image_size(image)
        boxes, labels, _ = read_objects(objects, width, height, self.rows.classes or {})
        return {"image": image, "boxes": boxes, "box_labels": labels}

    def encode(self, sample: dict[str, Any]) -> dict[str, Any]:
        """From a sample to what the model takes."""
        start, end = sample["boxes"].split(2, dim=1)
        # rounded as left + width, like COCO's boxes, so that labels do not depend on where boxes come from
        boxes = torch.cat([start, start + (end - start)], dim=1)
        labels = self.processor.place_boxes(boxes, sample["box_labels"], image_size(sample["image"]))
        return {"pixel_values": self.pixels(sample["image"]), "labels": labels}


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
        self, rows: Any, processor: BaseImageProcessor, augmentation: Augmentation | None = None
    ) -> DetectionRows:
        """Rows with boxes."""
        return DetectionRows(rows, processor, augmentation, self.seed)

    def metrics(self) -> DetectionMetrics:
        """Average precision."""
        return DetectionMetrics()

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes after non-maximum suppression."""
        return boxes_for_metrics(output, labels, processor)
