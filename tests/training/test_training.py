# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The core of the training recipes: learning rates by depth, augmentation, data, metrics, the final report."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import fill_shared_memory
from matplotlib.figure import Figure
from modeling_common import tiny_config
from PIL import Image
from torch.utils.data import DataLoader
from transformers import EvalPrediction, TrainingArguments

from eupe_hf import EupeForImageClassification, EupeForSegmentation, EupeImageProcessorPil
from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Rows
from eupe_hf.evaluation import ClassificationMetrics, SegmentationMetrics
from eupe_hf.training import (
    ModelArguments,
    StreamingMetrics,
    adapt,
    parameter_groups,
    rate_by_depth,
)
from eupe_hf.training.augmentation import Augmentation
from eupe_hf.training.report import draw_curve, history_table
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.base import predicted_classes
from eupe_hf.training.tasks.classification import load_classification
from eupe_hf.training.tasks.segmentation import load_segmentation
from eupe_hf.training.trainer import CardTrainer


# ---- learning rates ----


def rates(model: torch.nn.Module, **options: float) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter that is trained, by name."""
    weight_decay = options.pop("weight_decay", 0.0)
    groups = parameter_groups(model, rate_by_depth(model, **options), weight_decay)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)  # each once
    return {name: found[id(p)] for name, p in model.named_parameters() if id(p) in found}


def test_vit_rates_fall_from_head_to_embeddings() -> None:
    model = EupeForSegmentation(tiny_config("vit", num_labels=3, num_hidden_layers=3))
    found = rates(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5, head_learning_rate=7.0)
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found["head.linear.conv.weight"] == (7.0, 0.1)
    assert found["head.linear.conv.bias"] == found["head.linear.batch_norm.weight"] == (7.0, 0.0)
    assert found["eupe.norm.weight"] == (1.0, 0.0)
    assert found["eupe.encoder.layers.2.mlp.up_proj.weight"] == (0.5, 0.1)
    assert found["eupe.encoder.layers.2.layer_scale1"] == (0.5, 0.0)
    assert found["eupe.encoder.layers.0.attention.q_proj.weight"] == (0.125, 0.1)
    assert found["eupe.encoder.layers.0.attention.q_proj.bias"] == (0.125, 0.0)
    assert found["eupe.encoder.embeddings.patch_embeddings.weight"] == (0.0625, 0.1)
    for token in ("cls_token", "register_tokens"):
        assert found[f"eupe.encoder.embeddings.{token}"] == (0.0625, 0.0)


def test_convnext_rates_fall_by_stage() -> None:
    found = rates(
        EupeForImageClassification(tiny_config("convnext", num_labels=3)),
        learning_rate=1.0, weight_decay=0.1, layer_decay=0.5,
    )  # fmt: skip
    assert found["head.classifier.weight"] == (1.0, 0.1)
    assert found["eupe.encoder.stages.3.downsample.conv.weight"] == (0.5, 0.1)
    assert found["eupe.encoder.stages.2.layers.0.gamma"] == found["eupe.encoder.stages.2.layers.1.gamma"] == (0.25, 0)
    assert found["eupe.encoder.stages.0.layers.0.pointwise_conv1.weight"] == (0.0625, 0.1)
    assert found["eupe.encoder.stem.conv.weight"] == (0.03125, 0.1)
    assert found["eupe.encoder.stem.norm.bias"] == (0.03125, 0.0)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_full_fine_tuning_may_skip_blocks(family: str) -> None:
    model = EupeForImageClassification(tiny_config(family, num_labels=3, layerscale_value=1.0))
    model = adapt(model, ModelArguments(mode="full", drop_path_rate=0.5)).train()
    images = torch.randn(1, 3, 64, 64).expand(16, -1, -1, -1)
    torch.manual_seed(0)
    assert model.config.drop_path_rate == 0.5 and len(model(images).logits.unique(dim=0)) > 1
    assert len(model.eval()(images).logits.round(decimals=4).unique(dim=0)) == 1
    with pytest.raises(ValueError, match=r"--drop_path_rate must be from 0 to below 1, got 1\.0"):
        ModelArguments(drop_path_rate=1.0)


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_rates_of_adapters_are_those_of_their_blocks(family: str) -> None:
    model = EupeForImageClassification(
        tiny_config(family, num_labels=3, **({"num_hidden_layers": 3} if family == "vit" else {}))
    )
    model = adapt(model, ModelArguments(rank=2, use_dora=True))
    found = rates(model, learning_rate=1.0, weight_decay=0.1, layer_decay=0.5, head_learning_rate=3.0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == trained
    assert {rate for name, (rate, _) in found.items() if ".head." in name} == {3.0}
    place, last = ("layers.1", "layers.2") if family == "vit" else ("stages.2", "stages.3")
    for name, (rate, decay) in found.items():
        if f"encoder.{place}." in name:
            assert rate == 0.25, name
        if f"encoder.{last}." in name:
            assert rate == 0.5, name
        if "lora_A" in name:
            assert decay == 0.1
        if "magnitude" in name:
            assert decay == 0.0
    assert any(f"encoder.{place}." in name for name in found)


def test_probe_trains_the_head_alone() -> None:
    model = adapt(EupeForImageClassification(tiny_config("vit", num_labels=3)), ModelArguments(mode="probe"))
    assert set(rates(model, learning_rate=1.0)) == {"head.classifier.weight", "head.classifier.bias"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="Nothing is to be trained"):
        parameter_groups(model, lambda name, parameter: 1.0)


# ---- augmentation ----


def coded_sample(height: int = 48, width: int = 64) -> dict[str, torch.Tensor]:
    """An image that holds its mask's class, 0, 100 or 200, in large areas, and a box around class 2."""
    mask = torch.zeros(height, width, dtype=torch.int64)
    mask[8:40, 20:60] = 1
    mask[16:32, 30:50] = 2
    image = (100 * mask).to(torch.uint8).expand(3, -1, -1).contiguous()
    return {"image": image, "mask": mask, "boxes": torch.tensor([[30.0, 16, 50, 32], [0, 0, 4, 4]]),
            "box_labels": torch.tensor([5, 6])}  # fmt: skip


