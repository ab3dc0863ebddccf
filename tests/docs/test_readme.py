# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Commands and snippets of the README and the other guides run as they stand; their tables and links are right."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import ROOT, Finished, run_script
from drawn_counts import save_pictures
from hub_server import HubServer, hub_environment, use_hub
from huggingface_hub import ModelCard
from PIL import Image
from vlm_common import make_language_model, make_tokenizer

from eupe_hf import VARIANTS, EupeBackbone, EupeForSegmentation, EupeModel, variant_config
from eupe_hf.conversion.layouts import from_eupe


README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "eupe_hf").rglob("*.py"))
PUBLISHED_HERE = ("eupe-s", "eupe-convnext-t")  # the models that the snippets load
GUIDES = ("README.md", "examples/README.md", "conversion/README.md", "model_cards/README.md")
SET_UP = ("make demo", "make test")  # they install environments of their own


def blocks(guide: str, language: str) -> list[str]:
    """Fenced code blocks of a language, in order."""
    text = (ROOT / guide).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def clone(folder: Path) -> Path:
    """A folder that looks like a clone, as far as the README's commands read it."""
    folder.mkdir(exist_ok=True)
    for name in (
        "examples",
        "conversion",
        "model_cards",
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
    ):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, HubServer]]:
    """A folder that looks like a clone with a downloaded checkpoint in it, and a Hub that has the models."""
    folder = clone(tmp_path_factory.mktemp("clone"))
    torch.manual_seed(0)
    with HubServer() as server:
        for name in PUBLISHED_HERE:
            model = EupeModel(variant_config(name))
            file = folder / VARIANTS[name].raw_file
            torch.save(from_eupe(model.state_dict(), model.config, "raw"), file)
            server.add_repo(VARIANTS[name].repo_id, {file.name: file.read_bytes()})
        add_users_data(folder)
        yield folder, server


def add_users_data(folder: Path) -> None:
    """What the README's commands take from their user: a raw head, a trained model, data sets."""
    linear = {"conv.weight": torch.randn(150, 384, 1, 1), "conv.bias": torch.randn(150)}
    norm = {name: torch.rand(384) + 0.5 for name in ("weight", "bias", "running_mean", "running_var")}
    norm |= {"num_batches_tracked": torch.tensor(7)}
    head = {**linear, **{f"batchnorm_layer.{name}": tensor for name, tensor in norm.items()}}
    torch.save({"model": {f"segmentation_model.1.{key}": tensor for key, tensor in head.items()}}, folder / "head.pt")
    EupeForSegmentation(variant_config("eupe-s", num_labels=3)).save_pretrained(folder / "my-parts")
    for split, count in (("train", 5), ("validation", 1)):
        for shade, name in ((60, "night"), (200, "day")):
            (folder / "my-images" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40, 30), (shade, shade, shade + i)).save(
                    folder / "my-images" / split / name / f"{i}.png"
                )
    image = Image.open(ROOT / "examples" / "images" / "coffee.jpg").resize((120, 80))
    label_map = Image.fromarray((torch.arange(80 * 120).reshape(80, 120) % 3).to(torch.uint8).numpy())
    rows = {"image": [image], "annotation": [label_map]}
    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    make_language_model().save_pretrained(folder / "SmolLM2-360M-Instruct")
    make_tokenizer().save_pretrained(folder / "SmolLM2-360M-Instruct")
    questions = datasets.Dataset.from_dict(
        {"image": [image] * 2, "question": ["Is it hot?"] * 2, "answer": ["yes", "no"]}
    )
    (folder / "my-questions").mkdir()
    questions.cast_column("image", datasets.Image()).to_parquet(folder / "my-questions" / "validation.parquet")
    save_pictures(folder / "my-chats", 4, seed=0)
    (folder / "my-scenes").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "my-scenes" / "validation.parquet")


def run_snippets(guide: str, folder: Path, server: HubServer, home: Path) -> dict[str, Any]:
    """The variables that the Python snippets of a guide leave, run one after the other in a folder."""
    names: dict[str, Any] = {}
    with use_hub(server, home), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for snippet in blocks(guide, "python"):
            exec(compile(snippet, guide, "exec"), names)
    return names


def commands(guide: str) -> list[str]:
    """Lines of the shell blocks, without those that set up an environment."""
    lines = [line for block in blocks(guide, "bash") for line in block.strip().splitlines()]
    return [line for line in lines if line not in SET_UP]


