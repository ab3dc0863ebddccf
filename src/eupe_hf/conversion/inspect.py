# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a file or folder holds: a checkpoint, model, adapter or features. `eupe info` prints it."""

from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from eupe_hf.features.files import read_features
from eupe_hf.models.reading_eupe import get_field, read_json

from .checkpoints import load_checkpoint


def describe(path: Path) -> dict[str, Any]:
    """Describe a file or folder, in JSON values by names for people.

    Raises:
        OSError: The file or folder does not exist.
        ValueError: It holds nothing of EUPE.
    """
    if path.is_dir() and (path / ADAPTER_CONFIG_NAME).is_file():
        lora = read_json(path / ADAPTER_CONFIG_NAME)
        keys = {"base": "base_model_name_or_path", "rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
        return {
            "kind": f"{get_field(lora, 'peft_type', str, path / ADAPTER_CONFIG_NAME) or 'LORA'} adapter",
            **{name: lora.get(key) for name, key in keys.items()},
        }
    config = path / CONFIG_NAME
    fields = read_json(config) if config.is_file() else {}
    if fields.get("model_type") == "eupe_multitask":
        heads = get_field(fields, "heads", dict[str, dict], config) or {}
        tasks = {name: get_field(head, "task", str, config, required=True) for name, head in heads.items()}
        return {"kind": "multi-task model", "heads": [f"{name} ({task})" for name, task in tasks.items()]}
    if fields.get("model_type") == "eupe_llava":
        text = get_field(fields, "text_config", dict, config, required=True)
        return {
            "kind": "vision-language model",
            "language model": get_field(text, "model_type", str, config, required=True),
            "image tokens": get_field(fields, "image_seq_length", int, config, required=True),
        }
    if path.suffix == ".parquet" or any(path.glob("*.parquet")):
        found = read_features(path)
        width = found.features.shape[-1]
        return {"kind": "features", "images": len(found.paths), "width": width, "model": found.model}
    checkpoint = load_checkpoint(path)
    return {
        "kind": (get_field(fields, "architectures", list[str], config) or ["encoder"])[0],
        "model": checkpoint.variant.name if checkpoint.variant is not None else "not one of the six published models",
        "layout": checkpoint.layout,
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}),
        "tensors of a head": len(checkpoint.head),
        "tensors of distillation adapters": len(checkpoint.projectors),
    }
