# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What a file or folder holds: a checkpoint, model, adapter or features. `eupe info` prints it."""

from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from eupe_hf.features.files import read_features
from eupe_hf.models.reading_eupe import read_json

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
            "kind": f"{lora.get('peft_type', 'LORA')} adapter",
            **{name: lora.get(key) for name, key in keys.items()},
        }
    config = path / CONFIG_NAME
    fields = read_json(config) if config.is_file() else {}
    if fields.get("model_type") == "eupe_multitask":
        return {"kind": "multi-task model", "heads": [f"{n} ({h['task']})" for n, h in fields["heads"].items()]}
    if fields.get("model_type") == "eupe_llava":
        kind = {"kind": "vision-language model", "language model": fields["text_config"]["model_type"]}
        return {**kind, "image tokens": fields["image_seq_length"]}
    if path.suffix == ".parquet" or any(path.glob("*.parquet")):
        found = read_features(path)
        width = found.features.shape[-1]
        return {"kind": "features", "images": len(found.paths), "width": width, "model": found.model}
    checkpoint = load_checkpoint(path)
    return {
        "kind": (fields.get("architectures") or ["encoder"])[0],
        "model": checkpoint.variant.name if checkpoint.variant is not None else "not one of the six published models",
        "layout": checkpoint.layout,
        "parameters": sum(tensor.numel() for tensor in checkpoint.state.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.state.values()}),
        "tensors of a head": len(checkpoint.head),
        "tensors of distillation adapters": len(checkpoint.projectors),
    }