@pytest.mark.parametrize("crop", ["area", "side"])
def test_augmentation_keeps_image_mask_and_boxes_aligned(crop: str) -> None:
    augment = Augmentation(64, (0.3, 1.0) if crop == "area" else (0.6, 2.0), crop, colour=0.0, boxes=True)
    seen = set()
    for seed in range(40):
        result = augment(coded_sample(), seed)
        assert result["image"].shape == (3, 64, 64) and result["mask"].shape == (64, 64)
        assert result["image"].dtype == torch.uint8 and result["mask"].dtype == torch.int64
        assert set(result["mask"].unique().tolist()) <= {0, 1, 2, 255}  # nothing interpolated
        inside = result["mask"] != 255
        # the image is interpolated at the edges of areas only: within half a class of the mask nearly everywhere
        off = (result["image"][0].int() - 100 * result["mask"])[inside].abs() > 50
        assert off.float().mean() < 0.04, seed
        for label, (left, top, right, bottom) in zip(result["box_labels"], result["boxes"].tolist(), strict=True):
            if label == 5:
                found = (result["mask"] == 2).nonzero()
                expected = [found[:, 1].min(), found[:, 0].min(), found[:, 1].max() + 1, found[:, 0].max() + 1]
                assert max(abs(a - int(b)) for a, b in zip((left, top, right, bottom), expected, strict=True)) <= 1.5
        seen.add(tuple(result["box_labels"].tolist()))
    assert len(seen) > 1  # boxes that were cut off are gone, with their labels


def test_augmentation_flips_and_depth_is_not_interpolated() -> None:
    depth = torch.linspace(0.5, 9.5, 48 * 64).reshape(48, 64)
    sample = {"image": torch.zeros(3, 48, 64, dtype=torch.uint8), "mask": depth, "name": "kept"}
    augment = Augmentation(48, (1.5, 2.0), "side", flip=1.0, colour=0.0, fill=0)
    result = augment(sample, 3)
    assert result["name"] == "kept" and result["mask"].dtype == torch.float32
    assert set(result["mask"].flatten().tolist()) <= set(depth.flatten().tolist())
    assert (result["mask"].diff(dim=1) <= 0).all()  # grows to the right in the original: mirrored


def test_colour_changes_the_image_alone() -> None:
    plain, coloured = (Augmentation(48, (1.0, 1.0), "side", 0.0, colour)(coded_sample(), 1) for colour in (0.0, 0.5))
    assert torch.equal(plain["mask"], coloured["mask"])
    assert (plain["image"].int() - coloured["image"].int()).abs().max() > 5
    with pytest.raises(ValueError, match="crop must be"):
        Augmentation(32, crop="middle")


