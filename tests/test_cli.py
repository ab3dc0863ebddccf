# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The `eupe` command: what it prints and writes, exit codes, and one sentence for each mistake."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from common import ROOT, tiny_config
from hub_server import HubServer, use_hub
from PIL import Image
from published import checkpoint
from typer.testing import CliRunner
from vlm_common import make_vlm

from eupe_hf import VARIANTS, EupeForImageClassification, EupeForMultiTask, EupeForSegmentation, EupeModel, cli


PHOTOS = ROOT / "examples" / "images"
COMMANDS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)


def eupe(*arguments: object) -> list[str]:
    """Lines that a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def refusal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What a command says about a mistake: one line on stderr, nothing on stdout, exit code 2."""
    monkeypatch.setattr(sys, "argv", ["eupe", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert ended.value.code == 2 and not told.out
    (line,) = told.err.splitlines()
    assert line.startswith("eupe: ")
    return line


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, task models, a multi-task model and a raw file."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    encoder = EupeModel(tiny_config("vit", layerscale_value=0.5))
    encoder.save_pretrained(folder / "encoder")
    (folder / "EUPE-ViT-T.pt").write_bytes(checkpoint()[0])
    for name in ("cut.safetensors", "cut.parquet"):
        (folder / name).write_bytes(b"x")
    EupeModel(tiny_config("convnext")).save_pretrained(folder / "convnext")
    EupeForSegmentation(tiny_config("vit", num_labels=3)).save_pretrained(folder / "parts")
    EupeForImageClassification(tiny_config("vit", id2label={0: "cup", 1: "cat"})).save_pretrained(folder / "scene")
    heads = {"far": {"task": "depth"}, "boxes": {"task": "detection", "num_labels": 2}}
    EupeForMultiTask.from_pretrained(folder / "encoder", heads=heads).save_pretrained(folder / "multi")
    return folder


def test_every_command_explains_itself_with_an_example() -> None:
    assert COMMANDS == ["features", "info", "list", "predict", "pull", "search", "visualize"]
    for command in COMMANDS:
        text = " ".join(eupe(command, "--help"))
        assert f"Example: eupe {command}" in text


def test_list_names_the_six() -> None:
    rows = json.loads(eupe("list", "--json")[0])
    assert [row["name"] for row in rows] == list(VARIANTS)
    assert rows[1] == {
        "name": "eupe-s", "parameters": 21_601_152, "width": 384, "stride": 16, "repository": "facebook/EUPE-ViT-S",
    }  # fmt: skip
    lines = eupe("list")
    assert len(lines) == 7 and re.search(r"eupe-convnext-b +87\.6 M +1024 +32  facebook/EUPE-ConvNeXt-B", lines[6])


def test_pull_prints_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo("facebook/EUPE-ViT-T", {"EUPE-ViT-T.pt": checkpoint()[0]})
        (folder,) = eupe("pull", "eupe-t")
        assert EupeModel.from_pretrained(folder).config.hidden_size == 192
        assert "Did you mean 'eupe-t'?" in refusal(capsys, monkeypatch, "pull", "eupe-tt")


def test_info_tells_what_things_are(models: Path, tmp_path: Path) -> None:
    def told(path: Path) -> dict:
        return json.loads(eupe("info", path, "--json")[0])

    raw = told(models / "EUPE-ViT-T.pt")
    assert (raw["kind"], raw["model"], raw["layout"], raw["dtypes"]) == ("encoder", "eupe-t", "raw", ["float32"])
    parts = told(models / "parts")
    assert (parts["kind"], parts["layout"]) == ("EupeForSegmentation", "eupe") and parts["tensors of a head"] > 0
    assert told(models / "multi") == {"kind": "multi-task model", "heads": ["boxes (detection)", "far (depth)"]}
    make_vlm("vit")[0].save_pretrained(tmp_path / "vlm")
    expected = {"kind": "vision-language model", "language model": "llama", "image tokens": 16}
    assert told(tmp_path / "vlm") == expected
    assert "layout: raw" in eupe("info", models / "EUPE-ViT-T.pt")


def test_info_describes_an_adapter(models: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from eupe_hf.lora import lora_config

    model = EupeForImageClassification.from_pretrained(models / "scene")
    peft.get_peft_model(model, lora_config(model, r=4)).save_pretrained(tmp_path / "adapter")
    told = json.loads(eupe("info", tmp_path / "adapter", "--json")[0])
    assert (told["kind"], told["rank"]) == ("LORA adapter", 4)


@pytest.mark.parametrize("suffix", [".safetensors", ".parquet"])
def test_features_then_search_finds_the_image_itself(models: Path, tmp_path: Path, suffix: str) -> None:
    index = tmp_path / f"photos{suffix}"
    options = ["--model", models / "encoder", "--size", 64, "--workers", 0]
    told = json.loads(eupe("features", PHOTOS, "--output", index, *options, "--json")[0])
    assert told == {"output": str(index), "images": 3, "skipped": 0, "resumed": 0}
    assert json.loads(eupe("info", index, "--json")[0]) == {
        "kind": "features", "images": 3, "width": 32, "model": str(models / "encoder"),
    }  # fmt: skip
    rows = json.loads(eupe("search", PHOTOS / "coffee.jpg", "--index", index, "--count", 2, "--json")[0])
    assert Path(rows[0]["path"]).name == "coffee.jpg" and len(rows) == 2
    (line,) = eupe("search", PHOTOS / "chelsea.jpg", "--index", PHOTOS, "--model", models / "encoder", "--count", 1)
    assert line.startswith("1.0000") and line.endswith("chelsea.jpg")


def test_features_count_what_they_leave_out(models: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    arguments = ["features", PHOTOS, tmp_path / "bad.png", "--output", tmp_path / "out.safetensors"]
    result = CliRunner().invoke(
        cli.app, [str(a) for a in [*arguments, "--model", models / "encoder", "--workers", 0]], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "skipped: 1" in result.stdout.splitlines()
    assert "Left out 1 images that can't be read" in result.stderr and "bad.png" in result.stderr


def test_predict_draws_or_tells(models: Path, tmp_path: Path) -> None:
    photo = PHOTOS / "coffee.jpg"
    saved = eupe("predict", models / "multi", photo, "--output", tmp_path / "out")
    assert [Path(line).name for line in saved] == ["coffee-boxes.png", "coffee-far.png"]
    width, height = Image.open(photo).size
    assert all(Image.open(line).height >= height and Image.open(line).width >= 2 * width for line in saved)
    told = json.loads(eupe("predict", models / "multi", photo, "--threshold", 0, "--json")[0])
    assert told["path"] == str(photo) and not told["is_random"]
    assert 0 < told["far"]["least"] <= told["far"]["median"] <= told["far"]["most"] <= 10
    assert all(0 <= box["score"] <= 1 and len(box["box"]) == 4 for box in told["boxes"]["boxes"])
    told = json.loads(eupe("predict", models / "parts", photo, "--json")[0])
    assert sum(told["segmentation"]["shares"].values()) == pytest.approx(1)
    scores = json.loads(eupe("predict", models / "scene", photo, "--json")[0])["classification"]["scores"]
    assert sum(scores.values()) == pytest.approx(1) and set(scores) == {"cup", "cat"}
    told = json.loads(eupe("predict", models / "encoder", photo, "--task", "depth", "--json")[0])
    assert told["is_random"]


@pytest.mark.parametrize("kind", ["pca", "similarity", "attention"])
def test_visualize_draws_each_image(models: Path, tmp_path: Path, kind: str) -> None:
    saved = eupe(
        "visualize", PHOTOS, "--kind", kind, "--model", models / "encoder", "--size", 128, "--output", tmp_path
    )
    assert [Path(line).name for line in saved] == [f"{name}-{kind}.png" for name in ("astronaut", "chelsea", "coffee")]
    for line in saved:
        picture = Image.open(line)
        assert picture.size == (2 * 128 + 8, 128)  # the photograph beside the map, or two heads
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 500


def test_visualize_in_tiles_draws_another_picture_of_the_same_size(models: Path, tmp_path: Path) -> None:
    pictures = []
    for tile in ([], ["--tile", 64], ["--tile", 128]):
        (saved,) = eupe(
            "visualize",
            PHOTOS / "coffee.jpg",
            "--model",
            models / "encoder",
            "--size",
            128,
            *tile,
            "--output",
            tmp_path,
        )
        pictures.append(np.asarray(Image.open(saved)))
    whole, in_tiles, in_one = pictures
    assert np.array_equal(whole, in_one) and in_tiles.shape == whole.shape
    assert not np.array_equal(whole, in_tiles)


def test_visualize_matches_an_image_with_itself(models: Path, tmp_path: Path) -> None:
    options = ["--kind", "matches", "--model", models / "convnext", "--size", 128, "--output", tmp_path]
    (saved,) = eupe("visualize", PHOTOS / "coffee.jpg", PHOTOS / "astronaut.jpg", *options)
    assert Image.open(saved).size == (2 * 128 + 8, 128)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", "nothing.pt"], "nothing.pt"),
        (
            ["info", "{models}/cut.safetensors"],
            "cut.safetensors (1 bytes) cannot be read as a .safetensors checkpoint",
        ),
        (["search", "{photo}", "--index", "{models}/cut.safetensors"], "cannot be read as a .safetensors file"),
        (["search", "{photo}", "--index", "{models}/cut.parquet"], "cut.parquet"),
        (["features", "nothing", "--output", "a.safetensors"], "There is no file or folder nothing."),
        (["search", "nothing.jpg", "--index", "a.parquet"], "There is no image nothing.jpg."),
        (["predict", "{models}/encoder", "{photo}"], "is an encoder without a head: say which to put on it"),
        (["predict", "{models}/scene", "nothing.jpg"], "There is no file or folder nothing.jpg."),
        (["visualize", "{photo}", "--kind", "matches", "--model", "{models}/encoder"], "between two images, got 1"),
        (
            ["visualize", "{photo}", "--size", "128", "--tile", "50", "--model", "{models}/encoder"],
            "tile must be a multiple of 16, and overlap 0 or a smaller one, got 50",
        ),
        (["visualize", "{photo}", "--kind", "attention", "--tile", "64", "--model", "{models}/encoder"], "over tiles"),
        (
            ["visualize", "{photo}", "--kind", "attention", "--model", "{models}/convnext"],
            "A ConvNeXt has no attention",
        ),
        (
            ["visualize", "{photo}", "--kind", "similarity", "--patch", "99", "0", "--model", "{models}/encoder"],
            "Patch (99, 0) lies outside the grid",
        ),
    ],
)
def test_mistakes_are_answered_by_a_sentence(
    arguments: list[str],
    sentence: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [argument.format(models=models, photo=PHOTOS / "coffee.jpg") for argument in arguments]
    assert sentence in refusal(capsys, monkeypatch, *filled)
