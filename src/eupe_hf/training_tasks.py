# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The tasks that the recipe for several tasks trains together: for each what its own recipe does with its data.

Needs `pip install 'eupe-hf[train]'`.
"""

from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from .augmentation import TrainingRows, training_augmentation
from .metrics import ClassificationMetrics, SegmentationMetrics, require
from .training import predicted_classes
from .training_data import (
    DataArguments,
    SegmentationDataArguments,
    TaskData,
    load_classification,
    load_segmentation,
)
from .training_depth import BatchDepthMetrics, DepthDataArguments, DepthRows, load_depth, resized_depth
from .training_detection import (
    DetectionDataArguments,
    DetectionMetrics,
    DetectionRows,
    boxes_for_metrics,
    load_detection,
)
from .training_report import Evaluated


class RecipeTask:
    """One task of a run: its data, checked, what its head is like, its rows and its metrics. Subclasses say which.

    Args:
        arguments: Options of its data.
        seed: Of the held-out part, and of the augmentation.
        weight: Factor of its loss.

    Raises:
        ValueError: What is wrong with the data.
    """

    name: str
    score: str  # the metric that counts for the run: a share between 0 and 1, of which more is better
    data_class: type[DataArguments] = DataArguments

    def __init__(self, arguments: Any, seed: int, weight: float = 1.0):
        self.arguments, self.seed, self.weight = arguments, seed, weight
        self.data = self.load()

    def load(self) -> TaskData:
        """Both parts of the data."""
        raise NotImplementedError

    def head(self) -> dict[str, Any]:
        """Entry of the head in `EupeMultiTaskConfig`."""
        return {"task": self.name, "loss_weight": self.weight, "id2label": dict(enumerate(self.data.names))}

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[TrainingRows, TrainingRows]:
        """Rows to train on and to evaluate on.

        Args:
            processor: The image processor, with the size of the run; what it has to know of this task is set.
            patch_size: Of the encoder.
        """
        raise NotImplementedError

    def metrics(self) -> Any:
        """New metrics, for `StreamingMetrics`."""
        raise NotImplementedError

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the metrics take, from the output of the head and the labels of a batch."""
        return predicted_classes(output.logits, labels), labels

    def evaluated(self) -> Evaluated:
        """What the report says of it."""
        count = len(self.data.evaluation)
        return Evaluated(self.name, self.arguments, self.data.eval_split, count, f"{self.name}_", self.score)


class ClassificationTask(RecipeTask):
    """As in `finetune_lora_classification.py`."""

    name, score = "classification", "accuracy"

    def load(self) -> TaskData:
        """Images with one class each."""
        return load_classification(self.arguments, self.seed)

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[TrainingRows, TrainingRows]:
        """With class ids."""
        augment = training_augmentation(self.name, self.arguments)
        train = TrainingRows(self.data.train, processor, "class", augment, self.seed)
        return train, TrainingRows(self.data.evaluation, processor, "class")

    def metrics(self) -> ClassificationMetrics:
        """Accuracy."""
        return ClassificationMetrics(len(self.data.names))


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


class DepthTask(RecipeTask):
    """As in `finetune_lora_depth.py`."""

    name, score, data_class = "depth", "delta1", DepthDataArguments

    def load(self) -> TaskData:
        """Images with depth maps."""
        return load_depth(self.arguments, self.seed)

    def head(self) -> dict[str, Any]:
        """Bins that span the depths."""
        return {"task": self.name, "loss_weight": self.weight, **self._range()}

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[TrainingRows, TrainingRows]:
        """With depth in metres, of crops that keep their scale."""
        augment = training_augmentation(self.name, self.arguments, self.arguments.crop_size(patch_size))
        options = {"seed": self.seed, "depth_scale": self.arguments.depth_scale}
        train = DepthRows(self.data.train, processor, "mask", augment, **options)
        return train, DepthRows(self.data.evaluation, processor, "mask", **options)

    def metrics(self) -> BatchDepthMetrics:
        """Errors of depth."""
        return BatchDepthMetrics(**self._range())

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth at the size of the labels."""
        return resized_depth(output.predicted_depth, labels), labels

    def _range(self) -> dict[str, Any]:
        return {"min_depth": self.arguments.min_depth, "max_depth": self.arguments.max_depth}


class DetectionTask(RecipeTask):
    """As in `finetune_lora_detection.py`."""

    name, score, data_class = "detection", "ap", DetectionDataArguments

    def load(self) -> TaskData:
        """Images with boxes."""
        require("pycocotools.coco")  # which the first evaluation will need
        return load_detection(self.arguments, self.seed)

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[TrainingRows, TrainingRows]:
        """With boxes."""
        augment = training_augmentation(self.name, self.arguments)
        train = DetectionRows(self.data.train, processor, augment, self.seed)
        return train, DetectionRows(self.data.evaluation, processor)

    def metrics(self) -> DetectionMetrics:
        """Average precision."""
        return DetectionMetrics()

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes after non-maximum suppression."""
        return boxes_for_metrics(output, labels, processor)


TASKS: dict[str, type[RecipeTask]] = {
    task.name: task for task in (ClassificationTask, SegmentationTask, DepthTask, DetectionTask)
}

__all__ = ["TASKS", "ClassificationTask", "DepthTask", "DetectionTask", "RecipeTask", "SegmentationTask"]
