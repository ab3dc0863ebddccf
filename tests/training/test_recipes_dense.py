# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The recipes for depth and detection as a user runs them: on generated data, with a tiny encoder, on the CPU."""

import json
import math
import runpy
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import ROOT
from drawn_shapes import draw_shapes
from modeling_common import tiny_config
from PIL import Image
from recipes_common import (
    IDS,
    Run,
    assert_falls,
    coco_of_shapes,
    draw_rooms,
    interrupt_and_resume,
    keep_evaluated,
    scores,
)
from transformers import AutoImageProcessor, AutoModelForDepthEstimation, AutoModelForObjectDetection, pipeline

from eupe_hf import EupeForDepthEstimation, EupeForObjectDetection, EupeImageProcessorPil, EupeModel
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.tasks.depth import BatchDepthMetrics, DepthDataArguments, DepthRows, load_depth
from eupe_hf.training.tasks.detection import (
    DetectionDataArguments,
    DetectionMetrics,
    DetectionRows,
    load_detection,
    read_objects,
)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny encoders of both families, and images with depth in millimetres."""
    folder = tmp_path_factory.mktemp("material")
    for family in ("vit", "convnext"):
        torch.manual_seed(0)
        EupeModel(tiny_config(family, layerscale_value=0.5)).save_pretrained(folder / family)
    for seed, (split, count) in enumerate((("train", 12), ("validation", 4))):
        draw_rooms(folder / "rooms" / split, count, seed)
        content = coco_of_shapes(folder / "shapes" / split, 2 * count, seed)
        (folder / "shapes" / split / "_annotations.coco.json").write_text(json.dumps(content))
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
            "--dataset": material / {"depth": "rooms", "detection": "shapes"}[task], "--model": material / family,
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
    return keep_evaluated(monkeypatch)


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
    assert torch.equal(
        reloaded_depth(model, material, folder), torch.cat([output.predicted_depth for output in evaluated])
    )
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
    assert torch.equal(
        reloaded_depth(model, material, folder), torch.cat([output.predicted_depth for output in evaluated])
    )


@pytest.mark.slow
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


def test_depth_of_a_data_set_with_two_columns(tmp_path: Path) -> None:
    draw_rooms(tmp_path / "rooms", 3, seed=0)
    files = {name: [str(tmp_path / "rooms" / name / f"{i}.png") for i in range(3)] for name in ("images", "depth")}
    data = datasets.Dataset.from_dict({"image": files["images"], "depth_map": files["depth"]})
    data = data.cast_column("image", datasets.Image()).cast_column("depth_map", datasets.Image())
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    found = load_depth(DepthDataArguments(str(tmp_path / "data"), depth_scale=1000), seed=0)
    assert (len(found.train), len(found.evaluation), found.eval_split) == (3, 3, "validation")
    rows = DepthRows(found.train, EupeImageProcessorPil(size={"height": 96, "width": 32}), "mask", depth_scale=1000)
    assert rows[0]["labels"].shape == (96, 32) and rows[0]["labels"].unique().tolist() == [0.0, 1.5, 5.0]


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
def test_damaged_depth_maps_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    arguments = damaged_rooms(tmp_path / "rooms", damage)
    arguments.strict = False
    data = load_depth(arguments, seed=0)
    assert len(data.train) + len(data.evaluation) == (3 if damage == "unreadable" else 4)
    assert ("Skipped 1 of 2 rows" if damage == "unreadable" else "hold no known depth") in caplog.text


def test_metres_taken_for_millimetres_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw_rooms(tmp_path / "metres", 4, seed=0, unit=1, kind="npy")
    load_depth(DepthDataArguments(str(tmp_path / "metres"), held_out=0.5, depth_scale=1000), seed=0)
    assert "No depth of the training part is above 0.005 metres" in caplog.text


def test_wrong_depth_options_end_with_one_sentence(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert "their values go from 0 to 5000" in refused(run, capsys, "depth", "--depth_scale", 1)
    assert "--depth_scale must be above 0, got 0" in refused(run, capsys, "depth", "--depth_scale", 0)
    assert "--min_depth must be from 0 and below" in refused(run, capsys, "depth", "--min_depth", 9)
    assert "--crop must be above 0" in refused(run, capsys, "depth", "--crop", 2)


# ---- detection ----


@torch.no_grad()
def reloaded_objects(model: torch.nn.Module, material: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and boxes for the evaluation images, in the Trainer's batches of 8."""
    data = load_detection(DetectionDataArguments(str(material / "shapes")), seed=0)
    rows = DetectionRows(data.evaluation, AutoImageProcessor.from_pretrained(folder))
    outputs = [model.eval()(part) for part in torch.stack([row["pixel_values"] for row in rows]).split(8)]
    return torch.cat([output.logits for output in outputs]), torch.cat([output.pred_boxes for output in outputs])


