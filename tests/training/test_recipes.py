# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The fine-tuning recipes as a user runs them: on generated data, with a tiny encoder, on the CPU."""

import html
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import ROOT
from hub_server import TOKEN, HubServer, use_hub
from huggingface_hub import ModelCard
from modeling_common import tiny_config
from PIL import Image
from recipes_common import Run, assert_falls, draw_classes, draw_maps, interrupt_and_resume, keep_evaluated, losses
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    pipeline,
)

from eupe_hf import EupeForImageClassification, EupeForSegmentation, EupeModel
from eupe_hf.data.options import DataArguments
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.classification import load_classification
from eupe_hf.training.tasks.segmentation import load_segmentation


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny encoders of both families, class folders, and images with masks."""
    folder, noise = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    for family in ("vit", "convnext"):
        torch.manual_seed(0)
        EupeModel(tiny_config(family, layerscale_value=0.5)).save_pretrained(folder / family)
    for split, count in (("train", 12), ("validation", 4)):
        draw_classes(folder / "classes" / split, count, noise)
        draw_maps(folder / "maps" / split, count, noise)
    (folder / "names.txt").write_text("ground\nbox\n")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, material: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a recipe in this process and offline; gives its output folder and what it printed."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def run_here(task: str, output: str, *options: Any, family: str = "vit", offline: bool = True) -> tuple[Path, str]:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        main = runpy.run_path(str(ROOT / "examples" / f"finetune_lora_{task}.py"))["main"]
        folder = tmp_path / output
        data = {"classification": "classes", "segmentation": "maps"}[task]
        usual = {
            "--dataset": material / data, "--model": material / family, "--output_dir": folder, "--size": 64,
            "--per_device_train_batch_size": 8, "--dataloader_num_workers": 0, "--logging_steps": 1,
            "--disable_tqdm": True, "--use_cpu": True,
        }  # fmt: skip
        capsys.readouterr()
        main([str(part) for option in usual.items() for part in option] + [str(option) for option in options])
        return folder, capsys.readouterr().out

    return run_here


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of the model in the last evaluation of a run, batch by batch."""
    return keep_evaluated(monkeypatch)


@torch.no_grad()
def reloaded_logits(model: torch.nn.Module, rows: TrainingRows, batch_size: int = 8) -> torch.Tensor:
    """Logits of a model for the evaluation rows, in the Trainer's batches."""
    images = torch.stack([row["pixel_values"] for row in rows])
    return torch.cat([model.eval()(batch).logits for batch in images.split(batch_size)])


def classification_rows(material: Path, folder: Path) -> TrainingRows:
    data = load_classification(DataArguments(str(material / "classes")), seed=0)
    return TrainingRows(data.evaluation, AutoImageProcessor.from_pretrained(folder), "class")


def test_classification_learns_and_reloads_exactly(run: Run, material: Path, evaluated: list[Any]) -> None:
    folder, printed = run("classification", "adapter", "--num_train_epochs", 5, "--colour", 0)
    assert_falls(folder, 0.7)
    assert "24 images to train on, 8 to evaluate on, 2 classes." in printed
    table = [line.split()[0] for line in printed.splitlines()[-7:-1]]
    assert table == ["3", "6", "9", "12", "15", "saved"]
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["accuracy"] == 1.0 and results["num_examples"] == 8
    assert results["settings"]["rank"] == 16 and results["settings"]["steps"] == 15
    assert {"adapter_model.safetensors", "curve.png", "README.md"} <= {file.name for file in folder.iterdir()}
    assert not (folder / "model.safetensors").exists()

    logits = torch.cat([output.logits for output in evaluated])
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert isinstance(model, EupeForImageClassification) and model.config.id2label == {0: "blue", 1: "red"}
    assert torch.equal(reloaded_logits(model, classification_rows(material, folder)), logits)
    classify = pipeline("image-classification", model=str(folder))
    assert classify(Image.new("RGB", (50, 40), (190, 60, 60)))[0]["label"] == "red"


