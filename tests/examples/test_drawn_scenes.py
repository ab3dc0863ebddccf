# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Drawn scenes: each number gives one scene, and what is said of it is what the picture shows."""

import doctest
import hashlib
from itertools import pairwise

import numpy as np
import pytest
from scenes_common import drawn_scenes


COLOURS, PARTS, SHAPES, SPLITS = (getattr(drawn_scenes, name) for name in ("COLOURS", "PARTS", "SHAPES", "SPLITS"))
Scene, SceneGenerator = drawn_scenes.Scene, drawn_scenes.SceneGenerator


def digest(scene: Scene) -> str:
    """Of all that a scene says."""
    maps = (np.asarray(scene.picture), scene.parts, scene.colours, scene.instances, scene.depth)
    content = b"".join(values.tobytes() for values in maps) + repr(scene.objects).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def pairs(scenes: list[Scene]) -> set[tuple[str, str]]:
    """Combinations of colour and shape that are shown."""
    return {(thing.colour, thing.shape) for scene in scenes for thing in scene.objects}


def test_the_docstrings_are_true() -> None:
    assert doctest.testmod(drawn_scenes).failed == 0


@pytest.mark.parametrize(
    ("split", "index", "expected"),
    [("train", 0, "ab0d3293200200b9"), ("train", 17, "c7b18d0c4f320d61"), ("unseen", 4, "fa48a95033018a53")],
)
def test_a_scene_is_the_same_on_every_machine(split: str, index: int, expected: str) -> None:
    assert digest(SceneGenerator(96, 3, split, objects=(1, 5)).scene(index)) == expected


def test_a_scene_does_not_depend_on_what_was_drawn_before() -> None:
    generator = SceneGenerator(seed=4)
    first = digest(generator.scene(5))
    [*generator.scenes(3)], generator.video(5, frames=2)
    assert digest(generator.scene(5)) == first == digest(next(SceneGenerator(seed=4).scenes(1, start=5)))
    others = [SceneGenerator(seed=5).scene(5), generator.scene(6), SceneGenerator(seed=4, split="test").scene(5)]
    assert len({first, *map(digest, others)}) == 4


@pytest.mark.parametrize("side", [64, 100, 256, 512])
def test_sides_show_the_same_scene_in_more_pixels(side: int) -> None:
    for index in range(4):
        small, large = (SceneGenerator(value, seed=1).scene(index) for value in (96, side))
        assert large.picture.size == (side, side) == large.depth.shape == large.instances.shape
        assert [(thing.name, thing.distance) for thing in small.objects] == [
            (thing.name, thing.distance) for thing in large.objects
        ]
        for one, other in zip(small.objects, large.objects, strict=True):
            np.testing.assert_allclose(np.array(one.box) / 96, np.array(other.box) / side, atol=1.5 / min(96, side))


def test_masks_equal_what_is_drawn() -> None:
    generator = SceneGenerator(128, seed=2, objects=(1, 4), texture=0, noise=0)
    for scene in generator.scenes(25):
        pixels, names = np.asarray(scene.picture).astype(int), list(COLOURS)
        for number, thing in enumerate(scene.objects, start=1):
            mask = scene.instances == number
            inner = mask.copy()
            for axis in (0, 1):
                for step in (-1, 1):
                    inner &= np.roll(mask, step, axis)  # no edge pixels, which are mixed
            values, counts = np.unique(pixels[inner], axis=0, return_counts=True)
            assert len(values) == 1 and counts[0] > 20  # one colour
            distances = [np.abs(values[0] - np.array(rgb)).sum() for rgb in COLOURS.values()]
            assert names[int(np.argmin(distances))] == thing.colour
            assert (pixels == values[0]).all(axis=-1)[~mask].sum() < 8  # and nowhere else
            assert (scene.parts[mask] == thing.label + 2).all() and PARTS[thing.label + 2] == thing.shape
            assert (scene.colours[mask] == 1 + names.index(thing.colour)).all()
            assert (scene.depth[mask] == np.float32(thing.distance)).all()
        background = scene.instances == 0
        assert set(np.unique(scene.parts[background])) == {0, 1} and not scene.colours[background].any()
        horizon = round(drawn_scenes.HORIZON * 128)
        assert (scene.parts[:horizon][background[:horizon]] == 0).all()
        assert (scene.depth[:horizon][background[:horizon]] == drawn_scenes.FAR).all()
        assert scene.depth[-1][background[-1]].tolist() == [drawn_scenes.NEAR] * int(background[-1].sum())


def test_boxes_are_tight_and_shapes_are_themselves() -> None:
    filled: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    for scene in SceneGenerator(192, seed=3, objects=(1, 1)).scenes(60):
        (thing,) = scene.objects
        left, top, right, bottom = thing.box
        inside = scene.instances[top:bottom, left:right] == 1
        assert inside.sum() == (scene.instances == 1).sum()  # nothing outside
        assert inside.any(axis=0).all() and inside.any(axis=1).all()  # no empty row or column
        filled[thing.shape].append(inside.mean())
    for shape, share in {"disc": np.pi / 4, "square": 1.0, "triangle": 0.5}.items():
        np.testing.assert_allclose(filled[shape], share, atol=0.05)