def assert_reloads(model: torch.nn.Module, material: Path, folder: Path, evaluated: list[Any]) -> None:
    logits, boxes = reloaded_objects(model, material, folder)
    assert torch.equal(logits, torch.cat([output.logits for output in evaluated]))
    assert torch.equal(boxes, torch.cat([output.pred_boxes for output in evaluated]))


@pytest.mark.slow
def test_detection_learns_and_reloads_exactly(run: Run, material: Path, evaluated: list[Any]) -> None:
    folder, printed = run("detection", "adapter", "--num_train_epochs", 15, "--learning_rate", "3e-3",
                          "--head_learning_rate", "3e-3")  # fmt: skip
    assert_falls(folder, 0.7)
    assert "25 images to train on, 9 to evaluate on, 3 classes." in printed and "ap50" in printed
    assert scores(folder)["ap50"] > 0.15, scores(folder)
    assert {"adapter_model.safetensors", "curve.png", "README.md"} <= {file.name for file in folder.iterdir()}
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry.get("eval_ap", 0) for entry in state["log_history"])
    model = AutoModelForObjectDetection.from_pretrained(folder)
    assert isinstance(model, EupeForObjectDetection) and model.config.id2label == dict(enumerate(IDS))
    assert_reloads(model, material, folder, evaluated)
    found = pipeline("object-detection", model=str(folder))(Image.new("RGB", (50, 40)), threshold=0.0)
    assert {entry["label"] for entry in found} <= set(IDS) and found


@pytest.mark.parametrize("mode", ["lora", "probe", "full"])
def test_modes_of_detection_train_what_they_say(run: Run, material: Path, evaluated: list[Any], mode: str) -> None:
    folder, _ = run("detection", mode, "--mode", mode, "--max_steps", 3, *(["--merge"] if mode == "lora" else []))
    model = EupeForObjectDetection.from_pretrained(folder)
    assert not (folder / "adapter_config.json").exists()
    assert not any("lora" in name for name, _ in model.named_parameters())
    assert_reloads(model, material, folder, evaluated)
    start = EupeForObjectDetection.from_pretrained(material / "vit", num_labels=3)
    same = [torch.equal(a, b) for a, b in zip(model.eupe.parameters(), start.eupe.parameters(), strict=True)]
    assert all(same) if mode == "probe" else not all(same)


@pytest.mark.slow
def test_resumed_detection_run_ends_where_an_unbroken_one_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_and_resume(run, monkeypatch, "detection", "convnext")


