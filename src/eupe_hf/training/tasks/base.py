# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a recipe needs to know of a task."""

from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from eupe_hf.data.options import DataArguments
from eupe_hf.data.splits import TaskData
from eupe_hf.models.modeling_eupe_head import resize
from eupe_hf.training.report import Evaluated
from eupe_hf.training.rows import TrainingRows


def predicted_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class ids (B,) from (B, classes), or label maps (B, H, W), of the size of the labels, from (B, classes, h, w).

    The Trainer's `preprocess_logits_for_metrics`, so that no logits are kept.
    """
    if logits.ndim == 4:
        logits = resize(logits.float(), labels.shape[1:])
    return logits.argmax(dim=1)


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
