# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training data that is read during training: `--streaming`."""

import json
import pickle
import runpy
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import ROOT
from modeling_common import tiny_config
from PIL import Image
from safetensors.torch import load_file
from test_scale import launch
from torch.utils.data import DataLoader
from transformers import AutoModelForImageClassification

from eupe_hf import EupeImageProcessorPil, EupeModel
from eupe_hf.data.loading import load_split
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Classes, Rows, UnreadableError
from eupe_hf.data.streams import Stream
from eupe_hf.training import RecipeTrainer, parse_recipe
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.rows import StreamedRows, TrainingRows
from eupe_hf.training.tasks.classification import ClassificationTask, load_classification
from eupe_hf.training.tasks.depth import DepthDataArguments, load_depth
from eupe_hf.training.tasks.detection import DetectionDataArguments, load_detection
from eupe_hf.training.tasks.segmentation import load_segmentation


EXAMPLES = ROOT / "examples"
COLOURS = {"red": (190, 60, 60), "blue": (60, 60, 190)}
COLUMNS = {"image": "image", "label": "label"}
TOLERANCE = 1e-6  # a resumed run is the same computation

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder, class folders, and parquet files for the tasks that want maps or boxes."""
    folder, noise = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    torch.manual_seed(0)
    EupeModel(tiny_config("convnext", layerscale_value=0.5)).save_pretrained(folder / "encoder")
    for split, count in (("train", 12), ("validation", 4)):
        for name, colour in COLOURS.items():
            (folder / "classes" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (np.array(colour) + noise.integers(-50, 50, (40, 48, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "classes" / split / name / f"{i}.png")
        tables(folder, split, count, noise)
    (folder / "names.txt").write_text("ground\nbox\n")
    return folder


def tables(folder: Path, split: str, count: int, noise: np.random.Generator) -> None:
    """Pictures with a box in each, its mask, and the depth of what is there, as parquet files of two row groups."""
    rows: dict[str, list[Any]] = {"image": [], "label": [], "depth_map": [], "objects": []}
    for _ in range(count):
        left, top = (int(value) for value in noise.integers(0, 24, 2))
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[top : top + 24, left : left + 32] = 1
        pixels = np.where(mask[..., None] == 1, COLOURS["red"], COLOURS["blue"]) + noise.integers(-50, 50, (48, 64, 3))
        rows["image"].append(Image.fromarray(pixels.astype(np.uint8)))
        rows["label"].append(Image.fromarray(mask))
        rows["depth_map"].append(Image.fromarray(np.where(mask == 1, 2, 5).astype(np.uint8)))
        rows["objects"].append({"bbox": [[left, top, 32, 24]], "category": [0]})
    objects = {
        "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
        "category": datasets.Sequence(datasets.ClassLabel(names=["box"])),
    }
    image = datasets.Image()
    for task, column in (("maps", "label"), ("depth", "depth_map"), ("boxes", "objects")):
        features = datasets.Features({"image": image, column: objects if task == "boxes" else image})
        data = datasets.Dataset.from_dict({"image": rows["image"], column: rows[column]}, features=features)
        (folder / task).mkdir(exist_ok=True)
        data.to_parquet(folder / task / f"{split}.parquet", batch_size=6)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    # after each turn of a shuffled stream `datasets` waits five seconds for its threads
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture
def run(material: Path, tmp_path: Path) -> Run:
    """Run a recipe on a stream in this process; gives its output folder."""

    def run_here(task: str, output: str, data: str, *options: Any) -> Path:
        usual = {
            "--dataset": material / data, "--model": material / "encoder", "--output_dir": tmp_path / output,
            "--size": 64, "--per_device_train_batch_size": 8, "--dataloader_num_workers": 0, "--logging_steps": 1,
            "--disable_tqdm": True, "--use_cpu": True, "--streaming": True,
        }  # fmt: skip
        main = runpy.run_path(str(EXAMPLES / f"finetune_lora_{task}.py"))["main"]
        main([str(part) for option in usual.items() for part in option] + [str(option) for option in options])
        return tmp_path / output

    return run_here


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def stream(folder: Path, **options: Any) -> Stream:
    data = load_split(str(folder), "train", COLUMNS, streaming=True)
    rows = Stream(data, COLUMNS, **options)
    rows.classes = Classes({0: 0, 1: 1})
    return rows


def colours(rows: Stream, count: int) -> list[tuple[int, ...]]:
    """The first pixels of so many images; no two images have the same."""
    return [cells[0].getpixel((0, 0)) for _, cells in islice(rows, count)]


def test_each_turn_has_all_rows_in_another_order(material: Path) -> None:
    found = colours(stream(material / "classes", buffer=10), 48)
    assert len(set(found[:24])) == 24 and set(found[24:]) == set(found[:24])
    assert found[24:] != found[:24]
    assert colours(stream(material / "classes", buffer=10), 48) == found
    assert colours(stream(material / "classes", buffer=10, seed=1), 24) != found[:24]


def test_processes_and_workers_share_the_rows(material: Path) -> None:
    found, numbers = [], []
    for process in range(2):
        rows = stream(material / "classes")
        rows.divide(process, 2, 2)
        reader = TrainingRows(rows, EupeImageProcessorPil(size={"height": 32, "width": 32}), "class")
        loader = DataLoader(StreamedRows(reader), batch_size=None, num_workers=2)
        found += [tuple(row["pixel_values"][:, 0, 0].tolist()) for row in islice(loader, 12)]
        rows = stream(material / "classes")
        rows.divide(process, 2, 1)
        numbers += [number for number, _ in islice(rows, 12)]
    assert len(found) == len(set(found)) == 24
    assert sorted(numbers) == list(range(24))


def test_stream_travels_to_new_workers(material: Path) -> None:
    found = load_segmentation(DataArguments(str(material / "maps"), labels=str(material / "names.txt"),
                                            streaming=True), seed=0)  # fmt: skip
    again = pickle.loads(pickle.dumps(found.train))
    assert next(iter(again))[0] == 0 and again.check.keywords["names"] == ["ground", "box"]


def test_augmentation_of_a_row_changes_with_the_turn(material: Path) -> None:
    rows = stream(material / "classes", buffer=1)
    rows.data = rows.data.take(1)
    reader = TrainingRows(rows, EupeImageProcessorPil(size=32), "class", Augmentation(32, flip=0, colour=0))
    first, second = (row["pixel_values"] for row in islice(StreamedRows(reader), 2))
    assert not torch.equal(first, second)
    assert torch.equal(next(iter(StreamedRows(reader)))["pixel_values"], first)


def test_unreadable_rows_are_counted_or_refused(
    material: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(material / "classes", tmp_path / "classes")
    for i in range(3):
        (tmp_path / "classes" / "train" / "red" / f"{i}.png").write_bytes(b"no picture")
    rows = stream(tmp_path / "classes")
    assert len(set(colours(rows, 21))) == 21 and int(rows.skipped.sum()) == 3
    assert len([record for record in caplog.records if "Skipped a row" in record.message]) == 3
    assert "red/0.png" in caplog.text
    with pytest.raises(UnreadableError, match=r"red/\d\.png.* cannot be read"):
        colours(stream(tmp_path / "classes", strict=True), 24)
    for file in (tmp_path / "classes" / "train").rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="None of 24 rows can be read"):
        colours(stream(tmp_path / "classes"), 1)


def test_labels_and_masks_are_checked_when_they_come(material: Path, tmp_path: Path) -> None:
    rows = stream(material / "classes")
    rows.classes = Classes({0: 0})
    with pytest.raises(ValueError, match=r"red/\d+\.png.* has the label 1, which is beyond the 1 classes: 0\."):
        colours(rows, 24)
    (tmp_path / "one.txt").write_text("ground\n")
    arguments = DataArguments(str(material / "maps"), labels=str(tmp_path / "one.txt"), streaming=True)
    with pytest.raises(ValueError, match="the mask holds the class 1, but there are 1 class names"):
        load_segmentation(arguments, seed=0)
    (tmp_path / "one.txt").write_text("ground\nbox\n")
    train = load_segmentation(arguments, seed=0).train
    train.check.keywords["names"].pop()  # as if a mask after the first rows had it
    with pytest.raises(ValueError, match="the mask holds the class 1, but there are 1 class names"):
        next(iter(train))


def test_files_in_an_archive_are_read_where_they_are(material: Path, tmp_path: Path) -> None:
    shutil.make_archive(str(tmp_path / "train"), "zip", material / "classes" / "train")
    place = {"bytes": None, "path": f"zip://red/3.png::{tmp_path / 'train.zip'}"}
    (image,) = Rows([{"image": place}], {"image": "image"})[0]
    assert np.array_equal(image, Image.open(material / "classes" / "train" / "red" / "3.png"))
    with pytest.raises(UnreadableError, match=r"red/33\.png::.* cannot be read"):
        Rows([{"image": place | {"path": place["path"].replace("3.png", "33.png")}}], {"image": "image"})[0]


def test_parts_of_streams_are_loaded(material: Path) -> None:
    found = load_classification(DataArguments(str(material / "classes"), streaming=True, eval_rows=5), seed=0)
    assert found.names == ["blue", "red"] and found.eval_split == "5 rows of validation"
    assert len(found.evaluation) == 5 and isinstance(found.train, Stream)
    limited = load_classification(DataArguments(str(material / "classes"), streaming=True, limit=3), seed=0)
    assert len(set(colours(limited.train, 9))) == 3 and len(limited.evaluation) == 3
    names = str(material / "names.txt")
    maps = load_segmentation(DataArguments(str(material / "maps"), streaming=True, labels=names), seed=0)
    assert maps.names == ["ground", "box"]
    assert next(iter(maps.train))[1][1].unique().tolist() == [0, 1]
    depth = load_depth(DepthDataArguments(str(material / "depth"), streaming=True), seed=0)
    assert next(iter(depth.train))[1][1].unique().tolist() == [2, 5]
    boxes = load_detection(DetectionDataArguments(str(material / "boxes"), streaming=True), seed=0)
    assert boxes.names == ["box"]
    assert next(iter(boxes.train))[1][1]["bbox"][0][2:] == [32.0, 24.0]


def test_classification_learns_from_a_stream(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("classification", "out", "classes", "--max_steps", 20, "--colour", 0, "--shuffle_buffer", 10)
    found = losses(folder)
    assert len(found) == 20 and np.mean(found[-3:]) < 0.8 * np.mean(found[:3]), found
    printed = capsys.readouterr().out
    assert "streamed images to train on, 8 to evaluate on, 2 classes." in printed
    assert [line.split()[0] for line in printed.splitlines()[-12:-1]] == [*map(str, range(2, 21, 2)), "saved"]
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["streaming"] is True and results["settings"]["unreadable"] == 0
    assert results["metrics"]["accuracy"] == 1.0 and results["split"] == "8 rows of validation"
    assert AutoModelForImageClassification.from_pretrained(folder).config.id2label == {0: "blue", 1: "red"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "data", "factor", "options"),
    [
        (
            "segmentation",
            "maps",
            0.9,
            ("--labels", "names.txt", "--learning_rate", "5e-3", "--head_learning_rate", "2e-2"),
        ),
        ("depth", "depth", 0.95, ("--max_depth", 10, "--learning_rate", "1e-2", "--head_learning_rate", "2e-2")),
        ("detection", "boxes", 0.9, ("--learning_rate", "5e-3", "--head_learning_rate", "5e-3")),
    ],
)
def test_other_tasks_learn_from_streams(
    run: Run, material: Path, task: str, data: str, factor: float, options: tuple[Any, ...]
) -> None:
    options = tuple(material / option if option == "names.txt" else option for option in options)
    folder = run(task, "out", data, "--max_steps", 20, "--no_augment", "--eval_steps", 20, *options)
    found = losses(folder)
    assert len(found) == 20 and np.mean(found[-3:]) < factor * np.mean(found[:3]), found


@pytest.mark.slow
def test_resumed_run_on_a_stream_ends_where_an_unbroken_one_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # 24 rows: it is killed in the second turn
    options = ("--max_steps", 8, "--save_strategy", "steps", "--save_steps", 2, "--save_total_limit", 5,
               "--eval_strategy", "steps", "--eval_steps", 2, "--load_best_model_at_end", False,
               "--per_device_train_batch_size", 6, "--dropout", 0.2, "--shuffle_buffer", 7)  # fmt: skip
    whole = run("classification", "whole", "classes", *options)
    step, calls = RecipeTrainer.training_step, []

    def killed(self: RecipeTrainer, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RecipeTrainer, "training_step", killed)
        run("classification", "broken", "classes", *options)
    assert not (Path(whole).parent / "broken" / "checkpoint-6").exists()
    broken = run("classification", "broken", "classes", *options, "--resume_from_checkpoint", "last")
    assert losses(broken) == pytest.approx(losses(whole), abs=TOLERANCE) and len(losses(whole)) == 8
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (whole, broken))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=TOLERANCE, msg=name)


@pytest.mark.slow
def test_two_processes_share_a_stream(run: Run, material: Path, tmp_path: Path) -> None:
    # each process shuffles its own rows; in a buffer of one row they stay as they are, and batches hold the same
    options = ("--max_steps", 4, "--no_augment", "--dropout", 0, "--shuffle_buffer", 1)
    whole = run("classification", "whole", "classes", *options)
    command = ("--dataset", material / "classes", "--model", material / "encoder", "--output_dir", tmp_path / "two",
               "--size", 64, "--dataloader_num_workers", 0, "--use_cpu", "--streaming", "--logging_steps", 1,
               "--per_device_train_batch_size", 4, *options)  # fmt: skip
    result = launch("multi_cpu", tmp_path, EXAMPLES / "finetune_lora_classification.py", *command)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "two" / "results.json").read_text())["settings"]["batch_size"] == 8
    assert losses(tmp_path / "two") == pytest.approx(losses(whole), abs=1e-5) and len(losses(whole)) == 4


def unnamed(root: Path) -> DataArguments:
    data = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 2, "label": [0, 1]})
    root.mkdir()
    for split in ("train", "validation"):
        data.to_parquet(root / f"{split}.parquet")
    return DataArguments(str(root), streaming=True)


def saved(root: Path) -> DataArguments:
    datasets.Dataset.from_dict({"label": [0]}).save_to_disk(root)
    return DataArguments(str(root), streaming=True, eval_split="train")


def pairs(root: Path) -> DataArguments:
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    return DataArguments(str(root), streaming=True)


def no_validation(root: Path) -> DataArguments:
    arguments = unnamed(root)
    (root / "validation.parquet").unlink()
    return arguments


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (unnamed, "does not name its classes: name them with --labels FILE"),
        (saved, "what save_to_disk wrote is read from the disk anyway"),
        (pairs, "cannot be streamed: its images and masks are matched by listing them all; leave out --streaming"),
        (no_validation, "it has no validation split, and no share can be held out; give --eval_split"),
    ],
)
def test_data_that_cannot_be_streamed_is_refused(tmp_path: Path, make: Any, words: str) -> None:
    arguments = make(tmp_path / "data")
    with pytest.raises(ValueError, match=words):
        (load_segmentation if make is pairs else load_classification)(arguments, seed=0)


def test_coco_files_and_runs_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be streamed: COCO's JSON has the boxes apart from the images"):
        load_detection(DetectionDataArguments(str(tmp_path), streaming=True), seed=0)
    command = ["--dataset", "d", "--output_dir", str(tmp_path / "out"), "--streaming"]
    with pytest.raises(ValueError, match="--streaming needs --max_steps: a stream does not say how long it is"):
        parse_recipe(ClassificationTask, "", command)
    args = parse_recipe(ClassificationTask, "", [*command, "--max_steps", "40"])[2]
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == ("steps", 4, "steps", 4)
