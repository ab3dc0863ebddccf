# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The recipes for depth and detection as a user runs them: on generated data, with a tiny encoder, on the CPU."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from modeling_common import tiny_config
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, pipeline

from eupe_hf import EupeForDepthEstimation, EupeImageProcessorPil, EupeModel
from eupe_hf.augmentation import Augmentation
from eupe_hf.training import RecipeTrainer
from eupe_hf.training_depth import BatchDepthMetrics, DepthDataArguments, DepthRows, load_depth


ROOT = Path(__file__).parents[1]
# The largest difference of weights of a resumed run and an unbroken one: they are the same computation.
RESUME_TOLERANCE = 1e-6

Run = Callable[..., tuple[Path, str]]


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


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny encoders of both families, and images with depth in millimetres."""
    folder = tmp_path_factory.mktemp("material")
    for family in ("vit", "convnext"):
        torch.manual_seed(0)
        EupeModel(tiny_config(family, layerscale_value=0.5)).save_pretrained(folder / family)
    for seed, (split, count) in enumerate((("train", 12), ("validation", 4))):
        draw_rooms(folder / "rooms" / split, count, seed)
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def run(tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a recipe in this process; gives its output folder and what it printed."""

    def run_here(task: str, output: str, *options: Any, family: str = "vit") -> tuple[Path, str]:
        main = runpy.run_path(str(ROOT / "examples" / f"finetune_lora_{task}.py"))["main"]
        folder = tmp_path / output
        usual = {
            "--dataset": material / {"depth": "rooms", "detection": "shapes"}[task], "--encoder": material / family,
            "--output_dir": folder, "--size": 64, "--per_device_train_batch_size": 6, "--dataloader_num_workers": 0,
            "--logging_steps": 1, "--disable_tqdm": True, "--use_cpu": True,
        }  # fmt: skip
        if task == "depth":
            usual |= {"--depth_scale": 1000, "--max_depth": 8}
        capsys.readouterr()
        main([str(part) for option in usual.items() for part in option] + [str(option) for option in options])
        return folder, capsys.readouterr().out

    return run_here


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of the model in the last evaluation of a run, batch by batch."""
    outputs: list[Any] = []
    evaluate, step = RecipeTrainer.evaluate, RecipeTrainer.prediction_step

    def evaluate_anew(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        outputs.clear()
        return evaluate(self, *args, **kwargs)

    def step_and_keep(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        result = step(self, *args, **kwargs)
        outputs.append(result[1])
        return result

    monkeypatch.setattr(RecipeTrainer, "evaluate", evaluate_anew)
    monkeypatch.setattr(RecipeTrainer, "prediction_step", step_and_keep)
    return outputs


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def scores(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["metrics"]


def assert_falls(folder: Path, factor: float) -> None:
    found = losses(folder)
    assert np.mean(found[-3:]) < factor * np.mean(found[:3]), found


def refused(run: Run, capsys: pytest.CaptureFixture[str], task: str, *options: Any) -> str:
    """The sentence with which a recipe ends."""
    with pytest.raises(SystemExit) as exit_:
        run(task, "none", *options)
    assert exit_.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# ---- depth ----


@torch.no_grad()
def reloaded_depth(model: torch.nn.Module, material: Path, folder: Path) -> torch.Tensor:
    """Depth of the evaluation images, in the Trainer's batches."""
    data = load_depth(DepthDataArguments(str(material / "rooms"), depth_scale=1000), seed=0)
    rows = DepthRows(data.evaluation, AutoImageProcessor.from_pretrained(folder), "mask", depth_scale=1000)
    return model.eval()(torch.stack([row["pixel_values"] for row in rows])).predicted_depth


