# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Depth estimation: a map of metres per image."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn import functional
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from eupe_hf.data.checks import check_map_size, readable
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Rows
from eupe_hf.data.splits import TaskData, load_splits
from eupe_hf.evaluation.metrics import DepthMetrics
from eupe_hf.models.modeling_eupe_head import resize
from eupe_hf.training.augmentation import Augmentation, training_augmentation
from eupe_hf.training.rows import TrainingRows

from .base import RecipeTask


logger = logging.get_logger(__name__)


@dataclass
class DepthDataArguments(DataArguments):
    """Options of the data, and of depth maps."""

    label_column: str = field(default="depth_map", metadata={"help": "column with the depth maps"})
    depth_scale: float = field(default=1.0, metadata={"help": "units of the maps in a metre: 1000 for millimetres"})
    min_depth: float = field(default=1e-3, metadata={"help": "metres; depth up to it is unknown"})
    max_depth: float = field(default=10.0, metadata={"help": "metres; depth above it is unknown"})
    crop: float = field(default=0.875, metadata={"help": "side of the part to train on, as a share of --size"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.depth_scale > 0:
            raise ValueError(f"--depth_scale must be above 0, got {self.depth_scale}.")
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(
                f"--min_depth must be from 0 and below --max_depth, got {self.min_depth} and {self.max_depth}."
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"--crop must be above 0 and at most 1, got {self.crop}.")

    def crop_size(self, patch_size: int) -> int:
        """Side in pixels, in whole patches, of the part of a resized image that is trained on."""
        return max(1, round(self.size * self.crop / patch_size)) * patch_size


def load_depth(arguments: DepthDataArguments, seed: int) -> TaskData:
    """Images with depth maps.

    Args:
        arguments: `dataset` may also be a folder with `images/NAME.jpg` and `depth/NAME.png` or `.npy`, or with
            folders of this kind under `train/` and `validation/`.
        seed: Of the held-out part.

    Raises:
        ValueError: No images, images without a map, maps of another size than their image, no known depth in a whole
            part, and, with `--strict`, unreadable files and maps without a known depth.
    """
    columns = {"image": arguments.image_column, "label": arguments.label_column}
    train, evaluation, split = load_splits(arguments, columns, seed, targets="depth")
    parts = []
    for what, rows in (("training", train), ("evaluation", evaluation)):
        if arguments.check:
            rows, found = readable(rows, arguments.strict, partial(_check_depth, arguments=arguments))
            _check_unit(found, what, arguments)
        parts.append(rows)
    return TaskData(parts[0], parts[1], [], split)


def known_depth(depth: torch.Tensor, arguments: DepthDataArguments) -> torch.Tensor:
    """Where a map in metres holds a depth that counts: the rule of `EupeForDepthEstimation` and `DepthMetrics`."""
    return depth.isfinite() & (depth > arguments.min_depth) & (depth <= arguments.max_depth)


def _check_depth(name: str, cells: tuple[Any, ...], arguments: DepthDataArguments) -> tuple[str, float, float, float]:
    """The name of a map, its lowest and highest value as stored, and its largest known depth in metres, else 0."""
    image, depth = cells
    if depth.ndim != 2:
        raise ValueError(f"{name}: a depth map has one number per pixel, (height, width), got {tuple(depth.shape)}.")
    check_map_size(name, "depth map", image, depth)
    metres = depth.float() / arguments.depth_scale
    finite, known = depth.float()[metres.isfinite()], metres[known_depth(metres, arguments)]
    low, high = map(float, finite.aminmax()) if len(finite) else (0.0, 0.0)
    return name, low, high, float(known.max()) if len(known) else 0.0


def _check_unit(found: list[tuple[str, float, float, float]], what: str, arguments: DepthDataArguments) -> None:
    """Refuse a part without any known depth, which is mostly in another unit; warn of single maps."""
    unknown = [name for name, _, _, known in found if not known]
    low, high, largest = min(row[1] for row in found), max(row[2] for row in found), max(row[3] for row in found)
    if len(unknown) == len(found):
        raise ValueError(
            f"None of the {len(found)} depth maps of the {what} part has a depth above {arguments.min_depth:g} and up "
            f"to {arguments.max_depth:g} metres: their values go from {low:g} to {high:g}, which --depth_scale "
            f"{arguments.depth_scale:g} divides. Give the --depth_scale of their unit, 1000 for millimetres, or "
            "another --max_depth."
        )
    if unknown:
        message = f"{len(unknown)} of {len(found)} maps of the {what} part hold no known depth, {unknown[0]} first."
        if arguments.strict:
            raise ValueError(message)
        logger.warning(message)
    if largest < arguments.max_depth / 100:
        logger.warning(
            f"No depth of the {what} part is above {largest:g} metres, a hundredth of --max_depth: is --depth_scale "
            f"{arguments.depth_scale:g} the unit of the maps?"
        )


class DepthRows(TrainingRows):
    """Rows with `labels` in metres, of the size of the image that goes into the model.

    Training takes crops as they come from the augmentation, so that a pixel is as large as at evaluation: at another
    scale the same depth would look nearer or farther. `depth_scale` says what a metre is in the maps.
    """

    def __init__(self, *args: Any, depth_scale: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.depth_scale = depth_scale

    def encode(self, sample: dict[str, Any]) -> dict[str, Any]:
        """From a sample to `pixel_values`, and metres from the nearest pixel: depth is never interpolated."""
        options = {} if self.augmentation is None else {"do_resize": False}
        pixel_values = self.pixels(sample["image"], **options)
        metres = sample["mask"].float() / self.depth_scale
        labels = functional.interpolate(metres[None, None], pixel_values.shape[1:], mode="nearest-exact")[0, 0]
        return {"pixel_values": pixel_values, "labels": labels}


class BatchDepthMetrics(DepthMetrics):
    """`DepthMetrics` that takes batches, for `StreamingMetrics`."""

    def update(self, predicted: torch.Tensor, depth: torch.Tensor) -> None:
        """Compare maps (B, H, W) with the true ones (B, H, W), in metres."""
        for found, true in zip(predicted, depth, strict=True):
            super().update(found, true)


class DepthTask(RecipeTask):
    """As in `finetune_lora_depth.py`."""

    name, score, data_class = "depth", "delta1", DepthDataArguments
    help = "data set with depth maps"
    errors = ("rmse", "abs_rel", "rmse_log", "log10", "sigloss")
    crops = {"crop": "window", "fill": 0}  # it keeps the scale: the same room looks larger when it is nearer
    defaults = {
        # batch, weight decay and the head's learning rate: the paper's protocol, whose 38,400 steps are about 25
        # epochs of the 24,000 images of NYUv2 that depth estimation trains on. Warm-up as for segmentation; the
        # protocol's is in its loss. 480 is the short side of NYUv2.
        "all": {
            "metric_for_best_model": "rmse", "per_device_train_batch_size": 16, "num_train_epochs": 25,
            "head_learning_rate": 3e-4, "weight_decay": 1e-3, "warmup_steps": 0.0375, "size": 480,
        },
        # peft has no recipe for depth: that for segmentation, the other dense task
        "lora": {"learning_rate": 5e-4, "rank": 32, "dropout": 0.1},
        "probe": {"learning_rate": 3e-4},
        "full": {"learning_rate": 6e-5, "layer_decay": 0.75},  # as for segmentation
    }  # fmt: skip

    def load(self) -> TaskData:
        """Images with depth maps."""
        return load_depth(self.arguments, self.seed)

    def head_fields(self) -> dict[str, Any]:
        """The depths that the bins of the head span."""
        return {"min_depth": self.arguments.min_depth, "max_depth": self.arguments.max_depth}

    def augmentation(self, patch_size: int) -> Augmentation | None:
        """Crops of whole patches out of images of `--size`."""
        return training_augmentation(self.arguments, self.arguments.crop_size(patch_size), **self.crops)

    def make_rows(
        self, rows: Rows, processor: BaseImageProcessor, augmentation: Augmentation | None = None
    ) -> DepthRows:
        """Rows with depth in metres."""
        options = {"seed": self.seed, "depth_scale": self.arguments.depth_scale}
        return DepthRows(rows, processor, self.target, augmentation, **options)

    def metrics(self) -> BatchDepthMetrics:
        """Errors of depth."""
        return BatchDepthMetrics(**self.head_fields())

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """Depth (B, H, W) at the size of the labels."""
        return resize(output.predicted_depth.float().unsqueeze(1), labels.shape[1:]).squeeze(1), labels
