# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Options that say what to train on."""

from dataclasses import dataclass, field
from typing import Any


_FIRST = 64  # rows of a stream that are checked before the first step


@dataclass(kw_only=True)
class InputArguments:
    """Options of the data that a run with several data sets shares: splits, size, augmentation, checks."""

    train_split: str = field(default="train", metadata={"help": "split to train on"})
    eval_split: str | None = field(
        default=None, metadata={"help": "split to evaluate on; default: validation, else --held_out of --train_split"}
    )
    held_out: float = field(default=0.1, metadata={"help": "share held out if there is no validation split"})
    image_column: str = field(default="image", metadata={"help": "column with the images"})
    size: int = field(default=256, metadata={"help": "side of the input in pixels"})
    augment: bool = field(default=True, metadata={"help": "crop, flip and recolour the training images"})
    flip: float = field(default=0.5, metadata={"help": "probability of mirroring; 0 if left and right have a meaning"})
    colour: float = field(default=0.25, metadata={"help": "strength of the random change of colours"})
    limit: int | None = field(default=None, metadata={"help": "take this many rows of each split, evenly spaced"})
    strict: bool = field(default=False, metadata={"help": "refuse unreadable files instead of skipping them"})
    check: bool = field(default=True, metadata={"help": f"first read every file once; of a stream, {_FIRST} rows"})
    streaming: bool = field(default=False, metadata={"help": "read the rows during training; needs --max_steps"})
    shuffle_buffer: int = field(default=1000, metadata={"help": "streaming: rows from which the next is drawn"})
    eval_rows: int = field(default=1000, metadata={"help": "streaming: rows to evaluate on, kept in memory"})

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise ValueError(f"--held_out must be a share between 0 and 1, got {self.held_out}.")
        for name in ("flip", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} must be a share from 0 to 1, got {getattr(self, name)}.")
        for name in ("size", "limit", "shuffle_buffer", "eval_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")

    def settings(self) -> dict[str, Any]:
        """Further settings that a card should list."""
        return {}


@dataclass
class DataArguments(InputArguments):
    """Options of one data set: a Hub id, a folder of images, or a folder that `save_to_disk` wrote."""

    dataset: str = field(metadata={"help": "a Hub id or a folder"})
    dataset_config: str | None = field(default=None, metadata={"help": "configuration, if there are several"})
    label_column: str = field(default="label", metadata={"help": "column with the targets"})
    labels: str | None = field(default=None, metadata={"help": "file with class names: JSON, or one per line"})
