# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Options of training, and what is checked before anything is loaded."""

import argparse
import contextlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import BitsAndBytesConfig, HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from eupe_hf.data.options import InputArguments
from eupe_hf.models.reading_eupe import check_path

from .resuming import find_checkpoint


MODES = ("lora", "probe", "full")
# Of all training.
_COMMON = {
    "lr_scheduler_type": "cosine",  # the paper's evaluation protocols, and LLaVA-1.5
    "logging_steps": 10,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "dataloader_num_workers": 4,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "hub_strategy": "end",
}
# Of every recipe; a task and a mode add theirs.
_RECIPE = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "batch_eval_metrics": True,  # metrics count batch by batch: memory does not grow with the evaluation set
}


class Declaration(Protocol):
    """What `parse_recipe` reads of a `RecipeTask`."""

    name: str
    data_class: type[InputArguments]
    defaults: Mapping[str, Mapping[str, Any]]
    usage: str


@dataclass
class OutputArguments(TrainingArguments):
    """The Trainer's own arguments, and what to do with the output folder."""

    merge: bool = field(default=False, metadata={"help": "LoRA: save an ordinary model, with the adapter merged in"})
    overwrite: bool = field(default=False, metadata={"help": "use an output folder that is not empty"})


@dataclass
class RecipeArguments(OutputArguments):
    """The Trainer's own arguments, and what the recipes add to them."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "factor of the learning rate from a block (ConvNeXt: stage) to the one below"}
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


@dataclass
class AdapterArguments:
    """The size of LoRA's updates."""

    rank: int = field(default=16, metadata={"help": "LoRA: rank of the updates"})
    alpha: float | None = field(
        default=None, metadata={"help": "LoRA: scale of the updates, times 1 / rank; default: --rank"}
    )
    dropout: float = field(default=0.0, metadata={"help": "LoRA: dropout before the updates"})

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"--rank must be at least 1, got {self.rank}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be a share from 0 to below 1, got {self.dropout}.")
        if self.alpha is None:
            self.alpha = float(self.rank)  # as in peft's recipes, whatever the rank


@dataclass
class ModelArguments(AdapterArguments):
    """The encoder, and which part of it is trained."""

    model: str = field(default="eupe-s", metadata={"help": "the encoder: a short name, a Hub id or a folder"})
    mode: str = field(
        default="lora",
        metadata={"help": "train adapters and head (lora), the head (probe), or everything (full)", "choices": MODES},
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "blocks or stages that the head reads, from 0; default: the last"}
    )
    drop_path_rate: float = field(
        default=0.0, metadata={"help": "stochastic depth: how often training skips the last block; earlier ones less"}
    )
    targets: list[str] | None = field(
        default=None,
        metadata={"help": "LoRA: attention, mlp, all, or names of layers; default: attention, for a ConvNeXt mlp"},
    )
    use_dora: bool = field(default=False, metadata={"help": "LoRA: weight-decomposed updates (DoRA)"})
    use_rslora: bool = field(default=False, metadata={"help": "LoRA: scale by 1 / sqrt(rank) (rsLoRA)"})
    quantize: str | None = field(
        default=None, metadata={"help": "LoRA: bits of the encoder's weights", "choices": ("8bit", "4bit")}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"--drop_path_rate must be from 0 to below 1, got {self.drop_path_rate}.")
        self.loading: dict[str, Any] = {}  # keyword arguments of `from_pretrained`, for quantized weights

    def settings(self) -> dict[str, Any]:
        """What results and card say of these options."""
        chosen: dict[str, Any] = {"encoder": public(self.model), "mode": self.mode, "layers": self.layers}
        chosen["drop_path_rate"] = self.drop_path_rate or None
        names = ("rank", "alpha", "targets", "dropout", "use_dora", "use_rslora", "quantize")
        return chosen | {name: getattr(self, name) for name in names if self.mode == "lora"}


def public(name: str) -> str:
    """A short name or Hub id as it is; of a folder or file the name, without where it lies on this machine."""
    return Path(name).resolve().name if Path(name).exists() else name


