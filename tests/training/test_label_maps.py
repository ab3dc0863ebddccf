# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Label maps of every type: the same labels through recipe, processor and model, and what counts for nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from PIL import Image

from eupe_hf import EupeForMultiTask, EupeForSegmentation, EupeImageProcessorPil, EupeMultiTaskConfig
from eupe_hf.evaluation.metrics import SegmentationMetrics
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.options import parse_recipe
from eupe_hf.training.tasks.segmentation import SegmentationDataArguments, SegmentationTask


IDS = np.arange(24 * 16).reshape(24, 16) // 7 % 2  # classes 0 and 1: every type holds them
PNG = {
    "1": lambda ids: Image.fromarray(ids.astype(bool)),
    "L": lambda ids: Image.fromarray(ids.astype(np.uint8)),
    "I;16": lambda ids: Image.fromarray(ids.astype(np.uint16)),
    **{f"P{bits}": lambda ids: paletted(ids) for bits in (1, 2, 4, 8)},
}
ARRAYS = ("bool", "int8", "uint8", "int16", "uint16", ">u2", "int32", "uint32", ">i4", "int64", "uint64")
TENSORS = [
    getattr(torch, name) for name in ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
]


def paletted(ids: np.ndarray) -> Image.Image:
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette([200, 10, 10, 10, 200, 10])  # colours that are no class ids; this makes it a palette
    return image


def folder_of(root: Path, store: Callable[[Path], None]) -> SegmentationDataArguments:
    (root / "masks").mkdir(parents=True)
    (root / "images").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (*IDS.shape, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        store(root / "masks" / str(i))
    return SegmentationDataArguments(dataset=str(root), held_out=0.25, size=32)


def save_png(kind: str) -> Callable[[Path], None]:
    options = {"bits": int(kind[1])} if kind[0] == "P" else {}
    return lambda path: PNG[kind](IDS).save(f"{path}.png", **options)


def save_array(dtype: str) -> Callable[[Path], None]:
    return lambda path: np.save(f"{path}.npy", IDS.astype(dtype))


STORED = {**{kind: save_png(kind) for kind in PNG}, **{f"npy {dtype}": save_array(dtype) for dtype in ARRAYS}}


def rows_of(arguments: SegmentationDataArguments) -> list[torch.Tensor]:
    task = SegmentationTask(arguments, seed=0)
    assert task.data.names == ["0", "1"]
    train, evaluation = task.rows(EupeImageProcessorPil(size=32), 16)
    return [rows[i]["labels"] for rows in (train, evaluation) for i in range(9)]  # in several crops


@pytest.mark.parametrize("ignored", [255, -1, 7])
@pytest.mark.parametrize("store", STORED.values(), ids=STORED)
def test_recipe_reads_the_same_labels_and_pads_with_the_ignored(store: Callable, ignored: int, tmp_path: Path) -> None:
    expected = rows_of(folder_of(tmp_path / "reference", save_array("int64")))  # 255 around crops
    arguments = folder_of(tmp_path / "stored", store)
    arguments.ignore_index = ignored
    found = rows_of(arguments)
    assert any((labels == 255).any() for labels in expected)
    for labels, reference in zip(found, expected, strict=True):
        assert labels.dtype == torch.int64
        assert torch.equal(labels, torch.where(reference == 255, ignored, reference))


@pytest.mark.parametrize("dtype", TENSORS, ids=str)
def test_augmentation_pads_every_type(dtype: torch.dtype) -> None:
    augment, image = Augmentation(32, (0.4, 0.5), "side"), torch.zeros(3, 24, 16, dtype=torch.uint8)
    reference = augment({"image": image, "mask": torch.from_numpy(IDS)}, seed=0)["mask"]
    found = augment({"image": image, "mask": torch.from_numpy(IDS).to(dtype)}, seed=0)["mask"]
    assert set(reference.unique().tolist()) == {0, 1, 255}
    assert torch.equal(found, reference)
    assert augment({"image": image, "mask": torch.zeros(24, 16)}, seed=0)["mask"].dtype == torch.float32


@pytest.mark.parametrize("ignored", [255, -100])
def test_processor_reads_the_same_labels_of_every_type(ignored: int) -> None:
    processor = EupeImageProcessorPil(
        do_resize=False, do_pad=True, size_divisor=16, semantic_loss_ignore_index=ignored
    )
    image = np.zeros((24, 16, 3), dtype=np.uint8)
    maps = [IDS.astype(dtype) for dtype in ARRAYS]
    maps += [torch.from_numpy(IDS).to(dtype) for dtype in TENSORS] + [make(IDS) for make in PNG.values()]
    expected = torch.full((32, 16), ignored)
    expected[4:28] = torch.from_numpy(IDS)
    for given in maps:
        labels = processor([image], segmentation_maps=[given], return_tensors="pt")["labels"][0]
        assert labels.dtype == torch.int64 and torch.equal(labels, expected)


@pytest.mark.parametrize("dtype", TENSORS, ids=str)
def test_model_and_metrics_take_every_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = EupeForSegmentation(tiny_config("vit", num_labels=2)).eval()
    ids, pixel_values = torch.from_numpy(IDS)[None], torch.randn(1, 3, 32, 32)
    expected = model(pixel_values, labels=ids).loss
    assert torch.equal(model(pixel_values, labels=ids.to(dtype)).loss, expected)
    assert torch.equal(model(pixel_values, labels=[ids[0].to(dtype)]).loss, expected)
    metrics = SegmentationMetrics(2)
    metrics.update(ids.to(dtype), ids.to(dtype))
    assert metrics.compute()["mean_iou"] == 1.0


# ---- what counts for nothing is no class ----


def test_a_class_that_is_the_ignore_index_is_refused(tmp_path: Path) -> None:
    message = "255 is a class, since there are 300 classes, 0 to 299, and also the ignore index"
    with pytest.raises(ValueError, match=message):
        EupeForSegmentation(tiny_config("vit", num_labels=300))
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(300)
    heads = {"parts": {"task": "segmentation", "num_labels": 300}}
    with pytest.raises(ValueError, match=message):
        EupeForMultiTask(EupeMultiTaskConfig(encoder_config=tiny_config("vit"), heads=heads))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(300))))
    arguments = folder_of(tmp_path / "data", save_array("int64"))
    arguments.labels = str(names)
    with pytest.raises(ValueError, match=rf"{message}.*Set --ignore_index to a number that is no class, e\.g\. -100"):
        SegmentationTask(arguments, seed=0)
    arguments.ignore_index = 299
    with pytest.raises(ValueError, match="299 is a class"):
        SegmentationTask(arguments, seed=0)
    arguments.ignore_index = 300
    assert len(SegmentationTask(arguments, seed=0).data.names) == 300


