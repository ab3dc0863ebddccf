# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Recipes in several processes, with the files in examples/accelerate, and models on several devices."""

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
import peft
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from conftest import ROOT
from modeling_common import FAMILIES, pixels, randomise, tiny_config
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import eupe_hf
from eupe_hf import EupeForImageClassification, EupeForMultiTask, EupeModel, EupeMultiTaskConfig
from eupe_hf.data.options import DataArguments
from eupe_hf.lora import lora_config
from eupe_hf.training import parse_recipe
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.classification import ClassificationTask, load_classification


RECIPE = ROOT / "examples" / "finetune_lora_classification.py"
CONFIGS = ROOT / "examples" / "accelerate"
BLOCKS = {"vit": "EupeViTLayer", "convnext": "EupeConvNextLayer"}
MODELS = ("EupeModel", "EupeBackbone", "EupeForImageClassification", "EupeForSegmentation", "EupeForDepthEstimation",
          "EupeForObjectDetection", "EupeForMultiTask", "adapter")  # fmt: skip
# Nothing random: no augmentation, no dropout, and encoders without rotary rescaling.
PLAIN = ("--max_steps", 4, "--no_augment", "--dropout", 0, "--logging_steps", 1, "--size", 64,
         "--dataloader_num_workers", 0)  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny encoders of both families, and class folders."""
    folder, noise = tmp_path_factory.mktemp("material"), np.random.default_rng(0)
    for family, options in (("vit", {"pos_embed_rescale": None}), ("convnext", {})):
        torch.manual_seed(0)
        EupeModel(tiny_config(family, layerscale_value=0.5, **options)).save_pretrained(folder / family)
    for split, count in (("train", 12), ("validation", 4)):
        for name, colour in (("red", (190, 60, 60)), ("blue", (60, 60, 190))):
            (folder / "classes" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.array(colour) + noise.integers(-50, 50, (40, 48, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / "classes" / split / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def alone(material: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs in one process with batches of 8."""
    folders = {}
    for family in FAMILIES:
        folders[family] = tmp_path_factory.mktemp("alone") / family
        options = ["--dataset", material / "classes", "--model", material / family, "--output_dir", folders[family]]
        options += ["--per_device_train_batch_size", 8, "--use_cpu", *PLAIN]
        runpy.run_path(str(RECIPE))["main"](list(map(str, options)))
    return folders


