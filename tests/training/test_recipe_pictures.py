# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures as real files are, in the recipe of every task: what Pillow decodes is trained on, the rest is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_pictures import BAD, GOOD, PICTURE, saved, size
from PIL import Image

from eupe_hf import EupeImageProcessorPil
from eupe_hf.data.options import DataArguments
from eupe_hf.training.tasks import TASKS
from eupe_hf.training.tasks.depth import DepthDataArguments
from eupe_hf.training.tasks.detection import DetectionDataArguments
from eupe_hf.training.tasks.segmentation import SegmentationDataArguments


def write(folder: Path, pictures: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        (folder / name).write_bytes(content)


def classes(folder: Path, pictures: dict[str, bytes]) -> DataArguments:
    for name in ("a", "b"):
        write(folder / name, {f"{name}-{picture}": content for picture, content in pictures.items()})
    return DataArguments(str(folder), held_out=0.5)


def maps(folder: Path, pictures: dict[str, bytes], kind: str) -> None:
    # stems make pairs
    pictures = {f"{name.replace('.', '-')}{Path(name).suffix}": content for name, content in pictures.items()}
    write(folder / "images", pictures)
    (folder / kind).mkdir()
    for name, content in pictures.items():
        width, height = size(content)
        array = np.broadcast_to(np.arange(height)[:, None] % 2 + 1, (height, width)).astype(np.uint8)
        Image.fromarray(array.copy()).save(folder / kind / f"{Path(name).stem}.png")


def masks(folder: Path, pictures: dict[str, bytes]) -> DataArguments:
    maps(folder, pictures, "masks")
    return SegmentationDataArguments(str(folder), held_out=0.5)


def depth(folder: Path, pictures: dict[str, bytes]) -> DataArguments:
    maps(folder, pictures, "depth")
    return DepthDataArguments(str(folder), held_out=0.5)


def boxes(folder: Path, pictures: dict[str, bytes]) -> DataArguments:
    write(folder / "images", pictures)
    images = [{"id": i, "file_name": name} for i, name in enumerate(pictures)]
    found = [{"image_id": i, "bbox": [0, 0, 1, 1], "category_id": 1} for i in range(len(images))]
    content = {"images": images, "annotations": found, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return DetectionDataArguments(str(folder), held_out=0.5)


LAYOUTS: dict[str, Callable[[Path, dict[str, bytes]], DataArguments]] = {
    "classification": classes, "segmentation": masks, "depth": depth, "detection": boxes,
}  # fmt: skip


@pytest.mark.parametrize("task", LAYOUTS)
def test_every_picture_is_trained_on_or_named(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = LAYOUTS[task](tmp_path / "data", GOOD | BAD)
    arguments.size = 32
    recipe = TASKS[task](arguments, seed=0)
    named = caplog.text
    times = 2 if task == "classification" else 1  # once in each class
    parts = recipe.rows(EupeImageProcessorPil(size=32), 16)
    assert sum(map(len, parts)) == times * len(GOOD)
    for part in parts:
        for row in part:
            side = recipe.arguments.crop_size(16) if task == "depth" and part.augmentation else 32
            assert row["pixel_values"].shape == (3, side, side) and bool(torch.isfinite(row["pixel_values"]).all())
    skipped = re.findall(r"Skipped (\d+) of", named)
    assert sum(map(int, skipped)) == times * len(BAD)
    for name in BAD:
        assert (name if task in ("classification", "detection") else name.replace(".", "-")) in named
    assert "has values from 0 to 4080" in named
    arguments.strict = True
    with pytest.raises(ValueError, match=r"\d of \d+ rows cannot be read\. Row \d+, 'image' \("):
        TASKS[task](arguments, seed=0)


@pytest.mark.parametrize("task", LAYOUTS)
def test_a_picture_that_fails_in_training_is_named(task: str, tmp_path: Path) -> None:
    arguments = LAYOUTS[task](tmp_path / "data", {f"{i}.png": saved(PICTURE, "PNG") for i in range(8)})
    arguments.size = 32
    recipe = TASKS[task](arguments, seed=0)
    for path in (tmp_path / "data").rglob("*.png"):
        if path.parent.name not in ("masks", "depth"):
            path.write_bytes(BAD["metres.tif"])
    with pytest.raises(ValueError, match=r"Row \d+, 'image' \(.*\d.*\.png\) .*has values from 0 to 4080"):
        recipe.rows(EupeImageProcessorPil(size=32), 16)[0][0]
