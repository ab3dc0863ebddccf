# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The `eupe` command: what it prints and writes, exit codes, and a one-line message for bad input."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from conftest import (
    FULL_SIZE,
    ROOT,
    assert_raw_came_back,
    assert_same_bits,
    golden_path,
    published_state,
    requires_shared,
    tiny_config,
)
from hub_server import HubServer, use_hub
from PIL import Image
from published import checkpoint
from typer.testing import CliRunner
from vlm_common import make_vlm

from eupe_hf import (
    VARIANTS,
    EupeForImageClassification,
    EupeForMultiTask,
    EupeForSegmentation,
    EupeImageProcessor,
    EupeModel,
    cli,
)
from eupe_hf.conversion.checkpoints import Checkpoint, load_checkpoint, read_state_dict
from eupe_hf.conversion.inspect import describe
from eupe_hf.lora import lora_config


PHOTOS = ROOT / "examples" / "images"
COMMANDS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)


def eupe(*arguments: object) -> list[str]:
    """Lines that a command prints; it must succeed."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def difference(*arguments: object) -> tuple[str, str]:
    """What a command prints, on stdout and stderr, where a comparison failed: exit code 1."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    return result.stdout, result.stderr


def refusal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """What a command says about bad input: one line on stderr, nothing on stdout, exit code 2."""
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
    assert COMMANDS == ["convert", "features", "info", "list", "predict", "pull", "search", "verify", "visualize"]
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