def test_card_says_how_it_was_made(run: Run, material: Path) -> None:
    folder, _ = run("classification", "adapter", "--max_steps", 1, "--use_dora", "--targets", "q_proj", "v_proj")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "other" and "fair-noncommercial" in card.data.license_name
    assert card.data.library_name == "peft" and {"eupe", "lora"} <= set(card.data.tags)
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores == json.loads((folder / "results.json").read_text())["metrics"]
    for words in (
        "Kind: DoRA, rank 16",
        "| targets | ['q_proj', 'v_proj'] |",
        "AutoModelForImageClassification",
        "classes",
    ):
        assert words in html.unescape(card.text)
    for file in ("README.md", "results.json"):
        assert str(material.parent) not in (folder / file).read_text()  # no path of this machine
    assert '"encoder": "vit"' in (folder / "results.json").read_text()


def test_pushed_adapter_loads_from_the_hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        folder, _ = run("classification", "adapter", "--max_steps", 2, "--push_to_hub", "--hub_model_id", "me/lamps",
                        offline=False)  # fmt: skip
        files = server.files("me/lamps")
        assert {"adapter_model.safetensors", "adapter_config.json", "preprocessor_config.json", "curve.png",
                "results.json", "README.md"} <= files.keys()  # fmt: skip
        assert not any(name.startswith("checkpoint") for name in files)
        card = ModelCard(files["README.md"].decode())
        assert card.data.license_name == "fair-noncommercial-research-license" and card.data.eval_results
        found, here = (AutoModelForImageClassification.from_pretrained(name) for name in ("me/lamps", folder))
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(found.eval()(image).logits, here.eval()(image).logits)


def test_segmentation_learns_and_reloads_exactly(run: Run, material: Path, evaluated: list[Any]) -> None:
    names = ("--labels", material / "names.txt", "--layers", 0, 1, 2, 3)
    folder, printed = run("segmentation", "adapter", *names, "--num_train_epochs", 15, "--learning_rate", "5e-3",
                          "--head_learning_rate", "2e-2", family="convnext")  # fmt: skip
    assert_falls(folder, 0.8)
    assert "2 classes." in printed and "mean iou" in printed
    scores = json.loads((folder / "results.json").read_text())["metrics"]
    assert scores["mean_iou"] > 0.55, scores
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert isinstance(model, EupeForSegmentation) and model.config.id2label == {0: "ground", 1: "box"}
    data = load_segmentation(DataArguments(str(material / "maps")), seed=0)
    rows = TrainingRows(data.evaluation, AutoImageProcessor.from_pretrained(folder), "mask")
    assert torch.equal(reloaded_logits(model, rows), torch.cat([output.logits for output in evaluated]))


@pytest.mark.parametrize(
    ("task", "family"),
    [("classification", "vit"), pytest.param("segmentation", "convnext", marks=pytest.mark.slow)],
)
def test_resumed_run_ends_where_an_unbroken_one_does(
    run: Run, monkeypatch: pytest.MonkeyPatch, task: str, family: str
) -> None:
    # dropout, augmentation, rotary rescaling and order all go on; killed in the middle of the second epoch
    more = ("--eval_steps", 2, "--per_device_train_batch_size", 6)
    interrupt_and_resume(run, monkeypatch, task, family, 4, *more)


@pytest.mark.parametrize(
    ("task", "family"),
    [("classification", "vit"), pytest.param("segmentation", "convnext", marks=pytest.mark.slow)],
)
def test_run_killed_while_it_saves_resumes_from_the_checkpoint_before(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, task: str, family: str
) -> None:
    interrupt_and_resume(run, monkeypatch, task, family, 0)
    assert "checkpoint-2, the newest complete checkpoint. checkpoint-4 is not complete: " in caplog.text


@pytest.mark.slow
def test_small_batches_and_several_processes_give_the_same_curve(run: Run, material: Path, tmp_path: Path) -> None:
    # nothing random, and no batch norm, which would see parts of the batch
    options = ("--max_steps", 4, "--no_augment", "--dropout", 0, "--logging_steps", 1)
    whole, _ = run("classification", "whole", *options, family="convnext")
    halves = ("--per_device_train_batch_size", 4)
    parts, _ = run("classification", "parts", *options, *halves, "--gradient_accumulation_steps", 2, family="convnext")
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-5)
    two = tmp_path / "two"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2,
        ROOT / "examples" / "finetune_lora_classification.py", "--dataset", material / "classes", "--model",
        material / "convnext", "--output_dir", two, "--size", 64, "--dataloader_num_workers", 0, "--use_cpu",
        "--ddp_backend", "gloo", *options, *halves,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("24 images to train on") == 1
    assert losses(two) == pytest.approx(losses(whole), abs=1e-5)


