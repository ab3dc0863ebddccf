# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The recipe for several tasks as a user runs it: on generated data, with a tiny encoder, on the CPU."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import ROOT
from huggingface_hub import ModelCard
from modeling_common import tiny_config
from PIL import Image
from recipes_common import (
    Run,
    assert_falls,
    coco_of_shapes,
    draw_classes,
    draw_maps,
    draw_rooms,
    interrupt_and_resume,
    keep_evaluated,
    losses,
    scores,
)
from transformers import AutoImageProcessor, AutoModel, set_seed

from eupe_hf import EupeForMultiTask, EupeImageProcessorPil, EupeModel
from eupe_hf.data.options import DataArguments
from eupe_hf.lora import load_peft_model
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.multitask import (
    MultiTask,
    MultiTaskDataArguments,
    MultiTaskRows,
    MultiTaskTrainer,
    TaskOrder,
)
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.base import collate
from eupe_hf.training.tasks.classification import ClassificationTask, load_classification
from eupe_hf.training.tasks.depth import DepthTask


SCORES = {"classification": "accuracy", "segmentation": "mean_iou", "depth": "delta1", "detection": "ap"}
BASIC = ("classification", "segmentation")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny encoders of both families, and a data set per task, of different sizes."""
    folder, noise = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    for family in ("vit", "convnext"):
        torch.manual_seed(0)
        EupeModel(tiny_config(family, layerscale_value=0.5)).save_pretrained(folder / family)
    for seed, (split, count) in enumerate((("train", 12), ("validation", 4))):
        draw_classes(folder / "classification" / split, count, noise)  # 24 and 8
        draw_maps(folder / "segmentation" / split, count, noise)
        draw_rooms(folder / "depth" / split, count // 2, seed)
        content = coco_of_shapes(folder / "detection" / split, count + 3, seed)  # and one without objects
        (folder / "detection" / split / "_annotations.coco.json").write_text(json.dumps(content))
    (folder / "names.txt").write_text("ground\nbox\n")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def data_options(material: Path, *tasks: str) -> list[str]:
    own = {"segmentation": [f"labels={material / 'names.txt'}"], "depth": ["depth_scale=1000", "max_depth=8"]}
    return [str(word) for task in tasks for word in (f"--{task}", material / task, *own.get(task, []))]


@pytest.fixture
def run(tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the recipe in this process; gives its output folder and what it printed."""

    def run_here(tasks: tuple[str, ...], output: str, *options: Any, family: str = "vit") -> tuple[Path, str]:
        main = runpy.run_path(str(ROOT / "examples" / "finetune_lora_multitask.py"))["main"]
        folder = tmp_path / output
        usual = {
            "--model": material / family, "--output_dir": folder, "--size": 64, "--per_device_train_batch_size": 6,
            "--dataloader_num_workers": 0, "--logging_steps": 1, "--disable_tqdm": True, "--use_cpu": True,
        }  # fmt: skip
        words = [part for option in usual.items() for part in option]
        capsys.readouterr()
        main([*data_options(material, *tasks), *map(str, words), *map(str, options)])
        return folder, capsys.readouterr().out

    return run_here


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of the model in the last evaluation of a run, batch by batch."""
    return keep_evaluated(monkeypatch, MultiTaskTrainer)


def main_output(output: Any) -> torch.Tensor:
    return output.predicted_depth if "predicted_depth" in output else output.logits


def task_rows(material: Path, processor: Any, *tasks: str) -> dict[str, tuple[TrainingRows, TrainingRows]]:
    """Rows to train on, without augmentation, and to evaluate on."""
    options: dict[str, Any] = {task: [str(material / task)] for task in tasks}
    if "depth" in options:
        options["depth"] += ["depth_scale=1000", "max_depth=8"]
    loaded = MultiTask(MultiTaskDataArguments(**options, size=64, augment=False), seed=0)
    return {name: task.rows(processor, 16) for name, task in loaded.parts.items()}


@torch.no_grad()
def assert_reloads(model: Any, material: Path, folder: Path, evaluated: list[Any]) -> None:
    """The model gives bit for bit what was evaluated, in the Trainer's batches of 8."""
    processor, expected = AutoImageProcessor.from_pretrained(folder), {}
    for output in evaluated:
        ((name, prediction),) = output.predictions.items()
        expected.setdefault(name, []).append(main_output(prediction))
    for name, (_, rows) in task_rows(material, processor, *expected).items():
        images = torch.stack([row["pixel_values"] for row in rows]).split(8)
        found = [main_output(model.eval()(batch, tasks=[name]).predictions[name]) for batch in images]
        assert torch.equal(torch.cat(found), torch.cat(expected[name])), name


