# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The example that learns four tasks from scenes it draws: its labels are true, and it learns."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from eupe_hf import EupeForMultiTask
from eupe_hf.visualization.predictions import Predictor


SCRIPT = ROOT / "examples" / "learn_drawn_scenes.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What the script defines."""
    return runpy.run_path(str(SCRIPT))


def learn(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the script as a user does."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(folder), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_labels_of_a_scene_agree(script: dict[str, Any]) -> None:
    noise, side, seen = np.random.default_rng(0), script["SIDE"], set()
    for _ in range(60):
        picture, parts, depth, objects = script["draw_scene"](noise)
        assert picture.size == (side, side) and parts.shape == depth.shape == (side, side)
        assert 1 <= len(objects) <= 3 and set(np.unique(parts)) <= set(script["PARTS"])
        assert depth.min() >= script["NEAR"] and depth[parts == script["WALL"]].min() == script["FAR"]
        kind, left, top, right, bottom = objects[-1]  # the nearest, which nothing hides
        assert 0 <= left < right <= side and 0 < top < bottom <= side
        inside = parts[top:bottom, left:right] == kind + script["DISC"]
        assert inside.mean() > 0.4 and inside.any(axis=0).all() and inside.any(axis=1).all()  # the box is tight
        assert np.ptp(depth[bottom - 1, left:right][inside[-1]]) == 0  # others end higher up
        seen.add((kind, len(objects)))
    assert len(seen) == 9  # each kind, in each company


def test_boxes_are_normalised_centres_and_sides(script: dict[str, Any]) -> None:
    pictures, labels = script["draw_batch"](np.random.default_rng(3), 8)
    *_, objects = script["draw_scene"](np.random.default_rng(3))
    kind, left, top, right, bottom = objects[0]
    expected = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / script["SIDE"]
    np.testing.assert_allclose(labels["objects"][0]["boxes"][0], expected, atol=1e-6)
    assert labels["objects"][0]["class_labels"][0] == kind
    assert len(pictures) == 8 and labels["count"].tolist() == [len(o["boxes"]) - 1 for o in labels["objects"]]


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_the_saved_model_predicts(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    learn(tmp_path, monkeypatch, "--steps", "2", "--backbone", family)
    told = capsys.readouterr().out
    assert re.search(r"step 2 of 2: loss \d+\.\d+", told) and told.count("Saved") == 3
    model = EupeForMultiTask.from_pretrained(tmp_path)
    assert model.config.encoder_config.backbone_type == family
    predictions = Predictor(str(tmp_path))(tmp_path / "scene-1.png")
    assert list(predictions) == ["count", "depth", "objects", "parts"]
    sheet = np.asarray(Image.open(tmp_path / "results-1.png"))
    assert sheet.shape[1] == 5 * 256 + 4 * 8  # the scene and four answers


def test_no_steps_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        learn(tmp_path, monkeypatch, "--steps", "0")
    assert ended.value.code == 2 and "--steps must be at least 1, got 0" in capsys.readouterr().err


def test_what_is_missing_is_told_before_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torchmetrics" else found(name, *a)
    )
    with pytest.raises(SystemExit, match=r"this needs torchmetrics: pip install 'eupe-hf\[eval\]'"):
        learn(tmp_path / "out", monkeypatch, "--steps", "1")
    assert not (tmp_path / "out").exists()
