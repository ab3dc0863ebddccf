# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""examples/evaluate.py as a user runs it: each protocol on a generated data set, and every kind of bad input."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import ROOT, Finished, run_script, tiny_config
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from eupe_hf import EupeForDepthEstimation, EupeForSegmentation, EupeImageProcessorPil, EupeModel
from eupe_hf import evaluation as ev
from eupe_hf.data.loading import load_split


Run = Callable[..., Finished]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the script as its own main program, but in this process and offline."""
    return lambda *arguments: run_script(ROOT / "examples" / "evaluate.py", *arguments, folder=tmp_path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with an encoder, a segmentation and a depth model."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    EupeModel(tiny_config("vit", layerscale_value=0.5)).save_pretrained(folder / "encoder")
    EupeForSegmentation(tiny_config("vit", num_labels=3)).save_pretrained(folder / "segmentation")
    EupeForDepthEstimation(tiny_config("convnext")).save_pretrained(folder / "depth")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of red and blue pictures, 12 to train on and 6 to validate."""
    folder = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 6), ("validation", 3)):
        for colour in ("red", "blue"):
            (folder / split / colour).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 50), colour).save(folder / split / colour / f"{i}.png")
    return folder


def write(folder: Path, rows: dict[str, list], images: tuple[str, ...]) -> Path:
    """A data set with one split, validation, as `save_to_disk` leaves it."""
    data = datasets.Dataset.from_dict(rows)
    for column in images:
        data = data.cast_column(column, datasets.Image())
    datasets.DatasetDict({"validation": data}).save_to_disk(folder)
    return folder


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def check(finished: Finished, path: Path) -> dict:
    """A run that went well, and the JSON that it wrote."""
    assert finished.returncode == 0, finished.stderr
    saved = json.loads(path.read_text())
    for name, value in saved["metrics"].items():
        assert re.search(rf"^{re.escape(name)} +{value:.4f}$", finished.stdout, re.MULTILINE)
    _, results = model_index_to_eval_results(saved["model-index"])
    assert {entry.metric_type: entry.metric_value for entry in results} == saved["metrics"]
    assert results[0].metric_args["num_examples"] == saved["num_examples"]
    assert "%|" in finished.stderr  # a progress bar
    return saved


def told(finished: Finished) -> str:
    """What an unsuccessful run says, after checking that it is one line."""
    progress = re.compile(r"%\||examples/s")
    lines = [line for line in finished.stderr.splitlines() if line.strip() and not progress.search(line)]
    lines = [line for line in lines if not line.startswith(("usage:", "     "))]
    assert finished.returncode == 2 and finished.stdout == "" and len(lines) == 1, finished.stderr
    return lines[0]


def test_knn_on_an_image_folder(run: Run, models: Path, pictures: Path, tmp_path: Path) -> None:
    options = ("--protocol", "knn", "--model", models / "encoder", "--dataset", pictures, "--k", "1", "3")
    output = ("--size", "32", "--batch_size", "4", "--device", "cpu", "--output", tmp_path / "knn.json")
    saved = check(run(*options, *output), tmp_path / "knn.json")
    assert saved["metrics"] == {"accuracy@1": 1.0, "accuracy@3": 1.0}  # red and blue are told apart without training
    assert saved["settings"] == {"size": 32, "k": [1, 3], "train_split": "train"} and saved["num_examples"] == 6
    saved = check(run(*options, *output, "--limit", "4", "--workers", "1"), tmp_path / "knn.json")
    assert saved["num_examples"] == saved["settings"]["limit"] == 4
    # evenly spaced: the pictures are sorted by class
    assert load_split(str(pictures), "validation", {"label": "label"}, limit=2)["label"][:] == [0, 1]
    assert "'train' has 12 images: choose a --k up to that" in told(run(*options[:-2], "1", "13"))


