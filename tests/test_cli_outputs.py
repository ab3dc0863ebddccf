# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the `eupe` command writes never replaces what must be kept, and work on many images goes on."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from conftest import FAMILIES, tiny_config
from PIL import Image
from typer.testing import CliRunner

from eupe_hf import EupeForImageClassification, EupeForMultiTask, cli
from eupe_hf.features import read_features


NAMES = ("a/0001.png", "b/0001.png", "x.jpg", "x.png")
DRAWING = ("predict", "visualize")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny classifier of each family, and a model with two heads."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for family in FAMILIES:
        EupeForImageClassification(tiny_config(family, num_labels=2)).save_pretrained(folder / family)
    heads = {"far": {"task": "depth"}, "a": {"task": "classification"}, "b-a": {"task": "classification"}}
    EupeForMultiTask.from_pretrained(folder / "vit", heads=heads).save_pretrained(folder / "multi")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photographs with two names, in three folders."""
    for number, name in enumerate(NAMES):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (60 * number, 0, 99)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def run(*arguments: object) -> Result:
    """The result of a command."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def draw(command: str, models: Path, family: str, *arguments: object) -> Result:
    """The result of a command that draws, with a small model."""
    if command == "predict":
        return run("predict", models / family, *arguments)
    return run("visualize", *arguments, "--model", models / family, "--size", 64)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("command", DRAWING)
def test_every_image_gets_a_picture_of_its_own(command: str, family: str, models: Path, photos: Path) -> None:
    out = photos.parent / "out"
    result = draw(command, models, family, photos, "--output", out)
    assert result.exit_code == 0, result.output
    end = "" if command == "predict" else "-pca"
    expected = [f"a/0001{end}.png", f"b/0001{end}.png", f"x{end}.png"]
    third = "x-2.png" if command == "predict" else "x-2-pca.png"
    assert sorted(contents(out)) == sorted([*expected, third])
    assert result.stdout.splitlines() == [str(out / name) for name in [*expected, third]]


@pytest.mark.parametrize("link", [None, Path.symlink_to, Path.hardlink_to], ids=["itself", "symlink", "hardlink"])
def test_a_drawing_never_replaces_the_photograph(link: object, models: Path, photos: Path) -> None:
    out = photos
    if link is Path.symlink_to:
        (out := photos.parent / "linked").symlink_to(photos)
    elif link is Path.hardlink_to:
        (out := photos.parent / "linked").mkdir()
        (out / "x.png").hardlink_to(photos / "x.png")
    before = contents(photos)
    for options in ([], ["--overwrite"]):
        result = draw("predict", models, "vit", photos / "x.png", "--output", out, *options)
        assert result.exit_code != 0
        assert "x.png is also an input, which is never replaced" in str(result.exception)
        assert contents(photos) == before


@pytest.mark.parametrize("command", DRAWING)
def test_what_exists_is_replaced_on_request_only(command: str, models: Path, photos: Path) -> None:
    out = photos.parent / "out"
    name = "b/0001.png" if command == "predict" else "b/0001-pca.png"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("of the user")
    result = draw(command, models, "vit", photos, "--output", out)
    assert f"{out / name} already exists: give another output, or --overwrite" in str(result.exception)
    assert contents(out) == {name: b"of the user"}  # not even the others were drawn
    assert draw(command, models, "vit", photos, "--output", out, "--overwrite").exit_code == 0
    assert len(contents(out)) == 4 and contents(out)[name][:4] == b"\x89PNG"


def test_pictures_of_an_earlier_run_are_no_photographs(models: Path, photos: Path) -> None:
    out = photos / "out"
    for options in ([], ["--overwrite"]):
        assert draw("predict", models, "vit", photos, "--output", out, *options).exit_code == 0
        assert sorted(contents(out)) == ["a/0001.png", "b/0001.png", "x-2.png", "x.png"]


def test_pictures_of_several_heads_have_names_of_their_own(models: Path, photos: Path) -> None:
    (photos / "x.jpg").rename(photos / "x-b.jpg")  # with the head a it would be called as x with the head b-a
    out = photos.parent / "out"
    result = draw("predict", models, "multi", photos, "--output", out)
    assert result.exit_code == 0, result.output
    assert len(contents(out)) == len(set(result.stdout.splitlines())) == 4 * 3


@pytest.mark.parametrize("kind", ["predict", "json", "visualize", "features"])
def test_unreadable_images_are_named_and_the_others_done(kind: str, models: Path, photos: Path) -> None:
    (photos / "a" / "broken.png").write_bytes((photos / "x.png").read_bytes()[:60])
    (photos / "lost.jpg").symlink_to(photos / "nowhere")
    (photos / "phone.heic").write_bytes(b"not decoded here")
    out = photos.parent / ("out.parquet" if kind == "features" else "out")
    arguments = {
        "predict": ["predict", models / "vit", photos, "--output", out],
        "json": ["predict", models / "vit", photos, "--json"],
        "visualize": ["visualize", photos, "--model", models / "vit", "--size", 64, "--output", out],
        "features": ["features", photos, "--model", models / "vit", "--workers", 0, "--output", out],
    }[kind]
    strict = run(*arguments, "--strict")
    assert not out.exists()
    assert "broken.png" in str(strict.exception) and "can't be read" in str(strict.exception)
    result = run(*arguments)
    assert result.exit_code == 3
    title, *lines = result.stderr.splitlines()[-4:]
    assert title == "Skipped 3 of 7 images that can't be read:"
    assert [name in line for name, line in zip(("broken.png", "lost.jpg", "phone.heic"), lines, strict=True)]
    if kind == "json":
        assert [Path(json.loads(line)["path"]).name for line in result.stdout.splitlines()] == [
            Path(name).name for name in NAMES
        ]
    elif kind == "features":
        assert [Path(path).relative_to(photos) for path in read_features(out).paths] == [*map(Path, NAMES)]
    else:
        assert len(contents(out)) == 4
    for name in NAMES:
        (photos / name).unlink()
    with pytest.raises(ValueError, match=r"^None of 3 images can be read\. .*broken\.png"):
        options = ["--overwrite"] if kind == "features" else []
        raise run(*arguments, *options).exception


def test_search_names_the_images_that_it_can_not_see(models: Path, photos: Path) -> None:
    (photos / "broken.png").write_bytes(b"")
    result = run("search", photos / "x.png", "--index", photos, "--model", models / "vit", "--count", 1)
    assert result.exit_code == 3 and result.stdout.startswith("1.0000  ")
    assert result.stderr.splitlines()[-2] == "Skipped 1 of 5 images that can't be read:"


@pytest.mark.parametrize("command", ["features", "predict", "visualize"])
def test_a_size_below_one_is_refused(command: str, models: Path, photos: Path) -> None:
    out = photos.parent / "out.parquet"
    options = [photos, "--output", out, "--size", 0]
    arguments = [models / "vit", *options] if command == "predict" else [*options, "--model", models / "vit"]
    result = run(command, *arguments)
    assert str(result.exception) == "The size must be at least 1 pixel, got 0." and not out.exists()


def test_an_option_that_no_image_survives_is_no_fault_of_the_images(models: Path, photos: Path) -> None:
    broken = photos.parent / "broken"
    EupeForImageClassification.from_pretrained(models / "vit").save_pretrained(broken)
    settings = json.loads((broken / "preprocessor_config.json").read_text())
    (broken / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5]}))
    result = run("features", photos, "--model", broken, "--workers", 0, "--output", photos.parent / "out.parquet")
    assert "image_mean and image_std have" in str(result.exception)
    assert not (photos.parent / "out.parquet").exists()