def run_alone(line: str, folder: Path, environment: dict[str, str]) -> Finished:
    """Run a line as a shell would, in a process of its own."""
    words = [sys.executable if word == "python" else word for word in shlex.split(line)]
    if words[0] == "eupe":  # as the console script does, also where the package is not installed
        words[:1] = [sys.executable, "-m", "eupe_command"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return Finished(done.returncode, done.stdout, done.stderr)


def run_here(line: str, folder: Path) -> Finished:
    """Run a line in this process: most of a process's time are its imports."""
    program, *arguments = shlex.split(line)
    script = "eupe_hf.cli" if program == "eupe" else folder / arguments.pop(0)
    return run_script(script, *arguments, folder=folder, offline=False)


def run_commands(guide: str, folder: Path, server: HubServer, home: Path, alone: bool = False) -> str:
    """Run all lines of a guide in a folder, one after the other. Returns what they print."""
    printed = ""
    for line in commands(guide):
        offline = line.startswith("python -c")  # those of the section "Offline" run without a Hub
        if alone or offline or "--num_proc" in line:  # what starts workers needs a main program of its own
            result = run_alone(line, folder, hub_environment(server, home, offline=offline))
        else:
            with use_hub(server, home):
                result = run_here(line, folder)
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        printed += result.stdout
    return printed


@pytest.fixture
def place(workplace: tuple[Path, HubServer], tmp_path: Path) -> tuple[Path, HubServer, Path]:
    """A copy of the workplace for one guide, the Hub, and an empty home."""
    return shutil.copytree(workplace[0], tmp_path / "clone", symlinks=True), workplace[1], tmp_path / "home"


@pytest.mark.timeout(1500)
def test_readme_runs(place: tuple[Path, HubServer, Path]) -> None:
    folder, server, _ = place
    names = run_snippets("README.md", *place)
    assert names["outputs"].pooler_output.shape == (1, 384)
    assert names["outputs"].last_hidden_state.shape == (1, 261, 384)
    assert names["patches"].shape == (1, 256, 384)
    maps = names["backbone"](**names["inputs"]).feature_maps
    assert [tuple(m.shape) for m in maps] == [(1, 384, 16, 16)] * 4
    assert names["parts"].shape == (400, 600) and list(names["predictions"]) == ["scene", "parts"]
    assert names["classify"].model.config.id2label == {0: "cat", 1: "dog"}
    assert (folder / "my-merged" / "model.safetensors").is_file()
    assert type(names["vlm"]).__name__ == "EupeLlavaForConditionalGeneration"
    assert set(SET_UP) <= {line for block in blocks("README.md", "bash") for line in block.splitlines()}
    run_commands("README.md", *place)
    tuned = {file.name for file in (folder / "my-finetuned").iterdir()}
    assert {"adapter_model.safetensors", "eupe_config.json", "README.md", "results.json", "curve.png"} <= tuned
    back, original = (torch.load(folder / name, weights_only=True) for name in ("back.pt", "EUPE-ViT-S.pt"))
    key_thirds = {key for key in original if key.endswith("attn.qkv.bias")}
    assert all(torch.equal(back[key], original[key]) for key in original.keys() - key_thirds)
    assert "eupe-s" not in server.repo_ids_requested()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_guide_of_the_examples_runs(place: tuple[Path, HubServer, Path]) -> None:
    folder, server, _ = place
    names = run_snippets("examples/README.md", *place)
    assert names["masked"].shape == (1, 261, 384)
    assert names["last"].shape == (1, 6, 261, 261) and names["class_token"].shape == (1, 6, 1, 261)
    assert names["half"].dtype == torch.bfloat16
    assert names["fine"].shape == (1, 384, 48, 48)
    assert names["label_map"].shape == (400, 600) and 0 <= names["label_map"].min() <= names["label_map"].max() < 3
    assert names["targets"]["labels"][0]["class_labels"].tolist() == [2]
    assert set(names["found"]) == {"scores", "labels", "boxes"}
    assert list(names["multi"].heads) == ["parts", "scene", "more-parts"]
    assert list(names["joined"].heads) == ["parts", "again"]
    assert (folder / "my-parts-head" / "model.safetensors").stat().st_size < 30_000
    for decoder in (names["upernet"], names["rt_detr"]):
        encoders = [module for module in decoder.modules() if isinstance(module, EupeBackbone)]
        assert torch.equal(encoders[0].norm.weight, names["model"].norm.weight)
    assert (names["prompt"]["input_ids"] == names["vlm_processor"].image_token_id).sum() == 576
    assert 0 < len(names["answer"]) <= 8
    assert names["metrics"].compute() == {"mean_iou": 1.0, "pixel_accuracy": 1.0, "mean_accuracy": 1.0}
    printed = run_commands("examples/README.md", *place)
    assert "\n21596544\n" in printed and "linear probes   seen  unseen" in printed
    assert (folder / "my-drawn" / "results-1.png").is_file()
    assert {file.name for file in (folder / "predictions").iterdir()} == {"coffee.png", "chelsea.png"}
    assert (folder / "multitask.png").is_file() and (folder / "my-multitask" / "config.json").is_file()
    assert json.loads((folder / "knn.json").read_text())["metrics"] == {"accuracy@2": 1.0, "accuracy@5": 1.0}
    assert 0 < json.loads((folder / "segmentation.json").read_text())["metrics"]["pixel_accuracy"] < 1
    assert json.loads((folder / "pope.json").read_text())["num_examples"] == 2
    assistant = {file.name for file in (folder / "my-assistant").iterdir()}
    assert {"adapter_model.safetensors", "processor_config.json", "README.md", "curve.png"} <= assistant
    assert "eupe-s" not in server.repo_ids_requested()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_guide_of_conversion_runs(place: tuple[Path, HubServer, Path]) -> None:
    folder, _, _ = place
    names = run_snippets("conversion/README.md", *place)
    assert names["done"].is_equal and {row.max_abs_error for row in names["done"].rows} == {0.0}
    assert torch.equal(names["encoder"].norm.weight, names["done"].source.state["norm.weight"])
    assert names["back"].layout == "raw" and names["ade20k"].output == Path("my-ade20k")
    printed = run_commands("conversion/README.md", *place)
    assert "60 of 60 arrays are the same within 0.0001" in printed and "Nothing was sent" in printed
    original = torch.load(folder / "EUPE-ViT-S.pt", weights_only=True)
    for name in ("back.pt", "encoder.pt"):
        back = torch.load(folder / name, weights_only=True)
        assert back.keys() == original.keys() and all(torch.equal(back[key], original[key]) for key in original)
    heads = [torch.load(folder / name, weights_only=True)["model"] for name in ("head.pt", "head-again.pt")]
    assert heads[0].keys() == heads[1].keys() and all(torch.equal(heads[1][key], heads[0][key]) for key in heads[0])
    assert EupeForSegmentation.from_pretrained(folder / "my-ade20k").config.num_labels == 150


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_guide_of_the_cards_runs(place: tuple[Path, HubServer, Path]) -> None:
    run_snippets("model_cards/README.md", *place)
    run_commands("model_cards/README.md", *place)
    assert "Mean IoU 0.61 on 500 held-out photographs." in ModelCard.load(place[0] / "my-rooms" / "README.md").text


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("guide", GUIDES)
def test_commands_run_in_processes_of_their_own(place: tuple[Path, HubServer, Path], guide: str) -> None:
    run_snippets(guide, *place)
    run_commands(guide, *place, alone=True)


def test_make_demo_draws_pictures(workplace: tuple[Path, HubServer], tmp_path: Path) -> None:
    """What `make demo` does after installing: run the script, here without a Hub, so that it must say so."""
    folder, server = clone(tmp_path / "clone"), workplace[1]
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    line = told.strip().splitlines()[-1]
    python, *arguments = shlex.split(line)
    assert python.endswith("/bin/python")
    arguments[arguments.index("--output") + 1] = str(tmp_path / "pictures")
    environment = hub_environment(server, tmp_path / "home", offline=True)
    result = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "RANDOM weights" in result.stdout
    from PIL import Image

    for name in ("pca.png", "similarity.png"):
        picture = Image.open(tmp_path / "pictures" / name)
        assert picture.size == (512 + 8 + 512, 512 + 28)
        assert len(picture.getcolors(maxcolors=2**20)) > 1000


@pytest.mark.slow
def test_demo_with_published_weights_does_not_speak_of_random_ones(
    workplace: tuple[Path, HubServer], tmp_path: Path
) -> None:
    folder, server = clone(tmp_path / "clone"), workplace[1]
    script = [sys.executable, "examples/visualize_features.py", "--size", "128", "--output", str(tmp_path / "out")]
    environment = hub_environment(server, tmp_path / "home")
    result = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "RANDOM" not in result.stdout
    missing = subprocess.run(
        [*script, "--image", "nothing.jpg"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert missing.returncode == 1 and missing.stderr.strip() == "There is no image at nothing.jpg."


def test_table_of_models_equals_the_data() -> None:
    rows = re.findall(r"^\| `(eupe-[a-z-]+)` \| ([\d.]+) M \|(.*)\|$", README, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list(VARIANTS)
    for name, millions, rest in rows:
        variant, config = VARIANTS[name], variant_config(name)
        assert float(millions) == round(variant.num_parameters / 1e6, 1)
        paper = [variant.paper[key] for key in ("ADE20k", "NYUv2", "TextVQA", "GQA")]
        assert [float(cell) for cell in rest.split("|")] == [
            config.hidden_size, config.patch_size, *paper, variant.phone_ms[0],
        ]  # fmt: skip


def test_troubleshooting_quotes_messages_of_the_package() -> None:
    rows = re.findall(
        r"^\| `([^`]*)`[a-z ]* \| [A-Z]", README.split("## When something goes wrong")[1], flags=re.MULTILINE
    )
    assert len(rows) == 5
    for row in rows:
        for part in row.split("..."):
            words = part.strip(" ;").removeprefix("eupe-s ")
            flat = re.sub(r'"\s*\n\s*f?"', "", SOURCES)
            assert words in flat, f"no message contains {words!r}"


@pytest.mark.parametrize("guide", [*GUIDES, "tests/benchmarks/README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_lead_somewhere(guide: str) -> None:
    for target, _, place in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", (ROOT / guide).read_text(encoding="utf-8")):
        file = (ROOT / guide).parent / target if target else ROOT / guide
        assert file.exists(), target
        if place:
            file = file / "README.md" if file.is_dir() else file
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert place in anchors, f"{guide}: {file.name}#{place}"


def test_readme_fits_a_reader() -> None:
    assert len(README.splitlines()) <= 220


def test_environment_variable_is_the_one_in_the_code() -> None:
    from eupe_hf.hub import short_names

    assert short_names.DISABLE_VARIABLE in (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert os.environ.get(short_names.DISABLE_VARIABLE) is None