def noise_rows(count: int, side: int = 40) -> Rows:
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (side, side, 3)).astype(np.uint8)) for _ in range(count)]
    data = datasets.Dataset.from_dict({"image": images, "label": list(range(count))})
    data = data.cast_column("image", datasets.Image(decode=False))
    return Rows(data, {"image": "image", "label": "label"}, {i: i for i in range(count)})


def test_augmentation_follows_seed_epoch_and_row_not_workers() -> None:
    processor = EupeImageProcessorPil(size={"height": 32, "width": 32})

    def batches(workers: int, seed: int, epoch: int) -> torch.Tensor:
        rows = TrainingRows(noise_rows(6), processor, "class", Augmentation(32), seed)
        rows.set_epoch(epoch)
        return torch.cat([batch["pixel_values"] for batch in DataLoader(rows, batch_size=2, num_workers=workers)])

    first = batches(0, seed=1, epoch=0)
    assert torch.equal(batches(2, seed=1, epoch=0), first)
    for other in (batches(0, seed=2, epoch=0), batches(0, seed=1, epoch=1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_workers_that_stay_see_the_next_epoch() -> None:
    processor = EupeImageProcessorPil(size={"height": 32, "width": 32})
    rows = TrainingRows(noise_rows(2), processor, "class", Augmentation(32))
    loader = DataLoader(rows, batch_size=2, num_workers=1, persistent_workers=True)
    (first,) = loader
    rows.set_epoch(1)
    (second,) = loader
    assert not torch.equal(first["pixel_values"], second["pixel_values"])
    rows.set_epoch(0)
    assert torch.equal(next(iter(loader))["pixel_values"], first["pixel_values"])


# ---- data and checks ----


def class_folder(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 24), (10 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


def pair_folder(root: Path, count: int = 4, highest: int = 2) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (20, 24)).save(root / "images" / f"{i}.jpg")
        mask = np.full((24, 20), 255, dtype=np.uint8)
        mask[:12] = highest if i == 0 else 0
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_class_folders_are_split_and_named(tmp_path: Path) -> None:
    data = load_classification(DataArguments(str(class_folder(tmp_path / "a", cat=10, dog=20)), held_out=0.2), seed=0)
    assert data.names == ["cat", "dog"] and data.eval_split == "0.2 of train"
    assert sorted(label for _, label in data.evaluation) == [0, 0, 1, 1, 1, 1]
    assert len(data.train) == 24
    root = class_folder(tmp_path / "b" / "train", cat=3, dog=3).parent
    class_folder(root / "validation", cat=1, dog=1)
    data = load_classification(DataArguments(str(root)), seed=0)
    assert (len(data.train), len(data.evaluation), data.eval_split) == (6, 2, "validation")
    data = load_classification(DataArguments(str(root), eval_split="train", limit=2), seed=0)
    assert (len(data.train), len(data.evaluation)) == (2, 2)


def test_classes_without_names_and_with_a_file(tmp_path: Path) -> None:
    images = [Image.new("RGB", (8, 8))] * 8
    data = datasets.Dataset.from_dict({"image": images, "label": [7, 3] * 4})
    data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "numbers")
    found = load_classification(DataArguments(str(tmp_path / "numbers"), held_out=0.25), seed=0)
    assert found.names == ["3", "7"] and {label for _, label in found.train} == {0, 1}
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    arguments = DataArguments(str(tmp_path / "numbers"), held_out=0.25, labels=str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match=r"has the label [37], which is beyond the 3 classes: 0, 1, 2\."):
        load_classification(arguments, seed=0)
    datasets.Dataset.from_dict({"image": images, "label": [7] * 8}).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="has 1 class: a classifier needs at least two"):
        load_classification(DataArguments(str(tmp_path / "one"), held_out=0.25), seed=0)


def test_maps_are_counted_reduced_and_named(tmp_path: Path) -> None:
    root = str(pair_folder(tmp_path / "street"))
    found = load_segmentation(DataArguments(root, held_out=0.25), seed=0)
    assert found.names == ["0", "1", "2"] and (len(found.train), len(found.evaluation)) == (3, 1)
    image, labels = found.train[0]
    assert image.size == (20, 24) and labels.shape == (24, 20)
    assert load_segmentation(DataArguments(root, held_out=0.25), 0, reduce_labels=True).names == ["0", "1"]
    pair_folder(tmp_path / "two" / "train", 3)
    pair_folder(tmp_path / "two" / "validation", 2, highest=4)
    found = load_segmentation(DataArguments(str(tmp_path / "two")), seed=0)
    assert (len(found.train), len(found.evaluation), len(found.names)) == (3, 2, 5)


