# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Drawn scenes as data sets: the recipes read each form, and read what was drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from PIL import Image
from scenes_common import drawn_scenes, drawn_words

from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Rows
from eupe_hf.data.splits import load_splits
from eupe_hf.training.conversations import Conversations


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two splits of six scenes."""
    folder = tmp_path_factory.mktemp("scenes")
    script = ROOT / "examples" / "save_drawn_scenes.py"
    result = run_script(script, "--count", "6", "--side", "64", "--output", "scenes", folder=folder)
    assert result.returncode == 0 and result.stdout.count("Saved 6 scenes") == 2, result.stderr
    return folder / "scenes"


def scene(index: int, split: str = "validation", **options: tuple[int, int]) -> drawn_scenes.Scene:
    return drawn_scenes.SceneGenerator(64, 0, split, **options).scene(index)


@pytest.mark.parametrize("targets", ["masks", "depth"])
def test_images_lie_beside_their_maps(saved: Path, targets: str) -> None:
    arguments = DataArguments(dataset=str(saved))
    train, validation, split = load_splits(arguments, {"image": "image", "label": "label"}, 0, targets=targets)
    assert len(train) == len(validation) == 6 and split == "validation"
    image, label = validation[4]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(scene(4).picture))
    if targets == "masks":
        np.testing.assert_array_equal(np.asarray(label), scene(4).parts)
    else:
        np.testing.assert_array_equal(label, scene(4).depth)


def test_boxes_are_read_as_coco(saved: Path) -> None:
    arguments = DataArguments(dataset=str(saved), label_column="objects")
    columns = {"image": "image", "objects": "objects"}
    train, validation, _ = (
        part.data if isinstance(part, Rows) else part for part in load_splits(arguments, columns, 0)
    )
    names = train.features["objects"]["category"].feature.names
    assert len(train) == 6 and names == list(drawn_scenes.SHAPES)
    objects = scene(3).objects
    boxes = [(left, top, right - left, bottom - top) for left, top, right, bottom in (thing.box for thing in objects)]
    assert [tuple(box) for box in validation[3]["objects"]["bbox"]] == boxes
    assert validation[3]["objects"]["category"] == [thing.label for thing in objects]
    assert Image.open(validation[3]["image"]["path"]).size == (64, 64)


def test_class_folders_hold_one_object_each(saved: Path) -> None:
    files = sorted((saved / "classes" / "train").rglob("*.png"))
    assert len(files) == 6
    for file in files:
        drawn = scene(int(file.stem), "train", objects=(1, 1))
        assert file.parent.name == drawn.objects[0].name
        np.testing.assert_array_equal(np.asarray(Image.open(file)), np.asarray(drawn.picture))


def test_captions_are_a_line_per_picture(saved: Path) -> None:
    lines = [json.loads(line) for line in (saved / "train-captions.jsonl").read_text().splitlines()]
    assert [line["captions"] for line in lines] == [drawn_words.captions(scene(i, "train")) for i in range(6)]
    assert all((saved / line["file_name"]).is_file() for line in lines)


def test_conversations_are_read_as_llava_writes_them(saved: Path) -> None:
    records = json.loads((saved / "validation-conversations.json").read_text())
    conversations = Conversations(records, saved)
    brief = 0
    for index in range(6):
        messages, (picture,) = conversations[index]
        assert picture.size == (64, 64) and len(messages) == 8
        known = {question.text: question for question in drawn_words.questions(scene(index))}
        for asked, said in zip(messages[::2], messages[1::2], strict=True):
            text = asked["content"][-1]["text"].strip()
            question = known[text.removesuffix(" Answer in a word.")]
            is_brief = text.endswith(" Answer in a word.")
            assert said["content"][0]["text"] == (question.answer if is_brief else question.sentence)
            brief += is_brief
    assert 4 < brief < 20


def test_videos_are_frames_and_masks(saved: Path) -> None:
    frames = drawn_scenes.SceneGenerator(64).video(0, crossing=True)
    for name, values in (("frames", np.asarray(frames[30].picture)), ("masks", frames[30].instances)):
        files = sorted((saved / "video-train" / name).iterdir())
        assert len(files) == len(frames) == 40
        np.testing.assert_array_equal(np.asarray(Image.open(files[30])), values)
