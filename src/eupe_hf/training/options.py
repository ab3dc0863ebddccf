# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Options of the training recipes, and their checks before anything is loaded."""

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitsAndBytesConfig,
    HfArgumentParser,
    TrainingArguments,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, get_last_checkpoint

from eupe_hf.data.options import DataArguments, InputArguments


def check_processes(arguments: "RecipeArguments") -> None:
    """Refuse processes that would not train together, and what cannot be done with weights that they share out."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if arguments.world_size < started:
        raise ValueError(
            f"{started} processes were started, but each would train alone: they find no GPUs. On the CPU give "
            "--use_cpu as well."
        )
    shared = [name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]
    if arguments.merge and shared:
        raise ValueError(
            f"--merge needs whole weights, which {shared[0]} has in no process: train without it, then "
            "eupe_hf.lora.load_peft_model(FOLDER).merge_and_unload().save_pretrained(MERGED)."
        )


def quantization(model: "ModelArguments", arguments: "RecipeArguments") -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for `--quantize`.

    Four bits are NF4 with quantized scales, as in QLoRA (arXiv 2305.14314), eight are LLM.int8 (arXiv 2208.07339).

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: The weights would have to change, in training or by `--merge`.
    """
    if model.quantize is None:
        return {}
    if model.mode != "lora":
        raise ValueError(f"--quantize goes with --mode lora: quantized weights learn nothing in --mode {model.mode}.")
    if arguments.merge:
        raise ValueError(
            "--merge would round the adapter to the quantized weights: train without it, then "
            "eupe_hf.lora.load_peft_model(FOLDER).merge_and_unload() merges it into whole ones."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("--quantize needs bitsandbytes: pip install bitsandbytes.")
    if model.quantize == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if arguments.bf16 else torch.float32,
        )
    }


def prepare_streaming(arguments: "RecipeArguments") -> None:
    """Evaluate ten times in a run where that would be once in a turn of the data, which a stream does not tell."""
    if arguments.max_steps < 1:
        raise ValueError("--streaming needs --max_steps: a stream does not say how long it is.")
    if arguments.eval_strategy == "epoch" and arguments.save_strategy == "epoch":
        arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
        arguments.eval_steps = arguments.save_steps = max(1, arguments.max_steps // 10)


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


MODES = ("lora", "probe", "full")


# Of every recipe; a task and a mode add theirs.
_COMMON = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "logging_steps": 10,
    "lr_scheduler_type": "cosine",  # the paper's evaluation protocols
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "batch_eval_metrics": True,  # metrics count batch by batch: memory does not grow with the evaluation set
    "dataloader_num_workers": 4,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "hub_strategy": "end",
}


_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {
        "all": {"metric_for_best_model": "accuracy", "per_device_train_batch_size": 32, "num_train_epochs": 5},
        # peft's published recipe for image classification: rank 16, alpha 16, dropout 0.1, 5 epochs, learning rate
        # 5e-3 at batch 512 (128, accumulated four times); at batch 32 a quarter of it, by the square root of the
        # ratio, as Adam wants
        "lora": {"learning_rate": 1.25e-3, "rank": 16, "dropout": 0.1, "warmup_steps": 0.05},
        # as the paper's protocol trains its linear head for segmentation, with AdamW; the linear evaluation of DINOv2
        # (arXiv 2304.07193) has no one rate: it tries thirteen from 1e-5 to 0.1, for SGD
        "probe": {"learning_rate": 1e-3},
        # MAE's fine-tuning of a ViT-B (arXiv 2111.06377): 5e-4 for each 256 images, weight decay 0.05, warm-up, decay
        # by layers (0.65 there, for 100 epochs; 0.75 as MAE and BEiT have it for the 50 epochs of a ViT-L); the head
        # is new and learns faster
        "full": {
            "learning_rate": 6e-5, "weight_decay": 0.05, "layer_decay": 0.75, "head_learning_rate": 1e-3,
            "warmup_steps": 0.05,
        },
    },
    "segmentation": {
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
    },
}  # fmt: skip


