# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Options of the recipes, and the declarations of the tasks that they are read from."""

from pathlib import Path
from typing import Any

import pytest

from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.training import MODES, one_sentence, parse_recipe
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.multitask import MultiTask
from eupe_hf.training.tasks import TASKS
from eupe_hf.training.tasks.classification import ClassificationTask
from eupe_hf.training.tasks.segmentation import SegmentationTask
from eupe_hf.training.vlm import parse_vlm


RUNS: dict[str, Any] = {**TASKS, "multitask": MultiTask}


def needed(name: str, folder: Path) -> list[str]:
    """The options that each recipe needs."""
    data = ["--depth", "x"] if name == "multitask" else ["--dataset", "x"]
    return [*data, "--output_dir", str(folder / "out"), "--use_cpu"]


# ---- declarations ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", RUNS)
def test_defaults_of_every_task_and_mode_are_options(tmp_path: Path, name: str, mode: str) -> None:
    task = RUNS[name]
    found: dict[str, Any] = {}
    for group in parse_recipe(task, "", [*needed(name, tmp_path), "--mode", mode]):
        found |= vars(group)
    expected = {**task.defaults["all"], **task.defaults[mode]}
    assert "learning_rate" in expected and "metric_for_best_model" in expected
    assert {key: found[key] for key in expected} == expected and set(task.defaults) <= {"all", *MODES}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_declares_what_the_runs_ask(name: str) -> None:
    task = TASKS[name]
    assert task.name == name and task.model_class() is TASK_MODELS[name]
    assert task.help and task.score and task.score not in task.errors
    assert task.defaults["all"]["metric_for_best_model"] in (task.score, *task.errors)
    assert training_augmentation(task.data_class("", size=64), **task.crops).steps is not None
    assert name in vars(MultiTask.data_class(**{name: ["x"]}))


def test_the_tasks_of_both_sides_are_the_same() -> None:
    assert set(TASKS) == set(TASK_MODELS)


# ---- spelling ----


@pytest.mark.parametrize("name", RUNS)
def test_recipes_understand_both_spellings(tmp_path: Path, name: str) -> None:
    pairs = {"per_device_train_batch_size": "3", "layer_decay": "0.5", "image_column": "picture", "use_dora": "True"}
    found = []
    for spell in (str, lambda option: option.replace("_", "-")):
        options = [part for option, value in pairs.items() for part in (f"--{spell(option)}", value)]
        groups = [vars(group) for group in parse_recipe(RUNS[name], "", [*needed(name, tmp_path), *options])]
        found.append([{key: group[key] for key in pairs if key in group} for group in groups])
    assert found[0] == found[1] and sum(map(len, found[0])) == len(pairs)
    assert found[0][2] == {"per_device_train_batch_size": 3, "layer_decay": 0.5}


def test_options_of_one_of_several_tasks_have_both_spellings() -> None:
    for option in ("depth_scale=1000", "depth-scale=1000"):
        data = MultiTask.data_class(depth=["rooms", option])
        assert data.of_task("depth").depth_scale == 1000


def test_training_of_vlms_understands_both_spellings(tmp_path: Path) -> None:
    needed = ["--stage", "1", "--text", "t", "--dataset", "d", "--use_cpu", "True", "--bf16", "False"]
    for underline in "_-":
        given = {"output_dir": tmp_path / "out", "max_length": 99, "scale_factor": 2, "batch_size": 16, "size": 96}
        options = [str(part) for key, value in given.items() for part in (f"--{key.replace('_', underline)}", value)]
        model, data, args = parse_vlm("", [*needed, *options])
        assert (data.max_length, model.scale_factor, args.batch_size, model.size) == (99, 2, 16, 96)


# ---- reading ----


def test_defaults_follow_task_and_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, data, args = parse_recipe(ClassificationTask, "", ["--dataset", "x"])
    assert (model.rank, model.alpha, model.mode, args.learning_rate, data.size) == (16, 16.0, "lora", 1.25e-3, 256)
    assert args.output_dir == "eupe-classification-lora" and args.batch_eval_metrics
    given = ["--dataset", "x", "--mode", "full", "--layers", "0", "1", "--learning_rate", "1e-4", "--no_augment"]
    model, data, args = parse_recipe(SegmentationTask, "", given)
    assert (args.learning_rate, args.layer_decay, args.head_learning_rate, data.size) == (1e-4, 0.75, 1e-3, 512)
    assert model.layers == [0, 1] and not data.augment


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode", "probe", "--merge"], "--merge requires --mode lora"),
        (["--layer_decay", "1.5"], "--layer_decay must be above 0 and at most 1, got 1.5"),
        (["--early_stopping", "0"], "--early_stopping must be at least 1, got 0"),
        (["--held_out", "1"], "--held_out must be a share between 0 and 1"),
        (["--size", "0"], "--size must be at least 1, got 0"),
        (["--rank", "0"], "--rank must be at least 1, got 0"),
        (["--resume_from_checkpoint", "last"], "There is no checkpoint in .*used to resume from"),
        (["--resume_from_checkpoint", "elsewhere"], "There is no checkpoint at elsewhere"),
        (["--output_dir", "odd\udcff"], r"^odd\\xff cannot be used: its bytes are not UTF-8"),
        ([], "The output folder .*used is in use: choose another --output_dir"),
    ],
)
def test_options_are_refused(tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=words):
        parse_recipe(ClassificationTask, "", ["--dataset", "x", "--output_dir", str(tmp_path / "used"), *options])


def test_overwriting_removes_checkpoints_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    parse_recipe(ClassificationTask, "", ["--dataset", "x", "--output_dir", str(tmp_path), "--overwrite"])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_input_ends_with_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_, one_sentence():
        raise ValueError("two\n  lines")
    assert exit_.value.code == 2 and capsys.readouterr().err.endswith(": two lines\n")
    with pytest.raises(KeyError), one_sentence():
        raise KeyError("a bug stays a bug")
