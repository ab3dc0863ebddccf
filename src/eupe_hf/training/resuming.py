# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint that a run resumes from: the newest one that is complete, for a killed run may leave part of one."""

import contextlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from transformers.utils import (
    ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    logging,
)

from eupe_hf.models.reading_eupe import read_header, read_json


logger = logging.get_logger(__name__)

_WEIGHTS = (
    SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME, ADAPTER_SAFE_WEIGHTS_NAME,
    ADAPTER_WEIGHTS_NAME,
)  # fmt: skip


def find_checkpoint(folder: Path, resume: str, only_model: bool = False, tells: bool = True) -> str:
    """The checkpoint to resume from.

    Args:
        folder: Output folder of the run.
        resume: A checkpoint, or "last" for the newest complete one in `folder`.
        only_model: As for `checkpoint_fault`.
        tells: Warn of newer checkpoints that are not complete.

    Raises:
        ValueError: There is none, or none that is complete.
    """
    if resume != "last":
        if not Path(resume).is_dir():
            raise ValueError(f"There is no checkpoint at {resume} to resume from.")
        if fault := checkpoint_fault(Path(resume), only_model):
            raise ValueError(f"The checkpoint {resume} is not complete, {fault}: resume from another one.")
        return resume
    places = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    steps = {int(step[1]): path for path in places if (step := re.fullmatch(r"checkpoint-(\d+)", path.name))}
    faults: list[str] = []
    for _, path in sorted(steps.items(), reverse=True):
        fault = checkpoint_fault(path, only_model)
        if not fault:
            if faults and tells:
                logger.warning(f"Resuming from {path}, the newest complete checkpoint. {' '.join(faults)}")
            return str(path)
        faults.append(f"{path.name} is not complete: {fault}.")
    if faults:
        raise ValueError(f"There is no complete checkpoint in {folder} to resume from. {' '.join(faults)}")
    raise ValueError(f"There is no checkpoint in {folder} to resume from.")


def checkpoint_fault(checkpoint: Path, only_model: bool = False) -> str:
    """What keeps the Trainer from resuming from a checkpoint, such as a run leaves that was killed while it saved.

    Args:
        checkpoint: The folder.
        only_model: The run saves with `--save_only_model`: neither optimizer nor random state.

    Returns:
        A clause that names the file; empty for a complete checkpoint.
    """
    files = {path.name: path for path in checkpoint.iterdir()}
    weights = [name for name in _WEIGHTS if name in files]
    needed = ["trainer_state.json", *["adapter_config.json"] * any(name.startswith("adapter") for name in weights)]
    if not any(path.is_dir() for path in files.values()):  # FSDP and DeepSpeed have folders for what is in parts
        if not weights:
            return "its weights are missing"
        needed += [] if only_model else ["optimizer.pt", "scheduler.pt"]
        if not only_model and not any(name.startswith("rng_state") for name in files):
            return "rng_state.pth is missing"
    for index in (name for name in weights if name.endswith(".json")):
        shards: Any = {}
        with contextlib.suppress(ValueError):
            shards = read_json(files[index]).get("weight_map") or {}
        if not isinstance(shards, dict) or not shards:
            return f"{index} is cut short"
        needed += sorted({str(name) for name in shards.values()})
    if missing := [name for name in needed if name not in files]:
        return f"{missing[0]} is missing"
    cut = next((name for name, path in sorted(files.items()) if path.is_file() and _is_cut(path)), None)
    return "" if cut is None else f"{cut} is cut short"


def _is_cut(file: Path) -> bool:
    """Whether a file is not what its name says, which is known without reading all of it."""
    try:
        if file.suffix == ".safetensors":
            read_header(file)
        elif file.name in ("trainer_state.json", "adapter_config.json"):
            json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return True
    return file.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(file)  # as torch.save writes them
