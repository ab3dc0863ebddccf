# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training images and their targets in the form that the Trainer takes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature

from .augmentation import Augmentation


class TrainingRows(Dataset):
    """Rows in the form that the Trainer takes: `pixel_values` (3, size, size) and `labels`.

    What is random about a row depends only on the seed, the epoch and its number, not on workers or on a resumed run.
    Numbers beyond the last row start over, augmented differently: an epoch can go through the rows more than once.

    Args:
        rows: Images and targets: `Rows`, or a `Stream`, which `StreamedRows` iterates.
        processor: The image processor. Its size is that of the evaluation, and of training without augmentation.
        target: "class" or "mask", the kind of label. Subclasses for other targets override `read` or `encode`.
        augmentation: For training.
        seed: Seed of the augmentation.
    """

    def __init__(
        self,
        rows: Any,
        processor: BaseImageProcessor,
        target: str,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        self.rows, self.processor, self.target, self.augmentation = rows, processor, target, augmentation
        self.seed, self.epoch = seed, torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[row] for row in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """From now on augment for this epoch."""
        self.epoch.fill_(epoch)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.make(row, self.rows[row % len(self)])

    def make(self, number: int, cells: tuple[Any, ...]) -> dict[str, Any]:
        """What the model takes, from the cells of the row with this number."""
        sample = self.read(cells)
        if self.augmentation is not None:
            (seed,) = np.random.SeedSequence((self.seed, int(self.epoch), number)).generate_state(1)
            sample["image"] = self.processor.process_image(sample["image"])
            sample = self.augmentation(sample, int(seed))
        return self.encode(sample)

    def read(self, cells: tuple[Any, ...]) -> dict[str, Any]:
        """The image and the target by name."""
        return dict(zip(("image", self.target), cells, strict=True))

    def encode(self, sample: dict[str, Any]) -> dict[str, Any]:
        """What the model takes, from a sample whose image is a PIL image or, after augmentation, a tensor."""
        if self.target != "mask":
            return {"pixel_values": self.pixels(sample["image"]), "labels": torch.tensor(sample[self.target])}
        inputs = self.prepare(sample["image"], segmentation_maps=[sample["mask"]])
        return {"pixel_values": inputs["pixel_values"][0], "labels": inputs["labels"][0]}

    def pixels(self, image: Any, **options: Any) -> torch.Tensor:
        """The `pixel_values` (3, height, width) of one image."""
        return self.prepare(image, **options)["pixel_values"][0]

    def prepare(self, image: Any, **options: Any) -> BatchFeature:
        """What the processor makes of one image; what the augmentation gives was read and checked before."""
        prepare: Any = self.processor if self.augmentation is None else self.processor.preprocess_pixels
        return prepare([image], return_tensors="pt", **options)


class StreamedRows(IterableDataset):
    """`TrainingRows` of a `Stream`, one after another."""

    def __init__(self, rows: TrainingRows):
        self.rows, self.stream = rows, rows.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.rows.make(number, cells) for number, cells in self.stream)