class OptionsHelp(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the options, and the description as it is written."""


def peek(option: str, default: str, arguments: Sequence[str] | None = None) -> str:
    """The value of one option, on which the defaults of others depend; it is checked when all are read."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument(f"--{option}", default=default)
    return getattr(finder.parse_known_args(arguments)[0], option)


def parse_options(
    classes: Sequence[type],
    defaults: Mapping[str, Any],
    description: str,
    arguments: Sequence[str] | None = None,
    usage: str = "",
) -> tuple[Any, ...]:
    """Read a command line: an instance of each class. It takes `--batch_size` and `--batch-size`.

    Args:
        classes: Data classes of the options.
        defaults: Replace the defaults of the classes.
        description: Shown by `--help`.
        arguments: The command line; by default the program's own.
        usage: The options that are needed.
    """
    parser = HfArgumentParser(
        classes,
        description=description,
        formatter_class=OptionsHelp,
        usage=f"%(prog)s {usage} [options]",  # all of them would hide the message of an error
    )
    parser.set_defaults(**_COMMON | dict(defaults))
    return parser.parse_args_into_dataclasses(args=arguments)


def parse_recipe(
    task: type[Declaration], description: str, arguments: Sequence[str] | None = None
) -> tuple[ModelArguments, Any, RecipeArguments]:
    """Read the command line of a recipe, and check the output folder.

    Args:
        task: The task, whose `data_class` and `defaults` count.
        description: Shown by `--help`.
        arguments: The command line; by default the program's own.

    Returns:
        The options of the model, of the data (`task.data_class`) and of the Trainer. `resume_from_checkpoint` is a
        folder, also where "last" was given.

    Raises:
        ImportError: `--quantize` without bitsandbytes.
        ValueError: Options that contradict each other, or an output folder in use.
    """
    mode = peek("mode", "lora", arguments)
    defaults = {**_RECIPE, "output_dir": f"eupe-{task.name}-{mode}"}
    defaults |= {**task.defaults.get("all", {}), **task.defaults.get(mode, {})}
    classes = (ModelArguments, task.data_class, RecipeArguments)
    model, data, training = parse_options(classes, defaults, description, arguments, task.usage)
    if training.merge and mode != "lora":
        raise ValueError(f"--merge requires --mode lora; --mode {mode} saves an ordinary model anyway.")
    check_processes(training)
    model.loading = quantization(model, training)
    if data.streaming:
        prepare_streaming(training)
    check_output(training)
    return model, data, training


def check_processes(arguments: OutputArguments) -> None:
    """Refuse processes that would each train alone, and `--merge` where weights are divided among processes."""
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


def quantization(model: ModelArguments, arguments: RecipeArguments) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` for `--quantize`.

    Four bits are NF4 with quantized scales, as in QLoRA (arXiv 2305.14314), eight are LLM.int8 (arXiv 2208.07339).
    Quantized weights cannot change, neither in training nor by `--merge`.
    """
    if model.quantize is None:
        return {}
    if model.mode != "lora":
        raise ValueError(f"--quantize requires --mode lora: quantized weights cannot learn in --mode {model.mode}.")
    if arguments.merge:
        raise ValueError(
            "--merge would round the adapter to the quantized weights: train without it, then "
            "eupe_hf.lora.load_peft_model(FOLDER).merge_and_unload() merges it into whole ones."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError("--quantize needs bitsandbytes: pip install bitsandbytes.")
    if model.quantize == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **options)}


def prepare_streaming(arguments: RecipeArguments) -> None:
    """Evaluate ten times in a run instead of once per epoch: a stream does not say how long an epoch is."""
    if arguments.max_steps < 1:
        raise ValueError("--streaming needs --max_steps: a stream does not say how long it is.")
    if arguments.eval_strategy == "epoch" and arguments.save_strategy == "epoch":
        arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
        arguments.eval_steps = arguments.save_steps = max(1, arguments.max_steps // 10)


def check_output(arguments: OutputArguments) -> None:
    """Refuse an output folder in use, and find the checkpoint to resume from."""
    # what is saved in a folder whose name is not UTF-8 could not be loaded, at the end of the training
    folder, resume = check_path(arguments.output_dir), arguments.resume_from_checkpoint
    if folder.is_file():
        raise ValueError(f"--output_dir {folder} is a file: choose a folder.")
    if resume:
        arguments.resume_from_checkpoint = find_checkpoint(
            folder, str(resume), arguments.save_only_model, tells=arguments.should_log
        )
    elif folder.is_dir() and any(folder.iterdir()):
        if not arguments.overwrite:
            raise ValueError(
                f"The output folder {folder} is in use: choose another --output_dir, continue with "
                "--resume_from_checkpoint last, or give --overwrite."
            )
        for checkpoint in folder.glob("checkpoint-*"):  # else the Trainer would count them with its own
            shutil.rmtree(checkpoint, ignore_errors=True)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Exit with code 2 and a one-line message where the input is wrong; for what runs before training."""
    try:
        yield
    except (ImportError, OSError, ValueError) as error:
        message = str(error).partition("Model type should be one of")[0]  # transformers lists a hundred classes
        sys.stderr.write(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}\n")
        raise SystemExit(2) from error
