# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Image classification: one class per image."""

from eupe_hf.data.checks import readable
from eupe_hf.data.folders import check_class_folders
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Classes, class_id
from eupe_hf.data.splits import TaskData, given_names, load_splits, names_by_label
from eupe_hf.evaluation.metrics import ClassificationMetrics

from .base import RecipeTask


def load_classification(arguments: DataArguments, seed: int) -> TaskData:
    """Images with one class each.

    Class names come from the data set or from `--labels`; else they are the values of the column, in order.

    Raises:
        ValueError: Empty class folders, no images, labels beyond the classes, fewer than two classes, and, with
            `--strict`, unreadable files.
    """
    check_class_folders(arguments.dataset)
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed, classes=True)
    given = given_names(arguments, train.data.features[arguments.label_column])
    parts = [evaluation] if arguments.streaming else [train, evaluation]  # rows of a stream are checked as they come
    labels = [part.labels(arguments.dataset) for part in parts]
    names = names_by_label(given, {value for value in labels[0] if value is not None}, arguments.dataset)
    if len(names) < 2:
        raise ValueError(f"The data set {arguments.dataset} has {len(names)} class: a classifier needs at least two.")
    classes = Classes({value: i for i, value in enumerate(names)})
    for part, values in zip(parts, labels, strict=True):
        if beyond := [row for row, value in enumerate(values) if value not in classes]:
            class_id(classes, values[beyond[0]], f"{arguments.dataset}, {part.name(beyond[0])},")
    train.classes = evaluation.classes = classes
    if arguments.check:
        train, evaluation = (readable(part, arguments.strict)[0] for part in (train, evaluation))
    return TaskData(train, evaluation, list(names.values()), split)


class ClassificationTask(RecipeTask):
    """As in `finetune_lora_classification.py`."""

    name, score, target = "classification", "accuracy", "class"
    help = "data set with one class per image"
    crops = {"scale": (0.08, 1.0), "crop": "area"}  # a random part of 8 to 100 %, as in peft's recipe
    defaults = {
        "all": {"metric_for_best_model": "accuracy", "per_device_train_batch_size": 32, "num_train_epochs": 5},
        # peft's published recipe for image classification: rank 16, alpha 16, dropout 0.1, 5 epochs, learning rate
        # 5e-3 at batch 512 (128, accumulated four times); at batch 32 a quarter of it, by the square root of the
        # ratio, as Adam wants
        "lora": {"learning_rate": 1.25e-3, "rank": 16, "dropout": 0.1, "warmup_steps": 0.05},
        # as the paper's protocol trains its linear head for segmentation, with AdamW; the linear evaluation of DINOv2
        # (arXiv 2304.07193) has no single rate: it tries thirteen from 1e-5 to 0.1, for SGD
        "probe": {"learning_rate": 1e-3},
        # MAE's fine-tuning of a ViT-B (arXiv 2111.06377): 5e-4 for each 256 images, weight decay 0.05, warm-up, decay
        # by layers (0.65 there, for 100 epochs; 0.75 as MAE and BEiT have it for the 50 epochs of a ViT-L); the head
        # is new and learns faster
        "full": {
            "learning_rate": 6e-5, "weight_decay": 0.05, "layer_decay": 0.75, "head_learning_rate": 1e-3,
            "warmup_steps": 0.05,
        },
    }  # fmt: skip

    def load(self) -> TaskData:
        """Images with one class each."""
        return load_classification(self.arguments, self.seed)

    def metrics(self) -> ClassificationMetrics:
        """Accuracy."""
        return ClassificationMetrics(len(self.data.names))