def test_damaged_files_are_skipped_with_a_count_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = class_folder(tmp_path / "data", cat=10, dog=10)
    whole = (root / "cat" / "3.png").read_bytes()
    for name in ("cat/3.png", "dog/4.png"):
        (root / name).write_bytes(whole[: len(whole) // 2])
    data = load_classification(DataArguments(str(root), held_out=0.2), seed=0)
    assert len(data.train) + len(data.evaluation) == 18
    text = caplog.text
    assert "Skipped" in text and "3.png" in text and "4.png" in text
    with pytest.raises(ValueError, match=r"rows cannot be read.*\.png.*cannot be read"):
        load_classification(DataArguments(str(root), held_out=0.2, strict=True), seed=0)
    for file in root.rglob("*.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(ValueError, match="None of 16 rows can be read"):
        load_classification(DataArguments(str(root), held_out=0.2), seed=0)


def empty_class(root: Path) -> DataArguments:
    class_folder(root, cat=2, dog=2, bird=0)
    return DataArguments(str(root))


def no_images(root: Path) -> DataArguments:
    class_folder(root, cat=0)
    return DataArguments(str(root))


def one_class(root: Path) -> DataArguments:
    return DataArguments(str(class_folder(root, cat=20)))


def too_few(root: Path) -> DataArguments:
    return DataArguments(str(class_folder(root, cat=2, dog=2)))


def no_column(root: Path) -> DataArguments:
    return DataArguments(str(class_folder(root, cat=20, dog=2)), label_column="kind")


def nothing(root: Path) -> DataArguments:
    return DataArguments(str(root / "nothing"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (empty_class, "class folder .*bird has no images"),
        (no_images, "There are no images in"),
        (one_class, "has no column 'label' for the label"),  # imagefolder takes one folder for no class
        (too_few, "has 4 rows, too few to hold out"),
        (no_column, "has no column 'kind' for the label"),
        (nothing, "nothing cannot be loaded"),
    ],
)
def test_classification_data_is_refused(tmp_path: Path, make: Callable[[Path], DataArguments], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_classification(make(tmp_path / "data"), seed=0)


def test_maps_of_a_data_set_with_two_image_columns(tmp_path: Path) -> None:
    masks = [Image.fromarray(np.full((24, 20), i % 3, dtype=np.uint8)) for i in range(6)]
    rows = {"picture": [Image.new("RGB", (20, 24))] * 6, "annotation": masks}
    data = datasets.Dataset.from_dict(rows)
    for column in rows:
        data = data.cast_column(column, datasets.Image())
    (tmp_path / "data").mkdir()
    for split, part in (("train", data), ("validation", data.select(range(2)))):
        part.to_parquet(tmp_path / "data" / f"{split}.parquet")
    columns = {"image_column": "picture", "label_column": "annotation"}
    found = load_segmentation(DataArguments(str(tmp_path / "data"), **columns), seed=0)
    assert (len(found.train), len(found.evaluation), found.names) == (6, 2, ["0", "1", "2"])
    assert [int(labels.unique()) for _, labels in found.train] == [0, 1, 2, 0, 1, 2]
    sample = TrainingRows(found.train, EupeImageProcessorPil(size={"height": 32, "width": 32}), "mask")[2]
    assert sample["labels"].shape == (32, 32) and int(sample["labels"].unique()) == 2


def damage(name: str, root: Path) -> DataArguments:
    """A folder of images and masks with one thing wrong."""
    pair_folder(root)
    labels = None
    if name == "size":
        Image.new("L", (20, 20)).save(root / "masks" / "2.png")
    elif name == "colour":
        Image.new("RGB", (20, 24)).save(root / "masks" / "2.png")
    elif name == "beyond":
        (root / "names.json").write_text(json.dumps(["sky", "road"]))
        labels = str(root / "names.json")
    elif name == "alone":
        (root / "masks" / "2.png").unlink()
    elif name == "empty":
        for file in (root / "images").iterdir():
            file.unlink()
    elif name == "ignored":
        for file in (root / "masks").iterdir():
            Image.new("L", (20, 24), 255).save(file)
    elif name == "split":
        return DataArguments(str(root), eval_split="validation")
    return DataArguments(str(root), held_out=0.25, labels=labels)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("size", r"2\.png: the mask is 20 x 20 pixels and its image 20 x 24: they must have one size"),
        ("colour", r"2\.png: a mask has one whole number per pixel, .*got \(24, 20, 3\)"),
        ("beyond", r"0\.png: the mask holds the class 2, but there are 2 class names, 0 to 1"),
        ("alone", "1 files in .* have no partner: '2' is missing in masks"),
        ("empty", "There are no images in"),
        ("ignored", "hold no class, only ignored pixels"),
    ],
)
def test_segmentation_data_is_refused(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_segmentation(damage(name, tmp_path / "data"), seed=0)


# ---- metrics and report ----


@pytest.mark.parametrize("num_workers", [0, 1])
def test_full_shared_memory_ends_training_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    fill_shared_memory(monkeypatch, tmp_path / "tried")
    model = EupeForImageClassification(tiny_config("vit", num_labels=2))
    rows = [{"pixel_values": torch.rand(3, 32, 32), "labels": i % 2} for i in range(4)]
    options = {"max_steps": 1, "use_cpu": True, "report_to": "none", "dataloader_num_workers": num_workers}
    trainer = CardTrainer(None, model, TrainingArguments(tmp_path / "out", **options), train_dataset=rows)
    if num_workers:
        with pytest.raises(RuntimeError, match=r"no shared memory left .* docker run --shm-size .* --dataloader_num_"):
            trainer.train()
    else:
        assert trainer.train().global_step == 1


def test_streaming_metrics_equal_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 4, 6, 8, generator=generator)
    labels = torch.randint(0, 4, (10, 24, 32), generator=generator)
    labels[:, :3] = 255
    whole = SegmentationMetrics(4)
    whole.update(predicted_classes(logits, labels), labels)
    compute = StreamingMetrics(lambda: SegmentationMetrics(4))
    for _ in range(2):  # the second run starts again
        for start in (0, 4, 8):
            part = slice(start, start + 4)
            batch = EvalPrediction(predicted_classes(logits[part], labels[part]), labels[part])
            result = compute(batch, compute_result=start == 8)
            assert start == 8 or result == {}
        assert result == whole.compute()


def test_classification_metrics_by_hand() -> None:
    metrics = ClassificationMetrics(4)
    metrics.update(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, -100]))
    metrics.update(torch.tensor([0, 0]), torch.tensor([0, 2]))
    assert metrics.compute() == pytest.approx({"accuracy": 3 / 5, "mean_accuracy": (1 + 1 / 2 + 0) / 3})
    with pytest.raises(ValueError, match="labels go from 4 to 4"):
        metrics.update(torch.tensor([0]), torch.tensor([4]))
    with pytest.raises(ValueError, match="predicted must be"):
        metrics.update(torch.tensor([[0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="No image"):
        ClassificationMetrics(2).compute()


def test_history_table_and_curve(tmp_path: Path) -> None:
    history = [
        {"loss": 3.0, "step": 1}, {"loss": 2.0, "step": 2},
        {"eval_loss": 1.5, "eval_accuracy": 0.25, "eval_runtime": 9.0, "step": 2},
        {"eval_loss": 1.0, "eval_accuracy": 0.5, "step": 3}, {"train_loss": 2.5, "step": 3},
    ]  # fmt: skip
    lines = history_table(history, {"loss": 1.0, "accuracy": 0.5}).splitlines()
    assert lines[0].split() == ["step", "training", "loss", "loss", "accuracy"]
    assert [line.split() for line in lines[1:]] == [
        ["2", "2.5000", "1.5000", "0.2500"], ["3", "1.0000", "0.5000"], ["saved", "1.0000", "0.5000"],
    ]  # fmt: skip
    chosen = history_table(history, {"loss": 1.0, "accuracy": 0.5}, ["accuracy"]).splitlines()
    assert [line.split() for line in chosen] == [
        ["step", "training", "loss", "accuracy"], ["2", "2.5000", "0.2500"], ["3", "0.5000"], ["saved", "0.5000"],
    ]  # fmt: skip
    draw_curve(history, tmp_path / "curve.png", "accuracy")
    picture = np.asarray(Image.open(tmp_path / "curve.png").convert("RGB"))
    assert picture.shape[1] > 1000 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20  # two plots, in colours


def test_a_curve_without_evaluations_names_training_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[list[str]] = []

    def keep(figure: Figure, *_: object, **__: object) -> None:
        legend = figure.axes[0].get_legend()
        saved.append([text.get_text() for text in legend.get_texts()] if legend else [])

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_curve([{"loss": 3.0, "step": 1}], tmp_path / "curve.png")
    draw_curve([{"loss": 3.0, "step": 1}, {"eval_loss": 2.0, "step": 1}], tmp_path / "curve.png")
    draw_curve([], tmp_path / "curve.png")
    assert saved == [["training"], ["training", "evaluation"], []]
