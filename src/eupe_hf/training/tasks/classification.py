# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Image classification: one class per image."""

from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from eupe_hf.data.checks import readable
from eupe_hf.data.folders import check_class_folders
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Classes
from eupe_hf.data.splits import TaskData, given_names, load_splits, names_by_label
from eupe_hf.evaluation.metrics import ClassificationMetrics
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.rows import TrainingRows

from .base import RecipeTask


logger = logging.get_logger(__name__)


# ---- loading ----


def load_classification(arguments: DataArguments, seed: int) -> TaskData:
    """Images with one class each.

    Class names are those of the data set or of `--labels`; where the column holds neither names nor a `ClassLabel`,
    the values that occur, in order.

    Raises:
        ValueError: Empty class folders, no images, labels beyond the classes, fewer than two classes, and, with
            `--strict`, unreadable files.
    """
    check_class_folders(arguments.dataset)
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed, classes=True)
    given = given_names(arguments, train.data.features[arguments.label_column])
    values = (evaluation if arguments.streaming else train).data[arguments.label_column]
    names = names_by_label(given, {value for value in values if value is not None})
    if len(names) < 2:
        raise ValueError(f"The data set {arguments.dataset} has {len(names)} class: a classifier needs at least two.")
    classes = Classes({value: i for i, value in enumerate(names)})
    for what, part in (("training", train), ("evaluation", evaluation)):
        if arguments.streaming and what == "training":
            continue  # there each row is looked at when it comes
        for row, value in enumerate(part.data[arguments.label_column]):
            if value not in classes:
                raise ValueError(f"Row {row} of the {what} part has {classes.beyond(value)}")
    train.classes = evaluation.classes = classes
    if arguments.check:
        train, evaluation = (readable(part, arguments.strict)[0] for part in (train, evaluation))
    return TaskData(train, evaluation, list(names.values()), split)


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