def test_segmentation_on_a_saved_data_set(run: Run, models: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = [noise(90, 60), noise(50, 70)]
    maps = [np.random.RandomState(i).randint(0, 4, (image.height, image.width)).astype(np.uint8)
            for i, image in enumerate(images)]  # fmt: skip
    rows = {"picture": images, "annotation": [Image.fromarray(labels) for labels in maps]}
    folder = write(tmp_path / "data", rows, ("picture", "annotation"))
    options = ("--protocol", "segmentation", "--model", models / "segmentation", "--dataset", folder, "--size", "64")
    output = ("--image-column", "picture", "--reduce-labels", "--output", tmp_path / "out.json")
    saved = check(run(*options, *output), tmp_path / "out.json")
    model, processor = EupeForSegmentation.from_pretrained(models / "segmentation").eval(), EupeImageProcessorPil()
    metrics = ev.SegmentationMetrics(3, reduce_labels=True)
    for image, labels in zip(images, maps, strict=True):
        metrics.update(ev.predict_label_map(model, processor, image, 64), torch.from_numpy(labels))
    assert saved["metrics"] == metrics.compute()
    assert saved["settings"] == {"size": 64, "reduce_labels": True, "whole_image": False}
    check(run(*options, *output, "--whole-image"), tmp_path / "out.json")
    # labels 1 to 3 of three classes, without the rule
    assert "Row 0: labels go from 0 to 3" in told(run(*options, "--image-column", "picture"))
    message = told(run(*options))
    assert "no column 'image' for the image; it has picture, annotation" in message


def test_depth_in_millimetres_from_parquet(run: Run, models: Path, tmp_path: Path) -> None:
    images = [noise(60, 40), noise(60, 40), noise(64, 64)]
    maps = [np.random.RandomState(i).randint(500, 9000, (image.height, image.width)).astype(np.uint16)
            for i, image in enumerate(images)]  # fmt: skip
    rows = {"image": images, "depth_map": [Image.fromarray(depth) for depth in maps]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data = data.cast_column("depth_map", datasets.Image())
    (tmp_path / "data").mkdir()
    data.to_parquet(tmp_path / "data" / "validation.parquet")
    options = ("--protocol", "depth", "--model", models / "depth", "--dataset", tmp_path / "data")
    finished = run(*options, "--depth-scale", "1000", "--output", tmp_path / "out.json")
    saved = check(finished, tmp_path / "out.json")
    model, processor = EupeForDepthEstimation.from_pretrained(models / "depth").eval(), EupeImageProcessorPil()
    metrics = ev.DepthMetrics()
    for image, depth in zip(images, maps, strict=True):
        metrics.update(ev.predict_depth(model, processor, image), torch.from_numpy(depth).float() / 1000)
    assert saved["metrics"] == pytest.approx(metrics.compute())
    assert "check the unit" in told(run(*options))  # five hundred metres and more
    assert "Row 0: The Eigen crop needs 480 x 640 pixels" in told(run(*options, "--eigen-crop"))
    assert "--size is not an option of --protocol depth" in told(run(*options, "--size", "64"))


def test_correspondence_between_a_picture_and_itself(run: Run, models: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = noise(6, 8).resize((60, 80))
    rows = {
        "source_image": [image, image],
        "source_points": [[[20.0, 30.0], [40.0, 60.0]], [[30.0, 30.0], [None, None]]],
        "target_image": [image, image],
        "target_points": [[[20.0, 30.0], [0.0, 0.0]], [[30.0, 30.0], [5.0, 5.0]]],
        "box": [[0.0, 0.0, 50.0, 20.0], [0.0, 0.0, 50.0, 60.0]],
    }
    folder = write(tmp_path / "data", rows, ("source_image", "target_image"))
    options = ("--protocol", "correspondence", "--model", models / "encoder", "--dataset", folder, "--size", "64")
    finished = run(*options, "--target-box-column", "box", "--output", tmp_path / "out.json")
    saved = check(finished, tmp_path / "out.json")
    assert saved["metrics"] == pytest.approx({"pck@0.1": 0.75, "pck@0.1_per_point": 2 / 3})
    rows["target_points"][1] = [[30.0, 30.0]]
    folder = write(tmp_path / "uneven", rows, ("source_image", "target_image"))
    message = told(run(*options[:5], folder, "--target-box-column", "box"))
    assert "Row 1: the two images must have the same number of points" in message


def test_bad_input_gets_a_one_line_message(run: Run, models: Path, pictures: Path, tmp_path: Path) -> None:
    def knn(model: Path | str, dataset: Path | str, *more: str | Path) -> str:
        return told(run("--protocol", "knn", "--model", model, "--dataset", dataset, *more))

    encoder = models / "encoder"
    assert "nobody/nothing" in knn(encoder, "nobody/nothing")
    assert "cannot be loaded: Unknown split" in knn(encoder, pictures, "--split", "test")
    assert "no column 'class' for the label; it has image, label" in knn(encoder, pictures, "--label-column", "class")
    assert "eupe-x" in knn("eupe-x", pictures)
    assert "--limit must be above 0, got -1" in knn(encoder, pictures, "--limit", "-1")
    assert "must be a file in a folder that exists" in knn(encoder, pictures, "--output", tmp_path)
    assert "The device 'abacus' is not available" in knn(encoder, pictures, "--device", "abacus")
    for kind, name in (("encoder", "EupeModel"), ("depth", "EupeForDepthEstimation")):
        options = ("--protocol", "segmentation", "--label-column", "label", "--dataset", pictures)
        message = told(run(*options, "--model", models / kind))
        assert f"is an {name} and has no head for segmentation: train an EupeForSegmentation" in message
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert "is a model of type 'vit', not an EUPE model" in knn(other, pictures)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_unreadable_image_is_named(run: Run, models: Path, tmp_path: Path, workers: str) -> None:
    for split in ("train", "validation"):
        for i in range(3):
            path = tmp_path / "pictures" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise(32, 32).save(path)
    path.write_bytes(path.read_bytes()[:600])  # the last one: class0/2.png of validation
    options = ("--model", models / "encoder", "--dataset", tmp_path / "pictures", "--k", "1", "--workers", workers)
    message = told(run("--protocol", "knn", *options, "--size", "32"))
    assert re.search(r"evaluate.py: Row 1, 'image' \(.*class0/2\.png\) cannot be read: ", message), message