# ---- options ----


@dataclass
class ModelArguments:
    """The encoder, and which part of it is trained."""

    encoder: str = field(default="eupe-s", metadata={"help": "a short name, a Hub id or a folder"})
    mode: str = field(
        default="lora",
        metadata={"help": "adapters and head (lora), the head alone (probe), or everything (full)", "choices": MODES},
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "blocks or stages that the head reads, from 0; default: the last"}
    )
    rank: int = field(default=16, metadata={"help": "LoRA: rank of the updates"})
    alpha: float | None = field(
        default=None, metadata={"help": "LoRA: scale of the updates, times 1 / rank; default: --rank"}
    )
    targets: list[str] | None = field(
        default=None,
        metadata={"help": "LoRA: attention, mlp, all, or names of layers; default: attention, for a ConvNeXt mlp"},
    )
    dropout: float = field(default=0.0, metadata={"help": "LoRA: dropout before the updates"})
    use_dora: bool = field(default=False, metadata={"help": "LoRA: weight-decomposed updates (DoRA)"})
    use_rslora: bool = field(default=False, metadata={"help": "LoRA: scale by 1 / sqrt(rank) (rsLoRA)"})
    quantize: str | None = field(
        default=None, metadata={"help": "LoRA: bits of the encoder's weights", "choices": ("8bit", "4bit")}
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"--rank must be at least 1, got {self.rank}.")
        if self.alpha is None:
            self.alpha = float(self.rank)  # as in both of peft's recipes, whatever the rank
        self.loading: dict[str, Any] = {}  # how to load quantized weights

    def head_fields(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` that these options set."""
        return self.loading | ({} if self.layers is None else {"out_indices": [layer + 1 for layer in self.layers]})


@dataclass
class RecipeArguments(OutputArguments):
    """The Trainer's own arguments, and what the recipes add to them."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "learning rate of a block (ConvNeXt: stage) over that of the one above it"}
    )
    head_learning_rate: float | None = field(default=None, metadata={"help": "default: --learning_rate"})
    early_stopping: int | None = field(
        default=None, metadata={"help": "stop after this many evaluations without a better metric"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay must be above 0 and at most 1, got {self.layer_decay}.")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError(f"--early_stopping must be at least 1, got {self.early_stopping}.")


def parse_recipe(
    task: str,
    description: str,
    arguments: Sequence[str] | None = None,
    data_class: type[InputArguments] = DataArguments,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    usage: str = "--dataset DATASET",
) -> tuple[ModelArguments, Any, RecipeArguments]:
    """Read the command line of a recipe, and check the output folder.

    Args:
        task: "classification" or "segmentation", or the name of a task that comes with `defaults`.
        description: Shown by `--help`.
        arguments: The command line; by default the program's own.
        data_class: `DataArguments` or a subclass with more options.
        defaults: Options of "all" modes, "lora", "probe" and "full", by default those of the task.
        usage: The options that are needed.

    Returns:
        The three groups of options. `resume_from_checkpoint` is a folder, also where "last" was given.

    Raises:
        ValueError: Options that do not go together, or an output folder in use.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--mode", choices=MODES, default="lora")
    mode = finder.parse_known_args(arguments)[0].mode
    table = defaults or _DEFAULTS[task]
    parser = HfArgumentParser(
        (ModelArguments, data_class, RecipeArguments),
        description=description,
        formatter_class=OptionsHelp,
        usage=f"%(prog)s {usage} [options]",  # all of them would hide the message of an error
    )
    parser.set_defaults(**_COMMON, output_dir=f"eupe-{task}-{mode}")
    parser.set_defaults(**{**table.get("all", {}), **table.get(mode, {})})
    model, data, training = parser.parse_args_into_dataclasses(args=arguments)
    if training.merge and mode != "lora":
        raise ValueError(f"--merge goes with --mode lora; --mode {mode} saves an ordinary model anyway.")
    check_processes(training)
    model.loading = quantization(model, training)
    if data.streaming:
        prepare_streaming(training)
    check_output(training)
    return model, data, training