def test_objects_go_from_far_to_near_and_stay_visible() -> None:
    counts = set()
    for scene in SceneGenerator(128, seed=6, objects=(0, 6)).scenes(60):
        distances = [thing.distance for thing in scene.objects]
        assert distances == sorted(distances, reverse=True)
        assert all(drawn_scenes.NEAR < distance < drawn_scenes.FAR for distance in distances)
        feet = [thing.box[3] for thing in scene.objects]
        for number, thing in enumerate(scene.objects, start=1):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= 128 and 0 <= top < bottom <= 128
            assert (scene.instances == number).sum() > 9
        assert not feet or feet[-1] == max(feet)  # the nearest stands lowest
        counts.add(len(scene.objects))
    assert counts == set(range(7))


@pytest.mark.parametrize("fold", [0, 3, 4])
def test_held_out_combinations_are_absent_from_training(fold: int) -> None:
    held_out = drawn_scenes.held_out_combinations(fold)
    shown = {split: pairs([*SceneGenerator(64, split=split, fold=fold).scenes(150)]) for split in SPLITS}
    assert shown["unseen"] == held_out and len(held_out) == 4
    for split in ("train", "validation", "test"):
        assert len(shown[split]) == 20 and not shown[split] & held_out
    for axis, every in enumerate((COLOURS, SHAPES)):  # but each colour and each shape is there
        assert {pair[axis] for pair in shown["train"]} == set(every)
    assert {shape for _, shape in held_out} == set(SHAPES)


def test_folds_hold_out_each_combination_once() -> None:
    folds = [drawn_scenes.held_out_combinations(fold) for fold in range(6)]
    assert len(frozenset.union(*folds)) == sum(map(len, folds)) == 24


def test_masks_move_with_the_objects() -> None:
    for index in range(4):
        frames = SceneGenerator(96, seed=8, objects=(2, 3)).video(index, frames=12)
        names = {tuple(thing.name for thing in frame.objects) for frame in frames}
        assert len(frames) == 12 and len(names) == 1  # the same objects
        for number in range(1, len(frames[0].objects) + 1):
            seen = [frame.objects[number - 1].box for frame in frames]
            assert len(set(seen)) > 2
        assert len({frame.objects[-1].box[3] for frame in frames}) == 1  # sideways only
        for frame in frames:
            for number, thing in enumerate(frame.objects, start=1):
                rows, columns = np.nonzero(frame.instances == number)
                if thing.box is None:
                    assert not len(rows)
                else:
                    assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        noise = [np.asarray(frame.picture)[0].tobytes() for frame in frames]
        assert len(set(noise)) == 12  # each frame has noise of its own


def test_two_objects_of_one_colour_cross() -> None:
    for index in range(6):
        frames = SceneGenerator(96, seed=9).video(index, frames=20, crossing=True)
        far, near = ([frame.objects[place] for frame in frames] for place in (0, 1))
        assert {thing.colour for thing in far} == {thing.colour for thing in near}
        centres = [[(thing.box[0] + thing.box[2]) / 2 for thing in one if thing.box] for one in (far, near)]
        assert all(b > a for a, b in pairwise([thing.box[0] for thing in far if thing.box][:5]))
        assert centres[0][0] < centres[1][0] and centres[0][-1] > centres[1][-1]
        shares = [(frame.instances == 1).sum() for frame in frames]
        assert min(shares) < 0.7 * max(shares)  # the far one is hidden in part, or whole
        whole = [(frame.instances == 2).sum() for frame in frames]
        assert min(whole) > 0.9 * max(whole)
        assert digest(frames[7]) == digest(SceneGenerator(96, seed=9).video(index, 20, crossing=True)[7])


def test_smaller_objects_and_empty_scenes() -> None:
    large, small = (SceneGenerator(512, scale=scale, objects=(1, 1)).scene(3).objects[0] for scale in (1.0, 0.25))
    assert (small.box[2] - small.box[0]) / (large.box[2] - large.box[0]) == pytest.approx(0.25, abs=0.03)
    for index in range(3):
        frames = SceneGenerator(200, scale=0.25).video(index, frames=61, crossing=True)
        assert max(thing.box[2] - thing.box[0] for thing in frames[0].objects) < 20
        shares = [(frame.instances == 1).sum() for frame in frames]
        assert min(shares) < 0.7 * max(shares)  # small objects pass before each other too
    empty = SceneGenerator(objects=(0, 0)).scene(0)
    assert empty.objects == () and not empty.instances.any() and set(np.unique(empty.parts)) == {0, 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 63}, "side must be 64 to 512 pixels, got 63."),
        ({"side": 513}, "side must be 64 to 512 pixels, got 513."),
        ({"split": "all"}, "split must be one of train, validation, test, unseen, got 'all'."),
        ({"objects": (3, 2)}, r"objects must be two ascending numbers from 0 to 6, got \(3, 2\)."),
        ({"objects": (1, 7)}, "objects must be two ascending numbers from 0 to 6"),
        ({"fold": 6}, "fold must be 0 to 5, got 6."),
        ({"seed": -1}, "seed must be at least 0, got -1."),
        ({"side": 64, "scale": 0.3}, "an object could be 2.3 pixels wide: take a larger side or scale."),
        ({"scale": 0}, "scale must be above 0 and at most 1.5, got 0."),
        ({"texture": 3}, "texture must be 0 to 2, got 3."),
        ({"noise": 256}, "noise must be 0 to 255, got 256."),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SceneGenerator(**options)