def layout(root: Path, kind: str) -> Path:
    """The same images in one of the layouts of COCO's JSON."""
    if kind == "beside":
        (root / "annotations.json").parent.mkdir(parents=True)
        (root / "annotations.json").write_text(json.dumps(coco_of_shapes(root / "images", 8, 0)))
    for seed, (split, alias) in enumerate((("train", "train"), ("validation", "valid"))):
        if kind == "files":
            content = coco_of_shapes(root / "images" / split, 8 if split == "train" else 2, seed)
            (root / f"{split}.json").write_text(json.dumps(content))
        elif kind == "folders":
            content = coco_of_shapes(root / alias / "images", 8 if split == "train" else 2, seed)
            (root / alias / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("kind", ["beside", "files", "folders"])
def test_coco_layouts_give_the_same_rows(tmp_path: Path, kind: str) -> None:
    arguments = DetectionDataArguments(str(layout(tmp_path / "data", kind)), held_out=0.25)
    data = load_detection(arguments, seed=0)
    assert data.names == list(IDS)  # ids 3, 7, 20, and not the group that Roboflow writes
    sizes = (7, 2, "0.25 of train") if kind == "beside" else (9, 3, "validation")
    assert (len(data.train), len(data.evaluation), data.eval_split) == sizes
    if kind == "beside":
        return
    processor = EupeImageProcessorPil(size={"height": 96, "width": 96})
    _, labels = draw_shapes(8, 64, 0, smallest=0.3)
    rows = list(DetectionRows(data.train, processor))
    for row, label in zip(rows, labels, strict=False):
        assert row["pixel_values"].shape == (3, 96, 96)
        assert torch.equal(row["labels"]["class_labels"], label["class_labels"])
        torch.testing.assert_close(row["labels"]["boxes"], label["boxes"], atol=1e-5, rtol=0)
    assert rows[-1]["labels"]["boxes"].shape == (0, 4)  # the image without objects is kept


@pytest.mark.parametrize("form", ["lists", "objects"])
def test_data_sets_with_a_column_of_objects(tmp_path: Path, form: str) -> None:
    images = [Image.new("RGB", (40, 30))] * 4
    boxes = [[[0, 0, 20, 15]], [[10, 10, 10, 10], [0, 0, 5, 5]], [], [[1, 1, 9, 9]]]
    kinds = [[1], [0, 1], [], [1]]
    names = datasets.ClassLabel(names=["mask", "glove"])
    bbox = datasets.Sequence(datasets.Value("float32"))
    if form == "lists":
        objects = [{"bbox": b, "category": k} for b, k in zip(boxes, kinds, strict=True)]
        feature: Any = {"bbox": datasets.Sequence(bbox), "category": datasets.Sequence(names)}
    else:
        objects = [[{"bbox": b, "category": k} for b, k in zip(*pair, strict=True)]
                   for pair in zip(boxes, kinds, strict=True)]  # fmt: skip
        feature = datasets.List({"bbox": bbox, "category": names})
    features = datasets.Features({"image": datasets.Image(), "objects": feature})
    data = datasets.Dataset.from_dict({"image": images, "objects": objects}, features=features)
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        data.to_parquet(tmp_path / "data" / f"{split}.parquet")
    found = load_detection(DetectionDataArguments(str(tmp_path / "data")), seed=0)
    assert found.names == ["mask", "glove"] and len(found.train) == len(found.evaluation) == 4
    labels = [row["labels"] for row in DetectionRows(found.train, EupeImageProcessorPil(size=32))]
    assert [label["class_labels"].tolist() for label in labels] == kinds
    assert labels[0]["boxes"].tolist() == [[0.25, 0.25, 0.5, 0.5]]


def test_boxes_are_clipped_or_left_out() -> None:
    value = {
        "bbox": [[-5, -5, 10, 10], [30, 20, 50, 50], [3, 3, 0, 5], [50, 3, 5, 5], [math.nan, 0, 1, 1], [0, 0, 9, 9]],
        "category": [7, 3, 3, 3, 3, 3], "iscrowd": [0, 0, 0, 0, 0, 1],
    }  # fmt: skip
    boxes, labels, skipped = read_objects(value, 40, 30, {3: 0, 7: 1})
    assert boxes.tolist() == [[0, 0, 5, 5], [30, 20, 40, 30]] and labels.tolist() == [1, 0] and skipped == 3
    assert read_objects([], 40, 30, {})[0].shape == (0, 4)
    with pytest.raises(ValueError, match="1 boxes, of four numbers each, and 2 categories"):
        read_objects({"bbox": [[0, 0, 1, 1]], "category": [3, 3]}, 40, 30, {3: 0})


def test_boxes_follow_their_images_through_the_augmentation(material: Path) -> None:
    data = load_detection(DetectionDataArguments(str(material / "shapes")), seed=0)
    processor = EupeImageProcessorPil(size={"height": 64, "width": 64}, do_normalize=False)
    rows = DetectionRows(data.train, processor, Augmentation(64, (0.8, 1.25), "window", colour=0.0, boxes=True))
    contrasts = []
    for row in range(20):
        sample = rows[row]
        assert sample["pixel_values"].shape == (3, 64, 64)
        inside = torch.zeros(64, 64, dtype=torch.bool)
        for x, y, width, height in (64 * sample["labels"]["boxes"]).tolist():
            assert 0 <= x - width / 2 < x + width / 2 <= 64 + 1e-3
            inside[round(y - height / 2) : round(y + height / 2), round(x - width / 2) : round(x + width / 2)] = True
        background = (sample["pixel_values"] - 0.5).abs().amax(dim=0)
        drawn = sample["pixel_values"].amax(dim=0) > 0  # not padded
        if inside.any():
            contrasts.append(background[inside & drawn].mean() / background[~inside & drawn].mean())
    assert len(contrasts) >= 15 and min(contrasts) > 1.3, contrasts


def test_average_precision_of_padded_batches() -> None:
    found = torch.tensor([[[1, 0.9, 0, 0, 0.5, 0.5], [-100] * 6], [[0, 0.8, 0, 0, 1, 1], [1, 0.3, 0, 0, 0.2, 0.2]]])
    truth = torch.tensor([[[1, 0, 0, 0.5, 0.5], [-100] * 5], [[-100] * 5, [-100] * 5]])
    metrics = DetectionMetrics()
    metrics.update(found, truth)
    assert [len(image["boxes"]) for image in metrics.truth] == [1, 0]
    assert metrics.compute()["ap"] == pytest.approx(
        1.0
    )  # the false ones score less, or are of a class that is not there


def damaged_shapes(root: Path, damage: str) -> DetectionDataArguments:
    content, labels = coco_of_shapes(root / "images", 8, 0), None
    if damage == "category":
        content["annotations"][0]["category_id"] = 5
    elif damage == "image":
        content["annotations"][0]["image_id"] = 5
    elif damage == "twice":
        content["categories"][2]["name"] = "square"
    elif damage == "labels":
        labels = "names.txt"
    elif damage == "keys":
        del content["annotations"][0]["bbox"]
    elif damage == "list":
        del content["categories"]
    elif damage == "degenerate":
        for annotation in content["annotations"]:
            annotation["bbox"][2] = 0 if annotation["image_id"] in (101, 103) else annotation["bbox"][2]
    elif damage == "none":
        content["annotations"] = []
    elif damage == "unreadable":
        for name in ("1.png", "3.png"):
            (root / "images" / name).unlink()
    (root / "annotations.json").write_text("{" if damage == "json" else json.dumps(content))
    return DetectionDataArguments(str(root), held_out=0.4, strict=True, labels=labels)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("category", "of the category 5, which is not among its categories"),
        ("image", "of the image 5, which is not among its images"),
        ("twice", "have two categories called 'square': give each a name of its own"),
        ("labels", "name their categories: leave out --labels"),
        ("keys", r"annotations\[0\] has no bbox, it must have image_id, bbox, category_id"),
        ("list", "has no list of categories: it must be COCO's JSON"),
        ("json", "annotations.json is not a JSON file"),
        ("degenerate", r"\d boxes of the .* part have no area inside their image, the first in .*\d\.png"),
        ("none", "The training part of .* has 6 images and no box"),
        ("unreadable", r"rows cannot be read.*\d\.png\) cannot be read"),
    ],
)
def test_detection_data_is_refused(tmp_path: Path, damage: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_detection(damaged_shapes(tmp_path / "shapes", damage), seed=0)


@pytest.mark.parametrize("damage", ["degenerate", "unreadable"])
def test_damaged_shapes_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    arguments = damaged_shapes(tmp_path / "shapes", damage)
    arguments.strict = False
    data = load_detection(arguments, seed=0)
    assert len(data.train) + len(data.evaluation) == (9 if damage == "degenerate" else 7)
    assert ("They are skipped" if damage == "degenerate" else "Skipped") in caplog.text


def test_files_that_name_a_category_twice_are_refused(tmp_path: Path) -> None:
    root = layout(tmp_path / "data", "files")
    content = json.loads((root / "validation.json").read_text())
    content["categories"][1]["name"] = "box"
    (root / "validation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="calls the category 3 'box', and another place 'square'"):
        load_detection(DetectionDataArguments(str(root)), seed=0)


def test_wrong_detection_input_ends_with_one_sentence(run: Run, material: Path, capsys: Any) -> None:
    assert "has no test.json and no test/annotations.json" in refused(run, capsys, "detection", "--eval_split", "test")
    rooms = refused(run, capsys, "detection", "--dataset", material / "rooms")
    assert "must be a folder with" in rooms, rooms