@pytest.mark.parametrize(("family", "tasks"), [("vit", tuple(SCORES)), ("convnext", ("classification", "depth"))])
def test_tasks_learn_together_and_reload_exactly(
    run: Run, material: Path, evaluated: list[Any], family: str, tasks: tuple[str, ...]
) -> None:
    folder, printed = run(tasks, "adapter", "--num_train_epochs", 5, "--learning_rate", "5e-3",
                          "--head_learning_rate", "2e-2", "--colour", 0, "--layers", 0, 1, family=family)  # fmt: skip
    assert_falls(folder, 0.8)
    assert "classification: 24 images to train on, 8 to evaluate on, 2 classes." in printed
    found = scores(folder)
    for task in tasks:
        assert {f"{task}_loss", f"{task}_{SCORES[task]}"} <= found.keys()
    assert found["score"] == pytest.approx(sum(found[f"{task}_{SCORES[task]}"] for task in tasks) / len(tasks))
    assert found["loss"] == pytest.approx(sum(found[f"{task}_loss"] for task in tasks) / len(tasks))
    assert found["classification_accuracy"] == 1.0 and found["depth_delta1"] > 0.5, found
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_metric"] == max(entry.get("eval_score", 0) for entry in state["log_history"])
    assert {"adapter_model.safetensors", "curve.png", "README.md"} <= {file.name for file in folder.iterdir()}
    model = EupeForMultiTask.from_pretrained(folder)
    assert list(model.heads) == sorted(tasks) and all(
        entry["out_indices"] == [1, 2] for entry in model.config.heads.values()
    )
    assert_reloads(model, material, folder, evaluated)
    assert_reloads(load_peft_model(folder), material, folder, evaluated)


def test_results_and_card_show_every_task(run: Run, material: Path) -> None:
    folder, printed = run(tuple(SCORES), "adapter", "--max_steps", 1, "--task_weights", "depth=2", "detection=0.5")
    found = json.loads((folder / "results.json").read_text())
    assert list(found["tasks"]) == list(SCORES)
    for task, metric in SCORES.items():
        part = found["tasks"][task]
        assert part["metrics"][metric] == found["metrics"][f"{task}_{metric}"]
        assert (part["dataset"], part["split"], part["protocol"]) == (task, "validation", task)
        assert f"{task} {metric}".replace("_", " ") in printed
    assert [part["num_examples"] for part in found["tasks"].values()] == [8, 4, 2, 8]
    weighted = [found["metrics"][f"{task}_loss"] for task in SCORES]
    weighted = np.mean(np.array(weighted) * [1, 1, 2, 0.5])
    assert found["metrics"]["loss"] == pytest.approx(weighted)
    settings = found["settings"]
    assert settings["batch_size"] == 24 and settings["depth_scale"] == 1000
    assert settings["task_weights"] == "classification 1, segmentation 1, depth 2, detection 0.5"
    card = ModelCard.load(folder / "README.md")
    assert {result.dataset_name for result in card.data.eval_results} == set(SCORES)
    assert {result.task_type for result in card.data.eval_results} == {
        "image-classification", "image-segmentation", "depth-estimation", "object-detection"
    }  # fmt: skip
    for words in ("EupeForMultiTask.from_pretrained", "8 images of detection: validation", "mean of classification"):
        assert words in card.text, words
    for file in ("README.md", "results.json"):
        assert str(material.parent) not in (folder / file).read_text()  # no path of this machine