def test_depth_learns_and_reloads_exactly(run: Run, material: Path, evaluated: list[Any]) -> None:
    folder, printed = run("depth", "adapter", "--layers", 0, 1, 2, 3, "--num_train_epochs", 15, "--learning_rate",
                          "5e-3", "--head_learning_rate", "2e-2", family="convnext")  # fmt: skip
    assert_falls(folder, 0.6)
    assert "12 images to train on, 4 to evaluate on." in printed and "rmse" in printed
    assert scores(folder)["rmse"] < 1.2 and scores(folder)["delta1"] > 0.6, scores(folder)
    settings = json.loads((folder / "results.json").read_text())["settings"]
    assert (settings["depth_scale"], settings["max_depth"], settings["size"]) == (1000, 8, 64)
    assert {"adapter_model.safetensors", "curve.png", "README.md"} <= {file.name for file in folder.iterdir()}
    model = AutoModelForDepthEstimation.from_pretrained(folder)
    assert isinstance(model, EupeForDepthEstimation) and model.config.max_depth == 8
    assert torch.equal(reloaded_depth(model, material, folder), torch.cat(evaluated))
    depth = pipeline("depth-estimation", model=str(folder))(Image.new("RGB", (50, 40), (190, 190, 190)))
    assert depth["predicted_depth"].shape == (40, 50)


def test_best_depth_model_is_that_of_the_least_error(run: Run) -> None:
    folder, _ = run("depth", "adapter", "--num_train_epochs", 3, "--learning_rate", "5e-3")
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_metric"] == min(
        entry["eval_rmse"] for entry in state["log_history"][:-1] if "eval_rmse" in entry
    )


def test_merged_depth_model_is_an_ordinary_one(run: Run, material: Path, evaluated: list[Any]) -> None:
    folder, _ = run("depth", "merged", "--merge", "--max_steps", 4)
    assert (folder / "model.safetensors").is_file() and not (folder / "adapter_config.json").exists()
    model = EupeForDepthEstimation.from_pretrained(folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert torch.equal(reloaded_depth(model, material, folder), torch.cat(evaluated))


def interrupt_and_resume(run: Run, monkeypatch: pytest.MonkeyPatch, task: str, family: str) -> None:
    options = (
        "--max_steps", 6, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 5,
        "--eval_strategy", "steps", "--eval_steps", 6, "--load_best_model_at_end", False, "--dropout", 0.2,
        "--per_device_train_batch_size", 4,
    )  # fmt: skip
    whole, _ = run(task, "whole", *options, family=family)
    step, calls = RecipeTrainer.training_step, []

    def killed(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # in the second epoch
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecipeTrainer, "training_step", killed)
        run(task, "broken", *options, family=family)
    broken, _ = run(task, "broken", *options, "--resume_from_checkpoint", "last", family=family)
    assert losses(broken) == pytest.approx(losses(whole), abs=RESUME_TOLERANCE) and len(losses(whole)) == 6
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, broken))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=RESUME_TOLERANCE, msg=name)
    start = load_file(broken / "checkpoint-2" / "adapter_model.safetensors")
    assert any((start[name] - tensor).abs().max() > 1e-4 for name, tensor in expected.items())  # it did go on


def test_resumed_depth_run_ends_where_an_unbroken_one_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_and_resume(run, monkeypatch, "depth", "vit")


def test_depth_rows_keep_the_scale_and_the_metres(tmp_path: Path) -> None:
    draw_rooms(tmp_path / "metres", 4, seed=0, unit=1, kind="npy")
    data = load_depth(DepthDataArguments(str(tmp_path / "metres"), held_out=0.25), seed=0)
    assert (len(data.train), len(data.evaluation), data.names) == (3, 1, [])
    processor = EupeImageProcessorPil(size={"height": 64, "width": 64})
    whole = DepthRows(data.train, processor, "mask")[0]
    assert whole["labels"].shape == (64, 64) and whole["labels"].unique().tolist() == [0.0, 1.5, 5.0]
    width = (whole["labels"] == 1.5).sum(dim=1).max()
    assert width == 32 * 64 // 64
    crop = DepthDataArguments("", size=64, crop=0.75).crop_size(16)
    rows = DepthRows(data.train, processor, "mask", Augmentation(crop, (64 / crop,) * 2, "window", colour=0.0))
    for epoch in range(8):
        rows.set_epoch(epoch)
        part = rows[0]
        assert part["pixel_values"].shape == (3, 48, 48) and part["labels"].shape == (48, 48)
        assert set(part["labels"].unique().tolist()) <= {0.0, 1.5, 5.0}
        assert (part["labels"] == 1.5).sum(dim=1).max() <= width  # never larger than in the whole image
        near = (
            part["pixel_values"][:, part["labels"] == 1.5].mean() - part["pixel_values"][:, part["labels"] == 5].mean()
        )
        assert near > 1  # bright where it is near: image and map moved together