@pytest.mark.parametrize("content", ["[]", "[" * 100_000, "", "{"])
def test_info_refuses_json_that_is_no_object(tmp_path: Path, content: str) -> None:
    for name in ("adapter_config.json", "config.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            describe(tmp_path)
        (tmp_path / name).unlink()


def test_features_then_search_finds_the_image_itself(models: Path, tmp_path: Path) -> None:
    index = tmp_path / "photos.parquet"
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
    arguments = ["features", PHOTOS, tmp_path / "bad.png", "--output", tmp_path / "out.parquet"]
    result = CliRunner().invoke(
        cli.app, [str(a) for a in [*arguments, "--model", models / "encoder", "--workers", 0]], catch_exceptions=False
    )
    assert result.exit_code == 3
    assert "skipped: 1" in result.stdout.splitlines()
    title, line = result.stderr.splitlines()[-2:]
    assert title == "Skipped 1 of 4 images that can't be read:" and str(tmp_path / "bad.png") in line


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


def test_predict_takes_an_adapter(models: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = EupeForImageClassification.from_pretrained(models / "encoder", id2label={0: "cup", 1: "cat"})
    adapted = peft.get_peft_model(model, lora_config(model)).eval()
    for parameter in (p for p in adapted.parameters() if p.requires_grad):  # adapter and head
        torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    processor = EupeImageProcessor()
    processor.save_pretrained(tmp_path / "adapter")
    photo = PHOTOS / "coffee.jpg"
    told = json.loads(eupe("predict", tmp_path / "adapter", photo, "--json")[0])
    with torch.inference_mode():
        expected = adapted(**processor(photo, return_tensors="pt")).logits.softmax(dim=1)[0]
    scores = told["classification"]["scores"]
    assert [scores["cup"], scores["cat"]] == pytest.approx(expected.tolist(), abs=1e-5) and not told["is_random"]


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
            tmp_path / "-".join(["out", *map(str, tile)]),
        )
        pictures.append(np.asarray(Image.open(saved)))
    whole, in_tiles, in_one = pictures
    assert np.array_equal(whole, in_one) and in_tiles.shape == whole.shape
    assert not np.array_equal(whole, in_tiles)


def test_visualize_matches_an_image_with_itself(models: Path, tmp_path: Path) -> None:
    options = ["--kind", "matches", "--model", models / "convnext", "--size", 128, "--output", tmp_path]
    (saved,) = eupe("visualize", PHOTOS / "coffee.jpg", PHOTOS / "astronaut.jpg", *options)
    assert Image.open(saved).size == (2 * 128 + 8, 128)


# ---- converting and verifying ----


@pytest.mark.parametrize("name", FULL_SIZE)
def test_raw_comes_back_through_our_layout(name: str, tmp_path: Path) -> None:
    state = published_state(name)
    torch.save(state, tmp_path / "raw.pt")
    told = json.loads(eupe("convert", tmp_path / "raw.pt", tmp_path / "ours", "--variant", name, "--json")[0])
    count = told.pop("compared")
    assert count > 100 and told == {
        "output": str(tmp_path / "ours"), "layout": "eupe", "source_layout": "raw", "model": name, "head_tensors": 0,
        "projector_tensors": 0, "is_equal": True, "within": count, "tolerance": 0, "max_abs_error": 0,
    }  # fmt: skip
    lines = eupe("convert", tmp_path / "ours", tmp_path / "back.pt", "--to", "raw")
    assert re.fullmatch(rf"Compared {count} tensors, [\d,]+ values: all equal to the source .*", lines[0])
    assert lines[1:] == [f"Done: {tmp_path / 'back.pt'} holds the encoder in layout raw."]
    assert_raw_came_back(read_state_dict(tmp_path / "back.pt"), state)


def test_dinov3_layout_is_written_and_read(models: Path, tmp_path: Path) -> None:
    raw = models / "EUPE-ViT-T.pt"
    eupe("convert", raw, tmp_path / "dinov3", "--to", "dinov3")
    assert json.loads((tmp_path / "dinov3" / "config.json").read_text())["architectures"] == ["DINOv3ViTModel"]
    lines = eupe("convert", tmp_path / "dinov3", tmp_path / "ours")
    assert lines[0] == f"Read {tmp_path / 'dinov3'}: eupe-t, layout dinov3."
    assert lines[-1] == f"Done: EupeModel.from_pretrained({str(tmp_path / 'ours')!r}) loads it."
    assert_same_bits(EupeModel.from_pretrained(tmp_path / "ours").state_dict(), checkpoint()[1])


def test_projectors_are_kept_on_request(models: Path, tmp_path: Path) -> None:
    projectors = {"projectors.proxy.cls.0.weight": torch.full((6, 4), 0.25)}
    torch.save({**torch.load(models / "EUPE-ViT-T.pt"), **projectors}, tmp_path / "raw.pt")
    lines = eupe("convert", tmp_path / "raw.pt", tmp_path / "without")
    assert "1 tensors of the distillation adapters: dropped (eupe convert --keep-projectors keeps them)." in lines
    assert not (tmp_path / "without" / "projectors.safetensors").exists()
    eupe("convert", tmp_path / "raw.pt", tmp_path / "with", "--keep-projectors")
    assert_same_bits(load_checkpoint(tmp_path / "with").projectors, projectors)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_head_is_written_and_joined_again(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EupeForSegmentation(tiny_config(family, num_labels=3, out_indices=[1, 2]))
    model.save_pretrained(tmp_path / "parts")
    lines = eupe("convert", tmp_path / "parts", tmp_path / "raw.pt", "--to", "raw", "--head", tmp_path / "head.pt")
    assert f"7 tensors of the head: written to {tmp_path / 'head.pt'}." in lines
    assert "7 tensors of the head of a task model: dropped." in eupe("convert", tmp_path / "parts", tmp_path / "tiny")
    options = ["--head", tmp_path / "head.pt", "--task", "segmentation", "--layers", "0,1"]
    lines = eupe("convert", tmp_path / "tiny", tmp_path / "again", *options)
    channels = model.head.linear.conv.in_channels
    assert lines[1] == (
        f"Read {tmp_path / 'head.pt'}: a segmentation head, from {channels} channels of layers 0, 1 to 3."
    )
    again = EupeForSegmentation.from_pretrained(tmp_path / "again")
    assert again.config.out_indices == [1, 2]
    assert_same_bits(again.state_dict(), model.state_dict())


def test_conversion_that_changed_a_tensor_is_told_with_code_1(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(save):
        def save_damaged(source: Checkpoint, *arguments: object) -> None:
            state = {key: tensor.clone() for key, tensor in source.state.items()}
            state["norm.weight"][3] += 0.5
            save(dataclasses.replace(source, state=state), *arguments)

        return save_damaged

    for name in ("save_model_folder", "save_layout"):
        module = sys.modules["eupe_hf.conversion.convert"]
        monkeypatch.setattr(module, name, damage(getattr(module, name)))
    for target, output in (("eupe", tmp_path / "ours"), ("raw", tmp_path / "back.pt")):
        out, err = difference("convert", models / "EUPE-ViT-T.pt", output, "--to", target)
        assert out == "" and err.endswith(f"{output} would differ from its source: nothing was written.\n")
        assert re.search(r"norm.weight +192 +5\.00e-01 +TOO LARGE", err) and "210 of 211 arrays are the same" in err
        out, err = difference("convert", models / "EUPE-ViT-T.pt", output, "--to", target, "--json")
        told = json.loads(out)
        assert (told["is_equal"], told["compared"], told["within"]) == (False, 211, 210) and "differs" not in err
        assert told["max_abs_error"] == pytest.approx(0.5)


def test_verify_compares_what_two_checkpoints_compute(models: Path, tmp_path: Path) -> None:
    eupe("convert", models / "convnext", tmp_path / "same")
    lines = eupe("verify", tmp_path / "same", "--against", models / "convnext", "--tolerance", "0")
    assert lines[-1].startswith("28 of 28 arrays are the same within 0; the largest error is 0.0")
    model = EupeModel.from_pretrained(models / "convnext")
    model.norm.bias.data[0] += 1e-2
    model.save_pretrained(tmp_path / "other")
    compared = ["verify", tmp_path / "other", "--against", models / "convnext"]
    out, err = difference(*compared)
    assert re.search(r"1x256x256/pooler_output +1x32 +1\.00e-02 +TOO LARGE", out) and err == ""
    told = json.loads(difference(*compared, "--json")[0])
    assert told.pop("max_abs_error") == pytest.approx(1e-2, rel=1e-4)
    # two outputs of each of the four sizes come after the norm: the last hidden state and the pooled one
    assert told == {"is_equal": False, "compared": 28, "within": 20, "tolerance": 1e-4}
    assert json.loads(eupe(*compared, "--tolerance", "0.1", "--json")[0])["is_equal"]


def test_verify_tells_an_output_that_is_no_number(models: Path, tmp_path: Path) -> None:
    model = EupeModel.from_pretrained(models / "encoder")
    model.norm.weight.data[:] = 3e38
    model.save_pretrained(tmp_path / "huge")
    told = json.loads(difference("verify", tmp_path / "huge", "--against", tmp_path / "huge", "--json")[0])
    assert not told["is_equal"] and told["max_abs_error"] is None


@requires_shared
def test_verify_compares_with_recorded_outputs(tmp_path: Path) -> None:
    torch.save(published_state("eupe-t"), tmp_path / "raw.pt")
    golden = ["--golden", golden_path("eupe-t"), "--tolerance", "1e-5", "--variant", "eupe-t"]
    told = json.loads(eupe("verify", tmp_path / "raw.pt", *golden, "--json")[0])
    assert (told["is_equal"], told["compared"]) == (True, 70) and 0 < told["max_abs_error"] < 1e-5


# ---- bad input ----


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", "nothing.pt"], "nothing.pt"),
        (
            ["info", "{models}/cut.safetensors"],
            "cut.safetensors (1 bytes) cannot be read as a .safetensors checkpoint",
        ),
        (["search", "{photo}", "--index", "{models}/cut.safetensors"], "cannot be read as a .parquet file"),
        (["search", "{photo}", "--index", "{models}/cut.parquet"], "cut.parquet"),
        (["features", "nothing", "--output", "a.parquet"], "There is no file or folder nothing."),
        (["features", "{photo}", "--output", "a.parquet", "--model", "eupe-q"], "Unknown EUPE model 'eupe-q'"),
        (["visualize", "{photo}", "--model", "eupe-q"], "Did you mean 'eupe-"),
        (["predict", "eupe_vits16", "{photo}"], "There is no folder eupe_vits16; the model of that name is 'eupe-s'"),
        (["visualize", "{photo}", "--model", "not/a/folder"], "There is no model at not/a/folder."),
        (["search", "nothing.jpg", "--index", "a.parquet"], "There is no image nothing.jpg."),
        (["predict", "{models}/encoder", "{photo}"], "is an encoder without a head: choose a head to put on it"),
        (["predict", "{models}/scene", "nothing.jpg"], "There is no file or folder nothing.jpg."),
        (["visualize", "{photo}", "--kind", "matches", "--model", "{models}/encoder"], "between two images, got 1"),
        (
            ["visualize", "{photo}", "--size", "128", "--tile", "50", "--model", "{models}/encoder"],
            "tile must be a multiple of 16, and overlap a smaller multiple or 0, got 50",
        ),
        (
            ["visualize", "{photo}", "--kind", "attention", "--tile", "64", "--model", "{models}/encoder"],
            "not tiles",
        ),
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
def test_bad_input_gets_a_one_line_message(
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


HEAD = ["--head", "{models}/EUPE-ViT-T.pt"]
CONVERSION_MISTAKES = {
    "nothing there": (["nothing.pt", "out"], "No checkpoint at nothing.pt. Give the file as downloaded"),
    "cut short": (["{models}/cut.safetensors", "out"], "(1 bytes) cannot be read as a .safetensors checkpoint."),
    "mixed formats": (["mixed.pt", "out"], "formats (torch.float16, torch.float32), and a model has one: save all in"),
    "another model": (["{raw}", "out", "--variant", "eupe-s"], "holds eupe-t, a ViT of width 192 with 12 blocks, not"),
    "no such model": (["{raw}", "out", "--variant", "eupe-tt"], "Did you mean 'eupe-t'?"),
    "somebody's folder": (["{raw}", "."], "holds other files (mixed.pt)"),
    "file for folder": (["{raw}", "out.pt"], "out.pt is the name of a file, and layout eupe is a folder: give the"),
    "folder for file": (["{raw}", ".", "--to", "raw"], "is a folder; give a file name for the checkpoint"),
    "itself": (["{raw}", "{raw}", "--to", "raw"], "is part of the checkpoint itself, which is never replaced: give"),
    "its folder": (["{models}/encoder/model.safetensors", "{models}/encoder"], "which is never replaced"),
    "its weights": (
        ["{models}/parts", "out.pt", "--to", "raw", "--head", "{models}/parts/model.safetensors"],
        "which is never replaced",
    ),
    "one file for two": (["{models}/parts", "a.pt", "--to", "raw", "--head", "a.pt"], "must be two files"),
    "no head": (["{raw}", "out.pt", "--to", "raw", "--head", "h.pt"], "this is an encoder without a head"),
    "head of ours": (
        ["{models}/scene", "a.pt", "--to", "raw", "--head", "h.pt"],
        "this is EupeForImageClassification",
    ),
    "head without task": (["{raw}", "out", *HEAD], "--head needs --task: segmentation or depth"),
    "no such task": (["{raw}", "out", *HEAD, "--task", "vqa"], "Unknown task 'vqa'; upstream has heads for"),
    "no head in it": (["{raw}", "out", *HEAD, "--task", "depth"], "is not a depth head for this encoder."),
    "task without head": (["{raw}", "out", "--task", "depth"], "describe a head; they need --head FILE"),
    "layers in words": (["{raw}", "out", *HEAD, "--layers", "2 5"], "separated by commas, as 2,5,8,11, got '2 5'."),
    "no such layer": (["{raw}", "out", *HEAD, "--task", "depth", "--layers", "12"], "from 0 to 11 in ascending order"),
    "the other way": (["{raw}", "a.pt", "--to", "raw", "--keep-projectors"], "need --to eupe: leave them out, got"),
}
VERIFICATION_MISTAKES = {
    "nothing there": (
        ["nothing.pt", "--against", "{raw}"],
        "No checkpoint at nothing.pt. Give the file as downloaded",
    ),
    "nothing beside it": (["{raw}", "--against", "nothing.pt"], "No checkpoint at nothing.pt. Give the file as"),
    "no reference": (["{raw}"], "Give one thing to compare with: --against FILE_OR_DIR or --golden FILE."),
    "two references": (["{raw}", "--against", "{raw}", "--golden", "{raw}"], "Give one thing to compare with"),
    "no recorded outputs": (["{raw}", "--golden", "nothing"], "No file with recorded outputs at nothing."),
    "of another kind": (["{raw}", "--golden", "{raw}"], "is not a safetensors file, or is damaged"),
    "another shape": (
        ["{raw}", "--against", "{models}/encoder"],
        "last_hidden_state of 1x256x256 is (1, 261, 192) in",
    ),
    "another model": (["{raw}", "--against", "{raw}", "--variant", "eupe-s"], "holds eupe-t, a ViT of width 192"),
    "tolerance": (["{raw}", "--against", "{raw}", "--tolerance", "-1"], "--tolerance must be 0 or more, got -1.0."),
    "no tolerance": (["{raw}", "--against", "{raw}", "--tolerance", "nan"], "must be 0 or more, got nan."),
}


@pytest.mark.parametrize(
    ("command", "arguments", "sentence"),
    [
        pytest.param(command, *mistake, id=f"{command}-{name}")
        for command, mistakes in (("convert", CONVERSION_MISTAKES), ("verify", VERIFICATION_MISTAKES))
        for name, mistake in mistakes.items()
    ],
)
def test_conversion_mistakes_are_answered_by_a_sentence(
    command: str,
    arguments: list[str],
    sentence: str,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    state = torch.load(models / "EUPE-ViT-T.pt")
    torch.save({key: tensor.half() if tensor.ndim == 4 else tensor for key, tensor in state.items()}, "mixed.pt")
    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    filled = [argument.format(models=models, raw=models / "EUPE-ViT-T.pt") for argument in arguments]
    assert sentence in refusal(capsys, monkeypatch, command, *filled)
    assert [path.name for path in tmp_path.iterdir()] == ["mixed.pt"]  # nothing was written,
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before  # and nothing replaced