def test_merged_model_is_an_ordinary_one(run: Run, material: Path, evaluated: list[Any]) -> None:
    folder, _ = run("classification", "merged", "--merge", "--num_train_epochs", 3, "--colour", 0)
    assert (folder / "model.safetensors").is_file() and not (folder / "adapter_config.json").exists()
    model = EupeForImageClassification.from_pretrained(folder)
    assert not any("lora" in name for name, _ in model.named_parameters())
    rows = classification_rows(material, folder)
    assert torch.equal(reloaded_logits(model, rows), torch.cat([output.logits for output in evaluated]))
    adapter = AutoModelForImageClassification.from_pretrained(folder / "checkpoint-9")
    best = json.loads((folder / "trainer_state.json").read_text())["best_model_checkpoint"]
    adapter = AutoModelForImageClassification.from_pretrained(best)
    difference = reloaded_logits(adapter, rows) - reloaded_logits(model, rows)
    assert 0 < difference.abs().max() < 1e-5
    assert ModelCard.load(folder / "README.md").data.library_name == "transformers"


@pytest.mark.parametrize("mode", ["probe", "full"])
def test_probe_and_full_modes_train_what_they_say(run: Run, material: Path, mode: str) -> None:
    options = ("--mode", mode, "--learning_rate", 0.02 if mode == "probe" else 1e-3, "--colour", 0)
    folder, _ = run(
        "classification", mode, *options, "--num_train_epochs", 5, "--gradient_checkpointing", True, "--size", 48
    )
    assert_falls(folder, 0.8)
    trained = EupeForImageClassification.from_pretrained(folder)
    # saved elsewhere, the model gets a processor of this size; pipelines read the other
    assert (trained.config.image_size, trained.config.problem_type) == (48, "single_label_classification")
    start = EupeForImageClassification.from_pretrained(material / "vit", num_labels=2)
    same = [torch.equal(a, b) for a, b in zip(trained.eupe.parameters(), start.eupe.parameters(), strict=True)]
    assert all(same) if mode == "probe" else sum(same) <= 1  # the mask token is not in use
    assert not (folder / "adapter_config.json").exists()


def test_layers_reduced_labels_and_early_stopping(run: Run) -> None:
    folder, printed = run(
        "segmentation", "adapter", "--reduce_labels", "--layers", 0, 2, "--early_stopping", 1, "--num_train_epochs", 9,
        "--learning_rate", 1e-9, "--head_learning_rate", 1e-9, "--no_augment",
    )  # fmt: skip
    assert ", 1 classes." in printed  # 0 is ignored
    assert len([line for line in printed.splitlines() if line.split()[0].isdigit()]) < 9 + 1
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert list(model.config.out_indices) == [1, 3]
    assert AutoImageProcessor.from_pretrained(folder).do_reduce_labels


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("classification", ["--dataset", "nowhere"], "The data set nowhere cannot be loaded"),
        ("classification", ["--model", "./nowhere"], "nowhere"),
        ("classification", ["--targets", "query"], "match"),
        ("classification", ["--layers", "7"], "out_indices"),
        ("segmentation", ["--labels", "names.txt"], "--labels names.txt is not a file."),
        ("segmentation", ["--merge", "--mode", "probe"], "--merge requires --mode lora"),
    ],
)
def test_bad_input_ends_with_one_sentence_before_the_first_step(
    run: Run, capsys: pytest.CaptureFixture[str], task: str, options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(task, "none", *options)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2 and words in message


def test_a_folder_in_use_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("classification", "adapter", "--max_steps", 1)
    with pytest.raises(SystemExit):
        run("classification", "adapter", "--max_steps", 1)
    assert "is in use: choose another --output_dir" in capsys.readouterr().err
    folder, _ = run("classification", "adapter", "--max_steps", 2, "--overwrite")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
