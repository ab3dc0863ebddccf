# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Semantic segmentation: a map of class ids per image."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor

from eupe_hf.data.checks import check_map_size, readable
from eupe_hf.data.options import DataArguments
from eupe_hf.data.splits import TaskData, given_names, load_splits
from eupe_hf.evaluation.metrics import SegmentationMetrics
from eupe_hf.models.modeling_eupe_head import check_ignore_index
from eupe_hf.training.augmentation import Augmentation, training_augmentation

from .base import RecipeTask


@dataclass
class SegmentationDataArguments(DataArguments):
    """Options of the data, and of label maps."""

    reduce_labels: bool = field(default=False, metadata={"help": "label 0 is ignored, 1 is the first class"})
    ignore_index: int = field(
        default=255, metadata={"help": "label of pixels that count for nothing; a number that is no class"}
    )


def load_segmentation(
    arguments: DataArguments, seed: int, reduce_labels: bool = False, ignore_index: int = 255
) -> TaskData:
    """Images with label maps.

    Args:
        arguments: `dataset` may also be a folder with `images/NAME.jpg` and `masks/NAME.png`, or with folders of this
            kind under `train/` and `validation/`.
        seed: Of the held-out part.
        reduce_labels: Label 0 is ignored and 1 the first class, as in ADE20K.
        ignore_index: The label of pixels that count for nothing.

    Returns:
        The data; `names` come from `--labels`, or are the numbers of the classes in the maps.

    Raises:
        ValueError: No images, images without a map, maps of another size than their image, class ids beyond
            `--labels`, a class that is also the ignore index, masks of 0 and the ignore index alone, and, with
            `--strict`, unreadable files.
    """
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed)
    names = given_names(arguments)
    if names is not None:
        check_ignore_index(ignore_index, len(names), "--ignore_index")
    parts, found = [], list[tuple[int, bool]]()
    for rows in (train, evaluation):
        if arguments.check or names is None:
            check = partial(check_map, reduce_labels=reduce_labels, names=names, ignore_index=ignore_index)
            rows, checked = readable(rows, arguments.strict, check)
            found += checked
        parts.append(rows)
    highest, is_ignored = max((row[0] for row in found), default=-1), any(row[1] for row in found)
    if names is None and highest < 0:
        raise ValueError(f"The masks of {arguments.dataset} hold no class, only ignored pixels.")
    if highest == 0 and is_ignored and not reduce_labels:
        raise ValueError(
            f"The masks of {arguments.dataset} hold only 0 and {ignore_index}, which is ignored: there is nothing to "
            f"learn. If {ignore_index} is the foreground, make it the class 1: divide the masks by {ignore_index}."
        )
    names = names or [str(i) for i in range(highest + 1)]
    check_ignore_index(ignore_index, len(names), "--ignore_index")
    return TaskData(parts[0], parts[1], names, split)


def check_map(
    name: str,
    cells: tuple[Any, ...],
    reduce_labels: bool = False,
    names: list[str] | None = None,
    ignore_index: int = 255,
) -> tuple[int, bool]:
    """The highest class id of a label map, and whether it has ignored pixels; it must fit its image and the names."""
    image, labels = cells
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(
            f"{name}: a mask has one whole number per pixel, (height, width), got {tuple(labels.shape)} of "
            f"{labels.dtype}. Translate colours to class ids first."
        )
    check_map_size(name, "mask", image, labels)
    labels = labels.long()  # torch compares few of its unsigned types
    counted = labels[labels != ignore_index]
    low, highest = map(int, counted.aminmax()) if counted.numel() else (0, -1)
    if low < 0:
        raise ValueError(
            f"{name}: the mask holds the class {low}: class ids count from 0, and --ignore_index is {ignore_index}."
        )
    highest -= int(reduce_labels and highest >= 0)
    if names is not None and highest >= len(names):
        raise ValueError(
            f"{name}: the mask holds the class {highest}, but there are {len(names)} class names, 0 to "
            f"{len(names) - 1}. {ignore_index} is ignored; where labels count from 1, give --reduce_labels."
        )
    return highest, counted.numel() < labels.numel()


class SegmentationTask(RecipeTask):
    """As in `finetune_lora_segmentation.py`."""

    name, score, data_class = "segmentation", "mean_iou", SegmentationDataArguments
    help = "data set with label maps"
    crops = {"scale": (0.5, 2.0), "crop": "side"}  # 0.5 to 2 times the size: the paper's protocol
    defaults = {
        # batch, warm-up (1,500 of 40,000 steps), weight decay and the head's learning rate: the paper's protocol
        "all": {
            "metric_for_best_model": "mean_iou", "per_device_train_batch_size": 16, "num_train_epochs": 50,
            "head_learning_rate": 1e-3, "weight_decay": 1e-3, "warmup_steps": 0.0375, "size": 512,
        },
        # peft's published recipe for semantic segmentation: rank 32, alpha 32, dropout 0.1, 50 epochs, and its 5e-4 as
        # it stands, though at batch 4
        "lora": {"learning_rate": 5e-4, "rank": 32, "dropout": 0.1},
        "probe": {"learning_rate": 1e-3},
        # 6e-5: SegFormer (arXiv 2105.15203), batch 16 too; decay by layers as for classification (BEiT, arXiv
        # 2106.08254, has 0.65 or 0.9 for ADE20K, by how it was pretrained)
        "full": {"learning_rate": 6e-5, "layer_decay": 0.75},
    }  # fmt: skip

    def load(self) -> TaskData:
        """Images with label maps."""
        return load_segmentation(self.arguments, self.seed, self.arguments.reduce_labels, self.arguments.ignore_index)

    def head_fields(self) -> dict[str, Any]:
        """Class names, and the class id that counts for nothing."""
        return super().head_fields() | {"semantic_loss_ignore_index": self.arguments.ignore_index}

    def augmentation(self, patch_size: int) -> Augmentation | None:
        """As of the other tasks; what it adds around an image is ignored."""
        return training_augmentation(self.arguments, fill=self.arguments.ignore_index, **self.crops)

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[Any, Any]:
        """Rows with label maps; the processor reduces labels as `--reduce_labels` says, and pads with the ignored."""
        processor.do_reduce_labels = self.arguments.reduce_labels
        processor.semantic_loss_ignore_index = self.arguments.ignore_index
        return super().rows(processor, patch_size)

    def metrics(self) -> SegmentationMetrics:
        """Mean IoU."""
        return SegmentationMetrics(len(self.data.names), self.arguments.ignore_index)