@pytest.mark.slow
def test_resumed_run_ends_where_an_unbroken_one_does(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # killed between the two tasks of the fourth step, in the second epoch
    interrupt_and_resume(run, monkeypatch, BASIC, "vit", 8, "--epoch_of", "segmentation")


def test_a_step_follows_the_weighted_mean_of_the_losses(run: Run, material: Path) -> None:
    # heads without dropout, nothing random
    options = ("--max_steps", 1, "--no_augment", "--dropout", 0, "--max_grad_norm", 1e9, "--optim", "sgd",
               "--learning_rate", 0.1, "--head_learning_rate", 0.1, "--mode", "full", "--layer_decay", 1,
               "--weight_decay", 0, "--warmup_steps", 0, "--task_weights", "detection=3")  # fmt: skip
    tasks = ("classification", "detection")
    folder, _ = run(tasks, "one", *options, family="convnext")
    processor = AutoImageProcessor.from_pretrained(folder)
    parts = {name: train for name, (train, _) in task_rows(material, processor, *tasks).items()}
    rows = MultiTaskRows(parts)
    order = list(TaskOrder(rows, 6, seed=42))[:12]
    data = load_classification(DataArguments(str(material / "classification")), seed=0)
    heads = {
        "classification": {"task": "classification", "id2label": dict(enumerate(data.names))},
        "detection": {"task": "detection", "num_labels": 3, "loss_weight": 3.0},
    }
    set_seed(42)
    model = EupeForMultiTask.from_pretrained(material / "convnext", heads=heads).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss = sum(model(**collate([rows[place] for place in order[i : i + 6]])).loss for i in (0, 6)) / 2
    loss.backward()
    assert losses(folder) == pytest.approx([loss.item()], abs=1e-5)
    after = dict(EupeForMultiTask.from_pretrained(folder).named_parameters())
    for name, parameter in model.named_parameters():
        step = 0.1 * (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        torch.testing.assert_close(after[name], before[name] - step, rtol=0, atol=1e-5, msg=name)
    assert max((after[name] - before[name]).abs().max() for name in after) > 1e-3


@pytest.mark.slow
def test_several_processes_give_the_curve_of_one(run: Run, material: Path, tmp_path: Path) -> None:
    # the same batches, one after the other or side by side
    options = ("--max_steps", 3, "--no_augment", "--dropout", 0, "--per_device_train_batch_size", 3,
               "--gradient_checkpointing", True, "--mode", "full")  # fmt: skip
    tasks = ("classification", "detection")
    one, _ = run(tasks, "one", *options, "--gradient_accumulation_steps", 2, family="convnext")
    two = tmp_path / "two"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
        ROOT / "examples" / "finetune_lora_multitask.py", *data_options(material, *tasks), "--model",
        material / "convnext", "--output_dir", two, "--size", 64, "--dataloader_num_workers", 0, "--use_cpu",
        "--ddp_backend", "gloo", "--logging_steps", 1, *options,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("24 images to train on") == 1
    assert losses(two) == pytest.approx(losses(one), abs=1e-5) and len(losses(one)) == 3
    assert scores(two) == pytest.approx(scores(one), abs=1e-4)


@pytest.mark.parametrize("mode", ["lora", "probe", "full"])
def test_modes_train_what_they_say(run: Run, material: Path, evaluated: list[Any], mode: str) -> None:
    folder, _ = run(BASIC, mode, "--mode", mode, "--max_steps", 2, *(["--merge"] if mode == "lora" else []))
    assert not (folder / "adapter_config.json").exists()
    model = AutoModel.from_pretrained(folder)
    assert isinstance(model, EupeForMultiTask) and not any("lora" in name for name, _ in model.named_parameters())
    assert model.config.heads["segmentation"]["id2label"] == {0: "ground", 1: "box"}
    assert_reloads(model, material, folder, evaluated)
    start = EupeModel.from_pretrained(material / "vit").state_dict()
    same = [torch.equal(tensor, start[name]) for name, tensor in model.eupe.state_dict().items()]
    assert all(same) if mode == "probe" else not all(same)
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"


def test_options_of_the_trainer_and_of_single_tasks(run: Run) -> None:
    folder, _ = run(
        ("depth",), "adapter", "--max_steps", 4, "--bf16", "True", "--gradient_checkpointing", "True", "--use_dora",
        "--targets", "q_proj", "--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps",
        "--save_steps", 1, "--metric_for_best_model", "depth_rmse", "--early_stopping", 3, "--strict",
    )  # fmt: skip
    state = json.loads((folder / "trainer_state.json").read_text())
    errors = [entry["eval_depth_rmse"] for entry in state["log_history"] if "eval_depth_rmse" in entry]
    assert state["best_metric"] == min(errors) and len(errors) == 5  # four, and that of what is saved
    assert json.loads((folder / "adapter_config.json").read_text())["use_dora"]
    arguments = MultiTaskDataArguments(
        depth=["rooms", "depth_scale=1000", "flip=0"], segmentation=["street", "reduce_labels"], size=96, limit=5
    )
    assert arguments.tasks == ["segmentation", "depth"]
    depth, masks = arguments.of_task("depth"), arguments.of_task("segmentation")
    assert (depth.dataset, depth.depth_scale, depth.flip, depth.size, depth.limit) == ("rooms", 1000, 0, 96, 5)
    assert (masks.dataset, masks.reduce_labels, masks.flip, masks.size) == ("street", True, 0.5, 96)


@pytest.mark.parametrize(
    ("tasks", "options", "words"),
    [
        ((), [], "No data set was given: name one, a folder or a Hub id, with one or more of --classification, --"),
        (BASIC, ["--task_weights", "depth=2"], "a task that has data, classification, segmentation, and a number; "
         "got 'depth=2'"),
        (BASIC, ["--task_weights", "segmentation=much"], "got 'segmentation=much'"),
        (BASIC, ["--task_weights", "segmentation=0"], "must be above 0, got 'segmentation=0'"),
        (BASIC, ["--epoch_of", "depth"], "--epoch_of must be a task with data, classification, segmentation, got"),
        (BASIC, ["--depth", "nowhere"], "--depth nowhere: The data set nowhere cannot be loaded"),
        (BASIC, ["--segmentation", "nowhere", "depth_scale=3"], "--segmentation nowhere: there is no option "
         "'depth_scale=3'; after the data set give NAME=VALUE of augment, check"),
        (BASIC, ["--segmentation", "nowhere", "size=3"], "there is no option 'size=3'"),
        (BASIC, ["--segmentation", "nowhere", "streaming=true"], "there is no option 'streaming=true'"),
        (BASIC, ["--segmentation", "nowhere", "--streaming"], "Several tasks cannot be streamed: their order depends"),
        (BASIC, ["--depth", "nowhere", "depth_scale=0"], "--depth nowhere: --depth_scale must be above 0, got 0"),
        (BASIC, ["--depth", "nowhere", "depth_scale=x"], "--depth: error: argument --depth_scale/--depth-scale: "
         "invalid float value: 'x'"),
        (BASIC, ["--metric_for_best_model", "depth_rmse"], "must be score, loss, or a metric of classification, "
         "segmentation, such as classification_accuracy; got 'depth_rmse'"),
        (BASIC, ["--model", "./nowhere"], "nowhere"),
        (BASIC, ["--layers", "7"], "out_indices"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_sentence_before_the_first_step(
    run: Run, capsys: pytest.CaptureFixture[str], tasks: tuple[str, ...], options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(tasks, "none", *options)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2 and words in message, message


def test_a_broken_data_set_names_its_task(
    run: Run, material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_maps(tmp_path / "broken", 4, np.random.default_rng(0))
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "broken" / "masks" / "2.png")
    with pytest.raises(SystemExit):
        run(("classification",), "none", "--segmentation", tmp_path / "broken", "held_out=0.5")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--segmentation {tmp_path / 'broken'}: " in message and "the mask is 8 x 8 pixels" in message


# ---- rows ----


def test_order_gives_every_step_as_many_rows_of_every_task(material: Path) -> None:
    parts = task_rows(material, EupeImageProcessorPil(size={"height": 64, "width": 64}), *SCORES)
    rows = MultiTaskRows({name: train for name, (train, _) in parts.items()})
    assert [len(part) for part in rows.parts.values()] == [24, 12, 6, 16]
    order = TaskOrder(rows, 8, seed=1)
    found = list(order)
    assert len(order) == len(found) == 3 * 4 * 8
    for start in range(0, len(found), 8):  # a batch of eight, or several smaller ones, is of one task
        assert {task for task, _ in found[start : start + 8]} == {list(SCORES)[start // 8 % 4]}
    seen = {name: [row for task, row in found if task == name] for name in SCORES}
    assert sorted(seen["classification"]) == list(range(24))  # each once
    for name, part in rows.parts.items():
        counts = Counter(row % len(part) for row in seen[name])
        assert len(counts) == len(part) and max(counts.values()) - min(counts.values()) <= 1
        assert len(set(seen[name])) == 24  # a row that comes again has another number
    assert list(TaskOrder(rows, 8, seed=1)) == found != list(TaskOrder(rows, 8, seed=2))
    assert len(TaskOrder(rows, 8, epoch_of="depth")) == 1 * 4 * 8
    rows.set_epoch(1)
    assert list(order) != found and all(part.rows.epoch == 1 for part in rows.parts.values())


def test_a_repeated_row_is_augmented_differently(material: Path) -> None:
    processor = EupeImageProcessorPil(size={"height": 64, "width": 64})
    data = load_classification(DataArguments(str(material / "classification")), seed=0)
    augment = training_augmentation(DataArguments("", size=64), **ClassificationTask.crops)
    rows = TrainingRows(data.train, processor, "class", augment)
    again = rows[3 + len(rows)]
    assert again["labels"] == rows[3]["labels"]
    assert not torch.equal(again["pixel_values"], rows[3]["pixel_values"])
    assert torch.equal(again["pixel_values"], rows[3 + len(rows)]["pixel_values"])
    assert training_augmentation(DataArguments("", augment=False), **DepthTask.crops) is None


def test_a_batch_is_of_one_task(material: Path) -> None:
    parts = task_rows(material, EupeImageProcessorPil(size={"height": 64, "width": 64}), "depth", "detection")
    rows = MultiTaskRows({name: train for name, (train, _) in parts.items()})
    batch = collate([rows["depth", 0], rows["depth", 1]])
    assert batch["pixel_values"].shape == (2, 3, 64, 64) and batch["tasks"] == ["depth"]
    assert batch["labels"]["depth"].shape == (2, 64, 64)
    batch = collate([rows["detection", row] for row in (0, 1, 15)])
    assert [len(label["boxes"]) > 0 for label in batch["labels"]["detection"]] == [True, True, False]
