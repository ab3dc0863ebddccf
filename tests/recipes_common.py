# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the recipes share: generated data in the usual layouts, and what a run leaves behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_shapes import NAMES, draw_shapes
from PIL import Image
from safetensors.torch import load_file

from eupe_hf.training import RecipeTrainer


# The largest difference of weights of a resumed run and an unbroken one: they are the same computation.
RESUME_TOLERANCE = 1e-6
COLOURS = {"red": (190, 60, 60), "blue": (60, 60, 190)}
IDS = {"square": 3, "disc": 7, "triangle": 20}  # with gaps, as COCO's

Run = Callable[..., tuple[Path, str]]


# ---- data ----


def draw_classes(folder: Path, count: int, noise: np.random.Generator) -> None:
    """So many red and so many blue images, in a folder each."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(colour) + noise.integers(-50, 50, (40, 48, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def draw_maps(folder: Path, count: int, noise: np.random.Generator) -> None:
    """Images of a red box on blue ground, with masks."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        mask, (left, top) = np.zeros((48, 64), dtype=np.uint8), noise.integers(0, 24, 2)
        mask[top : top + 24, left : left + 32] = 1
        pixels = np.where(mask[..., None] == 1, COLOURS["red"], COLOURS["blue"])
        pixels = pixels + noise.integers(-50, 50, (48, 64, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")


def draw_rooms(folder: Path, count: int, seed: int, unit: float = 1000, kind: str = "png") -> None:
    """Images of a near box, bright, before a far wall, dark, with depth maps that know nothing in their first rows."""
    noise = np.random.default_rng(seed)
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        depth, (left, top) = np.full((48, 64), 5.0), noise.integers(4, 24, 2)
        depth[top : top + 24, left : left + 32] = 1.5
        pixels = np.where(depth == 5, 60, 190)[..., None] + noise.integers(-40, 40, (48, 64, 3))
        depth[:4] = 0
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        if kind == "png":
            Image.fromarray((unit * depth).astype(np.uint16)).save(folder / "depth" / f"{i}.png")
        else:
            np.save(folder / "depth" / f"{i}.npy", (unit * depth).astype(">f4"))


def coco_of_shapes(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Save images of shapes, and one without objects; gives COCO's JSON, with a group that has no boxes itself."""
    folder.mkdir(parents=True)
    images, labels = draw_shapes(count, 64, seed, smallest=0.3)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": 0, "name": "shapes", "supercategory": "none"}]
    content["categories"] += [{"id": i, "name": name, "supercategory": "shapes"} for name, i in IDS.items()]
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = (image * 50 + 128).clamp(0, 255).permute(1, 2, 0).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
        content["images"].append({"id": 100 + i, "file_name": f"{i}.png", "width": 64, "height": 64})
        for kind, (x, y, width, height) in zip(label["class_labels"], (64 * label["boxes"]).tolist(), strict=True):
            box = [x - width / 2, y - height / 2, width, height]
            content["annotations"].append({"image_id": 100 + i, "bbox": box, "category_id": IDS[NAMES[int(kind)]]})
    Image.new("RGB", (64, 48), (128, 128, 128)).save(folder / "empty.png")
    content["images"].append({"id": 99, "file_name": "empty.png"})
    return content


# ---- runs ----


def keep_evaluated(monkeypatch: pytest.MonkeyPatch, trainer: type[RecipeTrainer] = RecipeTrainer) -> list[Any]:
    """The outputs of the model in the last evaluation of a run, batch by batch, are put there."""
    outputs: list[Any] = []
    evaluate, loss = trainer.evaluate, trainer.compute_loss

    def evaluate_again(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        outputs.clear()
        return evaluate(self, *args, **kwargs)

    def loss_and_keep(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        result = loss(self, *args, **kwargs)
        if kwargs.get("return_outputs"):
            outputs.append(result[1])
        return result

    monkeypatch.setattr(trainer, "evaluate", evaluate_again)
    monkeypatch.setattr(trainer, "compute_loss", loss_and_keep)
    return outputs


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]


def assert_falls(folder: Path, factor: float) -> None:
    found = losses(folder)
    assert np.mean(found[-3:]) < factor * np.mean(found[:3]), found


def interrupt_and_resume(
    run: Run, monkeypatch: pytest.MonkeyPatch, task: str, family: str, kill_at: int = 5, *more: Any
) -> None:
    """Compare an unbroken run of six steps with one that is killed in this batch and resumed.

    With 0 it is killed while it saves its second checkpoint, which leaves part of it.
    """
    options = (
        "--max_steps", 6, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 5,
        "--eval_strategy", "steps", "--eval_steps", 6, "--load_best_model_at_end", False, "--dropout", 0.2,
        "--per_device_train_batch_size", 4, *more,
    )  # fmt: skip
    whole, _ = run(task, "whole", *options, family=family)
    step, calls, saved = RecipeTrainer.training_step, [], RecipeTrainer._save_optimizer_and_scheduler

    def killed_saving(self: RecipeTrainer, folder: str) -> None:
        if folder.endswith("checkpoint-4"):
            raise KeyboardInterrupt
        saved(self, folder)

    def killed(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecipeTrainer, "training_step", killed)
        if not kill_at:
            patch.setattr(RecipeTrainer, "_save_optimizer_and_scheduler", killed_saving)
        run(task, "broken", *options, family=family)
    broken, _ = run(task, "broken", *options, "--resume_from_checkpoint", "last", family=family)
    assert losses(broken) == pytest.approx(losses(whole), abs=RESUME_TOLERANCE) and len(losses(whole)) == 6
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, broken))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=RESUME_TOLERANCE, msg=name)
    start = load_file(broken / "checkpoint-2" / "adapter_model.safetensors")
    assert any((start[name] - tensor).abs().max() > 1e-4 for name, tensor in expected.items())  # it did go on