def launch(config: str, folder: Path, *command: Any, **environment: str) -> subprocess.CompletedProcess:
    """`accelerate launch` in a process of its own, offline; the command is that after the name of the file."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml"]
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        list(map(str, (*start, *command))), env=os.environ | variables, capture_output=True, text=True, timeout=300
    )


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def assert_equals_one_process(result: subprocess.CompletedProcess, folder: Path, alone: Path) -> None:
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("24 images to train on") == 1
    # 4 images per device: there were two, and they did train together
    assert json.loads((folder / "results.json").read_text())["settings"]["batch_size"] == 8
    assert len(losses(alone)) == 4
    assert losses(folder) == pytest.approx(losses(alone), abs=1e-5)


@pytest.mark.slow
def test_accelerate_launch_gives_the_curve_of_one_process(
    material: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "two"
    options = ("--dataset", material / "classes", "--model", material / "vit", "--output_dir", folder)
    halves = ("--per_device_train_batch_size", 4, "--use_cpu")
    result = launch("multi_cpu", tmp_path, ROOT / "tests" / "ddp_on_cpu.py", RECIPE, *options, *halves, *PLAIN)
    assert_equals_one_process(result, folder, alone["vit"])
    assert result.stdout.count("DDP wrappers: 1 made, 0 left") == 2


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("family", ["vit", pytest.param("convnext", marks=pytest.mark.slow)])
def test_sharded_training_gives_the_curve_of_one_process_and_reloads(
    material: Path, alone: dict[str, Path], tmp_path: Path, family: str
) -> None:
    folder = tmp_path / "sharded"
    options = ("--dataset", material / "classes", "--model", material / family, "--output_dir", folder)
    blocks = ("--fsdp_transformer_layer_cls_to_wrap", BLOCKS[family])
    script = ROOT / "tests" / "fsdp_on_cpu.py"
    result = launch("fsdp2", tmp_path, *blocks, script, RECIPE, *options, "--per_device_train_batch_size", 4, *PLAIN)
    assert_equals_one_process(result, folder, alone[family])
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    data = load_classification(DataArguments(str(material / "classes")), seed=0)
    rows = TrainingRows(data.evaluation, AutoImageProcessor.from_pretrained(folder), "class")
    batch = {key: torch.stack([row[key] for row in rows]) for key in ("pixel_values", "labels")}
    expected = json.loads((folder / "results.json").read_text())["metrics"]["loss"]
    assert float(model(**batch).loss) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("multi_cpu", DistributedType.MULTI_GPU),
        ("multi_gpu", DistributedType.MULTI_GPU),
        ("fsdp2", DistributedType.FSDP),
        ("deepspeed_zero2", DistributedType.DEEPSPEED),
        ("deepspeed_zero3", DistributedType.DEEPSPEED),
    ],
)
def test_configuration_files_are_read_by_accelerate(name: str, kind: DistributedType) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == kind and config.num_processes == 2
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for key in (*config.fsdp_config, *config.deepspeed_config):
        assert key in known, key  # a misspelt option would be passed over
    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / f"{name}.yaml"), "script.py"])
    arguments = _validate_launch_command(arguments)[0]
    assert (arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed) == (
        kind == DistributedType.MULTI_GPU, kind == DistributedType.FSDP, kind == DistributedType.DEEPSPEED,
    )  # fmt: skip
    if kind == DistributedType.DEEPSPEED:
        assert arguments.zero_stage == int(name[-1])


def test_there_is_a_test_for_each_configuration_file() -> None:
    assert {file.stem for file in CONFIGS.iterdir()} == {
        "multi_cpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "deepspeed_zero3",
    }  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_to_shard_are_those_of_the_family(family: str) -> None:
    named = load_config_from_file(str(CONFIGS / "fsdp2.yaml")).fsdp_config["fsdp_transformer_layer_cls_to_wrap"]
    assert named == BLOCKS["vit"] and BLOCKS["convnext"] in (CONFIGS / "fsdp2.yaml").read_text()
    model = EupeForImageClassification(tiny_config(family, num_labels=2))
    model = peft.get_peft_model(model, lora_config(model))
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=[BLOCKS[family]]
    )
    plugin.set_auto_wrap_policy(model)  # raises where there is no such class
    (found,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert sum(isinstance(module, found) for module in model.modules()) == {"vit": 3, "convnext": 5}[family]
    assert found.__name__ in model.get_base_model()._no_split_modules
    assert not any(
        name in model.get_base_model()._no_split_modules for name in BLOCKS.values() if name != found.__name__
    )


@pytest.mark.parametrize(
    ("variables", "options", "words"),
    [
        ({"WORLD_SIZE": "2"}, (), "2 processes were started, but each would train alone"),
        ({"ACCELERATE_USE_FSDP": "true"}, ("--merge",), "--merge needs whole weights, which FSDP has in no process"),
    ],
)
def test_processes_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str], options: tuple[str, ...], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        parse_recipe(ClassificationTask, "", ["--dataset", "d", "--output_dir", str(tmp_path / "out"), *options])


# ---- device_map ----


def build(kind: str, family: str, folder: Path) -> type:
    """Save a random model; its class."""
    config = tiny_config(family)
    if kind == "EupeForMultiTask":
        heads = {"far": {"task": "depth"}, "scene": {"task": "classification", "num_labels": 2}}
        model = EupeForMultiTask(EupeMultiTaskConfig(encoder_config=config, heads=heads))
    elif kind == "adapter":
        randomise(EupeModel(config)).save_pretrained(folder / "base")
        base = EupeForImageClassification.from_pretrained(folder / "base", num_labels=2)
        model = peft.get_peft_model(base, lora_config(base))
    else:
        model = getattr(eupe_hf, kind)(config)
    randomise(model).save_pretrained(folder / "model")
    return EupeForImageClassification if kind == "adapter" else type(model)


def tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(dict(output)) if torch.is_tensor(leaf)]


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_device_maps_give_equal_outputs(tmp_path: Path, family: str, kind: str) -> None:
    model_class = build(kind, family, tmp_path)
    whole = model_class.from_pretrained(tmp_path / "model").eval()
    expected = tensors(whole(pixels()))
    assert len(expected) >= (2 if kind == "EupeModel" else 1)
    size = sum(parameter.numel() * 4 for parameter in whole.parameters())
    few = {"device_map": "auto", "max_memory": {"cpu": int(0.6 * size)}, "offload_folder": tmp_path / "disk"}
    for options in ({"device_map": "auto"}, {"device_map": {"": "cpu"}}, few):
        if kind == "adapter" and options is few:
            continue
        loaded = model_class.from_pretrained(tmp_path / "model", **options).eval()
        on_disk = [parameter for parameter in loaded.parameters() if parameter.is_meta]
        assert bool(on_disk) is (options is few)
        found = tensors(loaded(pixels()))
        assert len(found) == len(expected) and all(map(torch.equal, found, expected)), options


@torch.no_grad()
def test_new_heads_and_adapted_encoders_stay_in_memory(tmp_path: Path) -> None:
    build("adapter", "vit", tmp_path)
    disk = {"eupe.encoder.embeddings": "cpu", "eupe.encoder.rotary": "cpu", "eupe.encoder.layers": "disk",
            "eupe.norm": "cpu"}  # fmt: skip
    options = {"offload_folder": tmp_path / "disk"}
    with pytest.raises(ValueError, match=r"head\.classifier\.bias is not in the checkpoint, and device_map puts it"):
        EupeForImageClassification.from_pretrained(tmp_path / "model", device_map=disk | {"head": "disk"}, **options)
    with pytest.raises(ValueError, match="Parts of this EupeForImageClassification are offloaded, and an adapter"):
        EupeForImageClassification.from_pretrained(tmp_path / "model", device_map=disk | {"head": "cpu"}, **options)
    torch.manual_seed(0)
    whole = EupeForImageClassification.from_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    split = EupeForImageClassification.from_pretrained(tmp_path / "base", device_map=disk | {"head": "cpu"}, **options)
    assert sum(parameter.is_meta for parameter in split.parameters()) > 40
    assert torch.equal(split.eval()(pixels()).logits, whole.eval()(pixels()).logits)
