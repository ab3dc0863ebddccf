# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training in several processes, and on quantized weights: what must be right before the first step.

Needs `pip install 'eupe-hf[train]'`.
"""

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from transformers import BitsAndBytesConfig


if TYPE_CHECKING:
    from .training import ModelArguments, RecipeArguments


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


__all__ = ["check_processes", "quantization"]
