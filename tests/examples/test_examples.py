# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The example scripts on tiny models: what they print and save, and what they say about bad input."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Finished, run_script, tiny_config
from PIL import Image
from transformers import AutoModel, pipeline

from eupe_hf import EupeForMultiTask, EupeForSegmentation, EupeModel


EXAMPLES = ROOT / "examples"
PHOTO = EXAMPLES / "images" / "coffee.jpg"


def run(script: str, *arguments: str | Path, folder: Path) -> Finished:
    """Run an example in a folder, offline."""
    return run_script(EXAMPLES / script, *arguments, folder=folder)


def refused(result: Finished, words: str) -> bool:
    """Whether a script ended with one sentence on stderr."""
    return result.returncode == 1 and words in result.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, a task model and a multi-task model on it."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    encoder = EupeModel(tiny_config("vit", layerscale_value=0.5))
    encoder.save_pretrained(folder / "encoder")
    heads = {
        "scene": {"task": "classification", "id2label": {0: "kitchen", 1: "garden"}},
        "far": {"task": "depth"},
        "parts": {"task": "segmentation", "id2label": {0: "cup", 1: "table"}},
    }
    model = EupeForMultiTask.from_pretrained(folder / "encoder", heads=heads)
    model.save_pretrained(folder / "multi")
    model.task_model("parts").save_pretrained(folder / "parts")
    model.task_model("far").save_pretrained(folder / "far")
    return folder


def caption_is_drawn(file: Path) -> bool:
    """Whether there is dark text in the last rows of a picture."""
    return np.asarray(Image.open(file).convert("L"))[-24:].min() < 100


def test_predict_draws_each_head(models: Path, tmp_path: Path) -> None:
    result = run("predict.py", "--model", models / "parts", "--image", PHOTO, "--output", "one", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "RANDOM" not in result.stdout
    picture = Image.open(tmp_path / "one" / "coffee.png")
    width, height = Image.open(PHOTO).size
    assert picture.width == 2 * width + 8 and picture.height > height + 28  # legend and caption below
    (tmp_path / "grey16.png").write_bytes(b"")
    Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)).save(tmp_path / "grey16.png")
    result = run("predict.py", "--model", models / "multi", "--image", "grey16.png", PHOTO, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    names = {f"{image}-{head}.png" for image in ("grey16", "coffee") for head in ("scene", "far", "parts")}
    assert {file.name for file in (tmp_path / "predictions").iterdir()} == names
    assert all(caption_is_drawn(tmp_path / "predictions" / name) for name in names)


def test_predict_says_when_the_head_is_random(models: Path, tmp_path: Path) -> None:
    result = run("predict.py", "--model", models / "encoder", "--task", "depth", "--image", PHOTO, folder=tmp_path)
    assert result.returncode == 0 and "RANDOM weights" in result.stdout
    assert caption_is_drawn(tmp_path / "predictions" / "coffee.png")
    assert refused(run("predict.py", "--model", models / "encoder", folder=tmp_path), "choose a head to put on it")
    assert refused(run("predict.py", "--model", tmp_path / "nothing", folder=tmp_path), "There is no model at")
    assert refused(run("predict.py", "--model", models / "far", "--image", "no.jpg", folder=tmp_path), "no.jpg")


def test_linear_probe_learns_digits_and_class_folders(models: Path, tmp_path: Path) -> None:
    small = ("--size", "64", "--patch-mean", "--limit", "400")
    result = run("linear_probe.py", "--model", models / "encoder", *small, "--output", "digits", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.split("accuracy ")[1].split()[0])
    assert accuracy > 0.4, result.stdout  # 0.60 when measured: 320 digits, random features of width 32
    for name, level in (("bright", 200), ("dark", 60)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i).integers(level - 40, level + 40, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    result = run(
        "linear_probe.py", "--model", models / "encoder", "--dataset", "photos", "--size", "64", "--output", "lamps",
        folder=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0 and "4 held-out images, 2 classes: accuracy 1.000" in result.stdout, result.stderr
    classify = pipeline("image-classification", model=str(tmp_path / "lamps"))
    assert classify(Image.new("RGB", (32, 32), (230,) * 3))[0]["label"] == "bright"
    assert classify(Image.new("RGB", (32, 32), (20,) * 3))[0]["label"] == "dark"
    assert json.loads((tmp_path / "lamps" / "preprocessor_config.json").read_text())["size"]["height"] == 64
    result = run("linear_probe.py", "--model", models / "encoder", "--dataset", "photos", "--label-column", "kind",
                 folder=tmp_path)  # fmt: skip
    assert refused(result, "has no column 'kind' for the label; it has image, label.")
    (tmp_path / "photos" / "dark" / "cut.png").write_bytes((tmp_path / "photos" / "dark" / "0.png").read_bytes()[:500])
    result = run("linear_probe.py", "--model", models / "encoder", "--dataset", "photos", folder=tmp_path)
    assert refused(result, "cut.png) cannot be read")


def test_multitask_inference_joins_times_and_saves(models: Path, tmp_path: Path) -> None:
    few = ("--runs", "1", "--size", "128", "--image", PHOTO)
    join = ("--join", f"far={models / 'far'}", f"parts={models / 'parts'}", "--save", "joined")
    result = run("multitask_inference.py", *join, *few, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "all in one pass" in result.stdout and "RANDOM" not in result.stdout
    assert list(AutoModel.from_pretrained(tmp_path / "joined").heads) == ["far", "parts"]
    assert Image.open(tmp_path / "multitask.png").width == 3 * Image.open(PHOTO).width + 2 * 8
    result = run("multitask_inference.py", "--model", models / "encoder", *few, folder=tmp_path)
    assert result.returncode == 0 and "RANDOM weights" in result.stdout
    result = run("multitask_inference.py", "--model", models / "multi", "--tasks", "near", *few, folder=tmp_path)
    assert refused(result, "There is no head near; the model has far, parts, scene.")
    EupeForSegmentation(tiny_config("vit")).save_pretrained(tmp_path / "other")
    result = run("multitask_inference.py", "--join", f"far={models / 'far'}", "parts=other", *few, folder=tmp_path)
    assert refused(result, "do not share an encoder")


def test_every_recipe_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    recipes = sorted(EXAMPLES.glob("finetune_lora_*.py"))
    tasks = ["classification", "depth", "detection", "multitask", "segmentation"]
    assert [path.stem.removeprefix("finetune_lora_") for path in recipes] == tasks
    for path in recipes:
        assert len(path.read_text().splitlines()) < 200
        script = runpy.run_path(str(path))
        with pytest.raises(SystemExit) as exit_:
            script["main"](["--help"])
        shown = capsys.readouterr().out
        assert exit_.value.code == 0 and script["__doc__"].splitlines()[0] in shown
        data = {f"--{task}" for task in tasks if task != "multitask"} if "multitask" in path.stem else {"--dataset"}
        assert data | {"--model", "--mode", "--rank", "--merge", "--layer_decay", "--max_steps"} <= set(
            shown.replace(",", " ").split()
        )