def test_ids_that_reach_the_ignore_index_are_refused(tmp_path: Path) -> None:
    def store(path: Path) -> None:
        np.save(f"{path}.npy", np.where(IDS, 260, 255))

    arguments = folder_of(tmp_path / "data", store)
    with pytest.raises(ValueError, match="255 is a class, since there are 261 classes"):
        SegmentationTask(arguments, seed=0)
    arguments.ignore_index = -100
    assert len(SegmentationTask(arguments, seed=0).data.names) == 261


def test_class_255_is_learned_where_something_else_is_ignored() -> None:
    torch.manual_seed(0)
    config = tiny_config("convnext", num_labels=300, semantic_loss_ignore_index=-1)
    loss = EupeForSegmentation(config).eval()(torch.randn(1, 3, 32, 32), labels=torch.full((1, 32, 32), 255)).loss
    assert loss > 1


@pytest.mark.parametrize("is_joined", [False, True])
def test_ignore_index_is_saved_with_model_and_processor(is_joined: bool, tmp_path: Path) -> None:
    model: Any = EupeForSegmentation(tiny_config("vit", num_labels=3, semantic_loss_ignore_index=-1))
    if is_joined:
        model = EupeForMultiTask.from_task_models({"parts": model})
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert (again.task_model("parts") if is_joined else again).config.semantic_loss_ignore_index == -1
    processor = EupeImageProcessorPil.from_pretrained(tmp_path)
    assert processor.semantic_loss_ignore_index == -1
    padded = processor(np.zeros((8, 8, 3), np.uint8), segmentation_maps=np.zeros((8, 8), int), do_resize=False,
                       do_pad=True, size_divisor=16, return_tensors="pt")  # fmt: skip
    assert padded["labels"].unique().tolist() == [-1, 0]


def test_recipe_hands_the_ignore_index_to_head_processor_and_metrics(tmp_path: Path) -> None:
    arguments = folder_of(tmp_path / "data", save_array("int64"))
    options = ["--output_dir", str(tmp_path / "out"), "--ignore-index", "9", "--held_out", "0.25"]
    _, parsed, _ = parse_recipe(SegmentationTask, "", ["--dataset", arguments.dataset, *options])
    task, processor = SegmentationTask(parsed, seed=0), EupeImageProcessorPil(size=32)
    task.rows(processor, 16)
    assert task.head_fields()["semantic_loss_ignore_index"] == 9
    assert processor.semantic_loss_ignore_index == task.metrics().ignore_index == 9
    assert task.settings()["ignore_index"] == 9


def test_foreground_that_is_the_ignore_index_is_refused(tmp_path: Path) -> None:
    def store(path: Path) -> None:
        Image.fromarray((255 * IDS).astype(np.uint8)).save(f"{path}.png")

    with pytest.raises(ValueError, match=r"hold only 0 and 255, which is ignored: .* divide the masks by 255"):
        SegmentationTask(folder_of(tmp_path / "data", store), seed=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(2, 8, 8) * 0.5, "class ids, integers"),
        (torch.randint(1, 4, (2, 8, 8)).index_fill(1, torch.tensor([0]), 1).index_fill(1, torch.tensor([1]), 3),
         "go from 1 to 3, .* They count from 1: subtract 1"),
        (torch.full((2, 8, 8), -1, dtype=torch.int8), "go from -1 to -1"),
        (torch.zeros(2, 8, 8, 3).long(), "one map per image"),
    ],
)  # fmt: skip
def test_labels_in_another_unit_are_refused(labels: Any, message: str) -> None:
    model = EupeForSegmentation(tiny_config("vit", num_labels=3))
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 3, 32, 32), labels=labels)
