# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training images and their targets as the Trainer takes them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers.image_processing_utils import BaseImageProcessor

from eupe_hf.data.rows import Rows
from eupe_hf.data.streams import Stream

from .augmentation import Augmentation


class TrainingRows(Dataset):
    """Rows as the Trainer wants them: `pixel_values` (3, size, size) and `labels`.

    What is random about a row depends on the seed, the epoch and the row alone, so that neither the number of worker
    processes nor a resumed run changes it. Numbers beyond the last row begin again, with other augmentation: so the
    rows can be gone through more than once in an epoch.

    Args:
        rows: Images and targets.
        processor: The image processor. Its size is that of the evaluation, and of training without augmentation.
        target: "class" or "mask", what the label is. Subclasses for other targets override `read` or `encode`.
        augmentation: For training.
        seed: Of the augmentation.
    """

    def __init__(
        self,
        rows: Rows,
        processor: BaseImageProcessor,
        target: str,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ):
        self.rows, self.processor, self.target, self.augmentation = rows, processor, target, augmentation
        self.seed, self.epoch = seed, torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def count(self) -> str:
        """How many there are, in words."""
        return "streamed" if isinstance(self.rows, Stream) else str(len(self))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (self[row] for row in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """From now on augment as in this epoch."""
        self.epoch.fill_(epoch)

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample = self.read(row if isinstance(self.rows, Stream) else row % len(self))
        if self.augmentation is not None:
            (seed,) = np.random.SeedSequence((self.seed, int(self.epoch), row)).generate_state(1)
            sample = self.augmentation(sample, int(seed))
        return self.encode(sample)

    def read(self, row: int) -> dict[str, Any]:
        """A row as the augmentation takes it: the image as a tensor (3, H, W), and the target."""
        sample = dict(zip(("image", self.target), self.rows[row], strict=True))
        sample["image"] = self.processor.process_image(sample["image"])
        return sample

    def encode(self, sample: dict[str, Any]) -> dict[str, Any]:
        """From an augmented sample to what the model takes."""
        maps = [sample["mask"]] if self.target == "mask" else None
        inputs = self.processor([sample["image"]], segmentation_maps=maps, return_tensors="pt")
        labels = torch.tensor(sample["class"]) if maps is None else inputs["labels"][0]
        return {"pixel_values": inputs["pixel_values"][0], "labels": labels}


class StreamedRows(IterableDataset):
    """`TrainingRows` of a stream, one after another, as the Trainer takes them.

    Args:
        rows: Made from a `Stream`.
    """

    def __init__(self, rows: TrainingRows):
        self.rows, self.stream = rows, rows.rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self.rows[position] for position in self.stream.positions())
