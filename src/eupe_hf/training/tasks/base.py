# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The declaration of a task: all that a recipe, the Trainer and the report ask of it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from eupe_hf.data.options import DataArguments, InputArguments
from eupe_hf.data.rows import Rows
from eupe_hf.evaluation.results import EvaluationResult
from eupe_hf.extras import require
from eupe_hf.models.modeling_eupe_head import EupeTaskModel, resize
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.training.augmentation import Augmentation, training_augmentation
from eupe_hf.training.options import public
from eupe_hf.training.rows import TrainingRows


_NAMED = frozenset(field.name for field in fields(DataArguments))  # not settings: names of files and columns


def predicted_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class ids (B,) from (B, classes), or label maps (B, H, W), as large as the labels, from (B, classes, h, w)."""
    if logits.ndim == 4:
        logits = resize(logits.float(), labels.shape[1:])
    return logits.argmax(dim=1)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch: `pixel_values` (B, 3, H, W) and `labels`, a tensor, or a list where each image has its own number.

    Rows that name their `task`, which must be one for all, give a batch for `EupeForMultiTask`: `tasks`, and labels by
    task.
    """
    labels: Any = [row["labels"] for row in rows]
    labels = labels if isinstance(labels[0], Mapping) else torch.stack(labels)
    batch = {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
    if "task" in rows[0]:
        (task,) = {row["task"] for row in rows}
        batch |= {"tasks": [task], "labels": {task: labels}}
    return batch


class RecipeTask:
    """A task and its data. Subclasses declare a task: the attributes below, `load`, `metrics`, and what differs.

    A task with a head has the name of its model in `TASK_MODELS`. Only these can join a multi-task run.

    Args:
        arguments: Options of its data, an instance of `data_class`.
        seed: Of the held-out part, and of the augmentation.
        weight: Factor of its loss, where it is one of several tasks.

    Raises:
        ImportError: One of the modules in `needs` is not installed.
        ValueError: What is wrong with the data.
    """

    name: str
    help: str  # what a data set must have, for --help
    score: str  # the metric that counts for a multi-task run: a share between 0 and 1, of which more is better
    defaults: Mapping[str, Mapping[str, Any]]  # of options, in "all" modes, "lora", "probe" and "full"
    crops: Mapping[str, Any]  # arguments of `Augmentation`: what training cuts out of images
    target = "mask"  # as for `TrainingRows`
    errors: tuple[str, ...] = ()  # metrics of which less is better
    needs: tuple[str, ...] = ()  # modules that the first evaluation imports
    data_class: type[InputArguments] = DataArguments
    usage = "--dataset DATASET"
    collate = staticmethod(collate)

    def __init__(self, arguments: Any, seed: int, weight: float = 1.0):
        for module in self.needs:
            require(module)
        self.arguments, self.seed, self.weight = arguments, seed, weight
        self.data = self.load()

    @classmethod
    def model_class(cls) -> type[EupeTaskModel] | None:
        """The model of a run with this task alone."""
        return TASK_MODELS.get(cls.name)

    @property
    def parts(self) -> Mapping[str, "RecipeTask"]:
        """The tasks of a run, by the name that begins their metrics: "" where there is one task."""
        return {"": self}

    @property
    def shown(self) -> tuple[str, ...]:
        """Scores for the table and the curve of a run; by default all."""
        return ()

    def load(self) -> Any:
        """The checked data: for most tasks `TaskData`."""
        raise NotImplementedError

    def head_fields(self) -> dict[str, Any]:
        """Fields of `EupeConfig` that follow from the data."""
        return {"id2label": dict(enumerate(self.data.names))}

    def head(self, layers: Sequence[int] | None = None) -> dict[str, Any]:
        """Keyword arguments of the model's `from_pretrained` for a head that reads these layers, from 0."""
        return self.head_fields() | ({} if layers is None else {"out_indices": [layer + 1 for layer in layers]})

    def augmentation(self, patch_size: int) -> Augmentation | None:
        """How training images change; `None` with `--no_augment`."""
        return training_augmentation(self.arguments, **self.crops)

    def make_rows(
        self, rows: Rows, processor: BaseImageProcessor, augmentation: Augmentation | None = None
    ) -> TrainingRows:
        """Rows as the Trainer takes them."""
        return TrainingRows(rows, processor, self.target, augmentation, self.seed)

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[Any, Any]:
        """Rows to train on and to evaluate on, for a processor with the size of the run, and for an encoder."""
        train = self.make_rows(self.data.train, processor, self.augmentation(patch_size))
        return train, self.make_rows(self.data.evaluation, processor)

    def metrics(self) -> Any:
        """New metrics, for `StreamingMetrics`."""
        raise NotImplementedError

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the metrics take, from the output of the model and the labels of a batch."""
        return predicted_classes(output.logits, labels), labels

    def loss(self, output: Any, loss: torch.Tensor) -> torch.Tensor:
        """The loss of a batch to report, from the output of the model and what was trained on."""
        return loss

    # ---- reports ----

    def summary(self) -> list[str]:
        """What the data holds, in a line per task."""
        train = "streamed" if self.arguments.streaming else len(self.data.train)
        classes = f", {len(self.data.names)} classes" if self.data.names else ""
        return [f"{train} images to train on, {len(self.data.evaluation)} to evaluate on{classes}."]

    def result(self) -> EvaluationResult:
        """What it is evaluated on, without scores."""
        data, count = self.arguments, len(self.data.evaluation)
        return EvaluationResult(
            self.name, "", public(data.dataset), self.data.eval_split, count, {}, dataset_config=data.dataset_config
        )

    def settings(self) -> dict[str, Any]:
        """What results and card say of the options of the data."""
        data = self.arguments
        own = {field.name: getattr(data, field.name) for field in fields(data) if field.name not in _NAMED}
        size = f"{data.size} x {data.size}"
        chosen = {"size": data.size, "augment": data.augment, **own}
        return chosen | {"evaluation": f"whole images resized to {size} pixels", **data.settings()}

    def use(self, folder: str) -> str:
        """How to use what was trained."""
        if (model_class := self.model_class()) is None:
            return f"AutoModel.from_pretrained({folder!r}) loads it."
        return f"pipeline({model_class._pipeline_tag!r}, model={folder!r}) runs it."