def test_batches_of_depth_are_counted_image_by_image() -> None:
    found, true = torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[[2.0]], [[3.0]]])
    metrics = BatchDepthMetrics()
    metrics.update(found, true)
    assert metrics.compute()["rmse"] == pytest.approx(0.5) and metrics.num_images == 2


def damaged_rooms(root: Path, damage: str) -> DepthDataArguments:
    draw_rooms(root, 4, seed=0)
    options = {"depth_scale": 1000.0}
    if damage == "size":
        Image.fromarray(np.ones((48, 48), dtype=np.uint16)).save(root / "depth" / "2.png")
    elif damage == "colour":
        Image.new("RGB", (64, 48)).save(root / "depth" / "2.png")
    elif damage == "unit":
        options = {"depth_scale": 1.0}
    elif damage == "alone":
        (root / "depth" / "2.png").unlink()
    elif damage == "unreadable":
        (root / "depth" / "2.png").unlink()
        (root / "depth" / "2.npy").write_bytes(b"no array")
    elif damage == "unknown":
        Image.fromarray(np.zeros((48, 64), dtype=np.uint16)).save(root / "depth" / "2.png")
    return DepthDataArguments(str(root), held_out=0.5, strict=True, **options)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("size", r"2\.png: the depth map is 48 x 48 pixels and its image 64 x 48: they must have one size"),
        ("colour", r"2\.png: a depth map has one number per pixel, .*got \(48, 64, 3\)"),
        ("unit", r"None of the 2 depth maps of the training part has a depth above 0.001 and up to 10 metres: their "
         r"values go from 0 to 5000, which --depth_scale 1 divides. Give .* 1000 for millimetres"),
        ("alone", r"'2' is missing in depth"),
        ("unreadable", r"1 of 2 rows cannot be read.*2\.npy\) cannot be read"),
        ("unknown", r"1 of 2 maps of the .* part hold no known depth, .*2\.png first"),
    ],
)  # fmt: skip
def test_depth_data_is_refused(tmp_path: Path, damage: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_depth(damaged_rooms(tmp_path / "rooms", damage), seed=0)


@pytest.mark.parametrize("damage", ["unreadable", "unknown"])
def test_damaged_depth_maps_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    arguments = damaged_rooms(tmp_path / "rooms", damage)
    arguments.strict = False
    data = load_depth(arguments, seed=0)
    assert len(data.train) + len(data.evaluation) == (3 if damage == "unreadable" else 4)
    assert ("Skipped 1 of 2 rows" if damage == "unreadable" else "hold no known depth") in caplog.text


def test_metres_taken_for_millimetres_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw_rooms(tmp_path / "metres", 4, seed=0, unit=1, kind="npy")
    load_depth(DepthDataArguments(str(tmp_path / "metres"), held_out=0.5, depth_scale=1000), seed=0)
    assert "No depth of the training part is above 0.005 metres" in caplog.text


def test_wrong_depth_options_end_with_one_sentence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "their values go from 0 to 5000" in refused(run, capsys, "depth", "--depth_scale", 1)
    assert "--depth_scale must be above 0, got 0" in refused(run, capsys, "depth", "--depth_scale", 0)
    assert "--min_depth must be from 0 and below" in refused(run, capsys, "depth", "--min_depth", 9)
    assert "--crop must be above 0" in refused(run, capsys, "depth", "--crop", 2)
