# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The example that learns tasks from drawn scenes, and the linear probes: labels are true, and what is saved works."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image
from scenes_common import drawn_scenes, learn_drawn_scenes, probes

from eupe_hf import EupeBackbone, EupeForMultiTask, EupeImageProcessor
from eupe_hf.visualization.predictions import Predictor


def learn(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the script as a user does, but measure on few scenes."""
    measured, probed = learn_drawn_scenes.measure, probes.probe
    monkeypatch.setattr(learn_drawn_scenes, "measure", lambda *a: measured(*a, count=12))
    monkeypatch.setattr(learn_drawn_scenes, "probe", lambda *a: probed(*a, counts=(40, 20)))
    monkeypatch.setattr(sys, "argv", ["learn_drawn_scenes.py", "--output", str(folder), *arguments])
    learn_drawn_scenes.main()


def test_labels_are_what_the_heads_take() -> None:
    scenes = [*drawn_scenes.SceneGenerator(learn_drawn_scenes.SIDE, seed=3).scenes(8)]
    labels = learn_drawn_scenes.make_labels(scenes)
    thing = scenes[0].objects[0]
    left, top, right, bottom = thing.box
    expected = np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]) / learn_drawn_scenes.SIDE
    np.testing.assert_allclose(labels["objects"][0]["boxes"][0], expected, atol=1e-6)
    assert labels["objects"][0]["class_labels"][0] == thing.label
    assert labels["count"].tolist() == [len(scene.objects) - 1 for scene in scenes]
    np.testing.assert_array_equal(labels["parts"], np.stack([scene.parts for scene in scenes]))
    np.testing.assert_array_equal(labels["depth"], np.stack([scene.depth for scene in scenes]))
    np.testing.assert_array_equal(labels["colours"], np.stack([scene.colours[::2, ::2] for scene in scenes]))


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_the_saved_model_predicts(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    learn(tmp_path, monkeypatch, "--steps", "2", "--backbone", family)
    said = capsys.readouterr().out
    assert re.search(r"step 2 of 2: loss \d+\.\d+", said) and said.count("Saved") == 3
    assert re.search(r"linear probes +seen +unseen\nshape +0\.\d+ +0\.\d+\ncolour +\d\.\d+ +\d\.\d+\nposition ", said)
    assert "mean IoU of the colours: 0." in said
    model = EupeForMultiTask.from_pretrained(tmp_path)
    assert model.config.encoder_config.backbone_type == family
    predictions = Predictor(str(tmp_path))(tmp_path / "scene-1.png")
    assert list(predictions) == ["colours", "count", "depth", "objects", "parts"]
    assert Image.open(tmp_path / "scene-1.png").size == (384, 384)
    sheet = np.asarray(Image.open(tmp_path / "results-1.png"))
    assert sheet.shape[1] == 3 * 384 + 2 * 8 and sheet.shape[0] > 2 * 384  # the scene and five answers


class Oracle(torch.nn.Module):
    """Features that say shape, colour and place of what lies in each patch of 8 pixels."""

    device = torch.device("cpu")

    def __init__(self, scenes: list[Any], places: bool = True):
        super().__init__()
        self.scenes, self.places = iter(scenes), places

    def forward(self, pixel_values: torch.Tensor) -> Any:
        maps = []
        for _, scene in zip(pixel_values, self.scenes, strict=False):
            y, x = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
            planes = [y, x] if self.places else []
            for values, count in ((scene.parts, 5), (scene.colours, 9)):
                one_hot = torch.nn.functional.one_hot(torch.from_numpy(values).long(), count).permute(2, 0, 1).float()
                planes += [*torch.nn.functional.adaptive_avg_pool2d(one_hot, 12)]
            maps.append(torch.stack(planes))
        return type("Output", (), {"feature_maps": (torch.stack(maps),)})()


def test_probes_read_what_features_say_and_no_more() -> None:
    processor = EupeImageProcessor(size={"height": 96, "width": 96})
    drawn = {"train": (1, 150), "test": (0, 60), "unseen": (0, 60)}
    scenes = [
        scene
        for split, (seed, count) in drawn.items()
        for scene in drawn_scenes.SceneGenerator(96, seed, split).scenes(count)
    ]
    shares = probes.probe(Oracle(scenes), processor, counts=(150, 60))
    assert min(min(values.values()) for values in shares.values()) > 0.95, shares
    wrong = Oracle([*scenes[:150], *reversed(scenes[150:])])  # features of other scenes
    shares = probes.probe(wrong, processor, counts=(150, 60))
    assert max(shares["shape"].values()) < 0.6 and max(shares["colour"].values()) < 0.4
    assert min(shares["position"].values()) > 0.95  # where a patch lies does not depend on the scene
    without = Oracle(scenes, places=False)
    assert max(probes.probe(without, processor, counts=(150, 60))["position"].values()) < 0.5


def test_the_feature_of_an_object_is_the_mean_over_its_visible_pixels() -> None:
    scene = drawn_scenes.SceneGenerator(96, seed=2, objects=(2, 3)).scene(1)
    maps = Oracle([scene])(torch.zeros(1)).feature_maps[0]
    features, facts = probes.object_features(maps, [scene])
    assert features.shape == (len(scene.objects), 16)
    for number, thing in enumerate(scene.objects, start=1):
        rows, columns = np.nonzero(scene.instances == number)
        np.testing.assert_allclose(features[number - 1, :2], [(rows // 8).mean(), (columns // 8).mean()], rtol=1e-5)
        centre = [(rows + 0.5).mean() / 96, (columns + 0.5).mean() / 96]
        np.testing.assert_allclose(facts["position"][number - 1], centre, rtol=1e-5)
        assert facts["shape"][number - 1] == thing.label
        assert [*drawn_scenes.COLOURS][facts["colour"][number - 1]] == thing.colour


def test_classes_that_never_occur_together_are_not_compared() -> None:
    combinations = drawn_scenes.SceneGenerator().combinations
    seen = probes.seen_together(combinations)
    colour, shape = next(iter(drawn_scenes.held_out_combinations()))
    column, row = [*drawn_scenes.COLOURS].index(colour), drawn_scenes.SHAPES.index(shape)
    assert seen.sum() == len(combinations) == 20 and not seen[row, column]
    other = (row + 1) % 3
    facts = {"shape": torch.tensor([other]), "colour": torch.tensor([column])}
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = probes.cross_entropy(logits, facts, "shape", seen)
    assert loss.item() == pytest.approx(np.log(2))  # two shapes are left
    loss.backward()
    assert logits.grad[0, row] == 0 and logits.grad[0, other] < 0  # nothing counts against the third
    count = int(seen[other].sum())
    loss = probes.cross_entropy(torch.zeros(1, 8), facts, "colour", seen)
    assert loss.item() == pytest.approx(np.log(count)) and count < 8


def test_probes_run_on_a_saved_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    EupeBackbone(tiny_config("convnext")).save_pretrained(tmp_path)
    EupeImageProcessor().save_pretrained(tmp_path)
    original = probes.probe
    monkeypatch.setattr(probes, "probe", lambda *a: original(*a, counts=(30, 10)))
    monkeypatch.setattr(sys, "argv", ["probes.py", "--model", str(tmp_path), "--size", "64"])
    probes.main()
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_no_steps_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        learn(tmp_path, monkeypatch, "--steps", "0")
    assert ended.value.code == 2 and "--steps must be at least 1, got 0" in capsys.readouterr().err


def test_a_missing_package_is_named_before_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torchmetrics" else found(name, *a)
    )
    with pytest.raises(SystemExit, match=r"this needs torchmetrics: pip install 'eupe-hf\[eval\]'"):
        learn(tmp_path / "out", monkeypatch, "--steps", "1")
    assert not (tmp_path / "out").exists()
