# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation: a map of class ids per image."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from eupe_hf.data.checks import check_map_size, readable
from eupe_hf.data.options import DataArguments
from eupe_hf.data.splits import TaskData, given_names, load_splits
from eupe_hf.evaluation.metrics import SegmentationMetrics
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.rows import TrainingRows

from .base import RecipeTask


logger = logging.get_logger(__name__)


@dataclass
class SegmentationDataArguments(DataArguments):
    """Options of the data, and of label maps."""

    reduce_labels: bool = field(default=False, metadata={"help": "label 0 is ignored, 1 is the first class"})


def load_segmentation(arguments: DataArguments, seed: int, reduce_labels: bool = False) -> TaskData:
    """Images with label maps.

    Args:
        arguments: `dataset` may also be a folder with `images/NAME.jpg` and `masks/NAME.png`, or with such folders
            under `train/` and `validation/`.
        seed: Of the held-out part.
        reduce_labels: Label 0 is ignored and 1 the first class, as in ADE20K.

    Returns:
        The data; `names` are those of `--labels`, or the numbers of the classes that the maps use.

    Raises:
        ValueError: No images, images without a map, maps of another size than their image, class ids beyond
            `--labels`, and, with `--strict`, unreadable files.
    """
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed)
    names = given_names(arguments)
    parts, highest = [], -1
    for rows in (train, evaluation):
        found = list[int]()
        if arguments.check or names is None:
            check = partial(check_map, reduce_labels=reduce_labels, names=names)
            rows, found = readable(rows, arguments.strict, check)
        parts.append(rows)
        highest = max([highest, *found])
    if names is None and highest < 0:
        raise ValueError(f"The masks of {arguments.dataset} hold no class, only ignored pixels.")
    return TaskData(parts[0], parts[1], names or [str(i) for i in range(highest + 1)], split)


def check_map(
    name: str, cells: tuple[Any, ...], reduce_labels: bool = False, names: list[str] | None = None, ignore: int = 255
) -> int:
    """The highest class id of a label map, which must fit its image and the class names."""
    image, labels = cells
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(
            f"{name}: a mask has one whole number per pixel, (height, width), got {tuple(labels.shape)} of "
            f"{labels.dtype}. Translate colours to class ids first."
        )
    check_map_size(name, "mask", image, labels)
    if labels.numel() and int(labels.min()) < 0:
        raise ValueError(f"{name}: the mask holds the class {int(labels.min())}: class ids count from 0.")
    counted = labels[labels != ignore].long() - int(reduce_labels)
    highest = int(counted.max()) if counted.numel() else -1
    if names is not None and highest >= len(names):
        raise ValueError(
            f"{name}: the mask holds the class {highest}, but there are {len(names)} class names, 0 to "
            f"{len(names) - 1}. {ignore} is ignored; where labels count from 1, give --reduce_labels."
        )
    return highest


class SegmentationTask(RecipeTask):
    """As in `finetune_lora_segmentation.py`."""

    name, score, data_class = "segmentation", "mean_iou", SegmentationDataArguments

    def load(self) -> TaskData:
        """Images with label maps."""
        return load_segmentation(self.arguments, self.seed, self.arguments.reduce_labels)

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[TrainingRows, TrainingRows]:
        """With label maps; the processor reduces labels where the data are such."""
        processor.do_reduce_labels = self.arguments.reduce_labels
        augment = training_augmentation(self.name, self.arguments)
        train = TrainingRows(self.data.train, processor, "mask", augment, self.seed)
        return train, TrainingRows(self.data.evaluation, processor, "mask")

    def metrics(self) -> SegmentationMetrics:
        """Mean IoU."""
        return SegmentationMetrics(len(self.data.names))
