# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training in several processes, on quantized weights, and on streams.

Needs `pip install 'eupe-hf[train]'`.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import BitsAndBytesConfig
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .augmentation import StreamedRows
from .data import Rows, Stream


if TYPE_CHECKING:
    from .training import ModelArguments, RecipeArguments
    from .training_data import DataArguments


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


def as_rows(
    part: Any,
    columns: Mapping[str, str],
    arguments: "DataArguments",
    seed: int,
    classes: Mapping[Any, int] | None = None,
) -> Any:
    """The rows of a part: `Rows`, or a `Stream` where it is read while it is trained on."""
    if hasattr(part, "select"):
        return Rows(part, columns, classes)
    return Stream(part, columns, classes, seed, arguments.shuffle_buffer, arguments.strict)


def refuse_streaming(arguments: "DataArguments", why: str, instead: str = "leave out --streaming") -> None:
    """Refuse to stream what cannot be."""
    if arguments.streaming:
        raise ValueError(f"{arguments.dataset} cannot be streamed: {why}; {instead}.")


def check_named(arguments: "DataArguments") -> None:
    """Refuse a stream whose class names are nowhere: they could only be counted at its end."""
    if arguments.streaming:
        raise ValueError(f"The stream {arguments.dataset} does not name its classes: name them with --labels FILE.")


def prepare_streaming(arguments: "RecipeArguments") -> None:
    """Evaluate ten times in a run where that would be once in a turn of the data, which a stream does not tell."""
    if arguments.max_steps < 1:
        raise ValueError("--streaming needs --max_steps: a stream does not say how long it is.")
    if arguments.eval_strategy == "epoch" and arguments.save_strategy == "epoch":
        arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
        arguments.eval_steps = arguments.save_steps = max(1, arguments.max_steps // 10)


def stream_loader(rows: StreamedRows, collator: Callable[[Any], Any], arguments: "RecipeArguments") -> DataLoader:
    """Batches of the rows of this process.

    accelerate would have one process read for all, which cuts lists of boxes wrongly, or have each process decode all.
    """
    from accelerate.data_loader import prepare_data_loader

    rows.stream.divide(arguments.process_index, arguments.world_size, max(1, arguments.dataloader_num_workers))
    loader = DataLoader(
        rows,
        batch_size=arguments.train_batch_size,
        collate_fn=collator,
        num_workers=arguments.dataloader_num_workers,
        pin_memory=arguments.dataloader_pin_memory,
        prefetch_factor=arguments.dataloader_prefetch_factor,
    )
    # one process: the rows are divided already
    return prepare_data_loader(
        loader, arguments.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
    )


__all__ = [
    "as_rows",
    "check_named",
    "check_processes",
    "prepare_streaming",
    "quantization",
    "refuse_streaming",
    "stream_loader",
]
