# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What every training script shares, whatever it trains: the output folder, messages, a Trainer with a card.

Needs `pip install 'eupe-hf[train]'`.
"""

import argparse
import contextlib
import gc
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.operations import recursively_apply
from huggingface_hub import ModelCard
from torch.utils.data import get_worker_info
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class OutputArguments(TrainingArguments):
    """The Trainer's own arguments, and what to do with the output folder."""

    merge: bool = field(default=False, metadata={"help": "LoRA: save an ordinary model, with the adapter merged in"})
    overwrite: bool = field(default=False, metadata={"help": "use an output folder that is not empty"})


class OptionsHelp(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the description as it is written."""


def check_output(arguments: OutputArguments) -> None:
    """Refuse an output folder in use, and find the checkpoint to resume from."""
    folder, resume = Path(arguments.output_dir), arguments.resume_from_checkpoint
    if folder.is_file():
        raise ValueError(f"--output_dir {folder} is a file: choose a folder.")
    if resume:
        found = get_last_checkpoint(str(folder)) if resume == "last" and folder.is_dir() else resume
        if found is None or not Path(found).is_dir():
            where = f"in {folder}" if resume == "last" else f"at {resume}"
            raise ValueError(f"There is no checkpoint {where} to resume from.")
        arguments.resume_from_checkpoint = found
    elif folder.is_dir() and any(folder.iterdir()):
        if not arguments.overwrite:
            raise ValueError(
                f"The output folder {folder} is in use: choose another --output_dir, go on with "
                "--resume_from_checkpoint last, or give --overwrite."
            )
        for checkpoint in folder.glob("checkpoint-*"):  # else the Trainer would count them with its own
            shutil.rmtree(checkpoint, ignore_errors=True)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """End the program with exit code 2 and one sentence where the input is wrong; for what comes before training."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        message = str(error).partition("Model type should be one of")[0]  # transformers lists a hundred classes
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}\n")
        raise SystemExit(2) from error


class SetEpoch(TrainerCallback):
    """Tells data or a sampler which epoch it is; accelerate does so only in some of its data loaders.

    Args:
        dataset: What knows `set_epoch`.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Part of the Trainer."""
        self.dataset.set_epoch(math.floor((state.epoch or 0) + 1e-6))


class _InSharedMemory:
    """A collator whose batches lie in shared memory before a loader's worker lets go of them.

    torch would move them after that, where an error is lost, and training would wait for ever. Arrays instead, as of
    `data.hand_over`, are not for the Trainer: it counts labels in tensors, and would pass over others without a word.
    """

    def __init__(self, collate: Callable[[Any], Any]):
        self.collate = collate

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if get_worker_info() is not None:
            try:
                recursively_apply(torch.Tensor.share_memory_, batch)
            except RuntimeError as error:
                raise RuntimeError(
                    "The loader's workers have no shared memory left for a batch (/dev/shm; containers have 64 MB): "
                    "give the container more, for example docker run --shm-size 2g, or read the images without "
                    "workers: --dataloader_num_workers 0."
                ) from error
        return batch


class CardTrainer(Trainer):
    """Trainer that tells its data the epoch, and whose card says how the model learned."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.data_collator: Any = _InSharedMemory(self.data_collator)
        self.card: ModelCard | None = None
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(SetEpoch(self.train_dataset))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card where the Trainer would write its own, which has neither licence nor loading code."""
        if self.card is not None and self.is_world_process_zero():
            self.card.save(Path(self.args.output_dir) / "README.md")

    def end(self) -> None:
        """Wait for the other processes, and leave their group: the last thing a script does with its trainer."""
        self.accelerator.wait_for_everyone()
        # First what DDP wrapped: were it the last to hold a gloo group, torch would wait for the group's threads with
        # the interpreter locked, and they for the interpreter, for ever (github.com/pytorch/pytorch/issues/56297).
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()


__all__ = ["CardTrainer", "OptionsHelp", "OutputArguments", "SetEpoch", "check_output", "one_sentence"]
