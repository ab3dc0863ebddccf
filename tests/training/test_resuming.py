# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The checkpoint to resume from, where a killed run left parts of one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eupe_hf.training.options import parse_recipe
from eupe_hf.training.resuming import checkpoint_fault, find_checkpoint
from eupe_hf.training.tasks.classification import ClassificationTask
from eupe_hf.training.vlm import parse_vlm


def checkpoint(folder: Path, weights: str = "adapter_model.safetensors") -> Path:
    """The files of a complete checkpoint."""
    folder.mkdir(parents=True)
    save_file({"a": torch.ones(3)}, folder / weights)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 5}))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.ones(3)}, folder / name)
    return folder


def sharded(folder: Path) -> Path:
    checkpoint(folder, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    return folder


def divided(folder: Path) -> Path:
    """As FSDP saves it, in parts."""
    checkpoint(folder)
    for name in ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth"):
        (folder / name).unlink()
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (folder / name).mkdir()
    return folder


def test_complete_checkpoints_have_no_fault(tmp_path: Path) -> None:
    assert not checkpoint_fault(checkpoint(tmp_path / "a"))
    assert not checkpoint_fault(checkpoint(tmp_path / "b", "model.safetensors"))
    assert not checkpoint_fault(sharded(tmp_path / "c"))
    assert not checkpoint_fault(divided(tmp_path / "d"))
    (tmp_path / "a" / "rng_state.pth").rename(tmp_path / "a" / "rng_state_0.pth")  # of several processes
    assert not checkpoint_fault(tmp_path / "a")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((checkpoint, name) for name in (
            "adapter_model.safetensors", "adapter_config.json", "trainer_state.json", "optimizer.pt", "scheduler.pt",
            "rng_state.pth",
        )),
        (sharded, "model.safetensors.index.json"), (sharded, "model-00001-of-00001.safetensors"),
        (divided, "trainer_state.json"),
    ],
)  # fmt: skip
def test_missing_and_cut_files_are_named(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    file = make(tmp_path / "a") / name
    data = file.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 0):
        file.write_bytes(data[:size])
        assert checkpoint_fault(file.parent) == f"{name} is cut short", size
    file.unlink()
    is_weights = name in ("adapter_model.safetensors", "model.safetensors.index.json")
    assert checkpoint_fault(file.parent) == ("its weights are missing" if is_weights else f"{name} is missing")


def test_a_run_that_saves_the_model_alone_needs_no_optimizer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).unlink()
    assert checkpoint_fault(folder) == "rng_state.pth is missing" and not checkpoint_fault(folder, only_model=True)


def test_last_is_the_newest_complete_checkpoint_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (5, 10):
        checkpoint(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-new").mkdir()
    assert find_checkpoint(tmp_path, "last") == str(tmp_path / "checkpoint-10") and not caplog.text
    (tmp_path / "checkpoint-15").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    assert find_checkpoint(tmp_path, "last") == str(tmp_path / "checkpoint-5")
    assert f"Resuming from {tmp_path}/checkpoint-5, the newest complete checkpoint. " in caplog.text
    assert "checkpoint-15 is not complete: its weights are missing." in caplog.text
    assert "checkpoint-10 is not complete: trainer_state.json is missing." in caplog.text
    with pytest.raises(ValueError, match=r"checkpoint-10 is not complete, trainer_state\.json is missing"):
        find_checkpoint(tmp_path, str(tmp_path / "checkpoint-10"))
    (tmp_path / "checkpoint-5" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"no complete checkpoint in .* checkpoint-5 is not complete: opt"):
        find_checkpoint(tmp_path, "last")


def test_recipes_and_vlms_resume_from_it(tmp_path: Path) -> None:
    checkpoint(tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-15").mkdir()
    options = ["--dataset", "x", "--output_dir", str(tmp_path), "--resume_from_checkpoint", "last"]
    found = parse_recipe(ClassificationTask, "", options)[2].resume_from_checkpoint
    size = ["--per_device_train_batch_size", "1", "--batch_size", "1"]
    also = parse_vlm("", ["--text", "x", *options, *size])[2].resume_from_checkpoint
    assert found == also == str(tmp_path / "checkpoint-5")
