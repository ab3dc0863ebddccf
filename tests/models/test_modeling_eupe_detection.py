# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Object detection: learning, hand-worked assignment and decoding, labels, post-processing, saving, pipelines."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from drawn_shapes import NAMES as SHAPES
from drawn_shapes import average_precision, draw_shapes
from hub_server import HubServer, use_hub
from PIL import Image
from published import FETCHED, FILE, REPO, checkpoint
from torch.export import Dim, export
from torch.nn import functional
from transformers import AutoModelForObjectDetection, Trainer, TrainingArguments, pipeline

from eupe_hf import VARIANTS, EupeConfig, EupeForObjectDetection, EupeImageProcessorPil, EupeModel, variant_config
from eupe_hf.models.modeling_eupe_detection import EupeDetectionHead
from eupe_hf.models.modeling_eupe_detection_loss import assign, generalized_overlap, overlap


TINY = {
    "vit": {"patch_size": 8, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "convnext": {"backbone_type": "convnext", "hidden_sizes": [16, 32, 48], "depths": [1, 1, 1]},
}
FAMILIES = pytest.mark.parametrize("family", list(TINY))
BOX = [0.5, 0.5, 0.2, 0.2]


def tiny(family: str, **overrides) -> EupeConfig:
    """A configuration of some hundred thousand parameters, with levels of 8 and 16 pixels."""
    fields = {"image_size": 64, "layerscale_value": 0.5, "num_labels": 3, "detection_hidden_size": 48}
    return EupeConfig(**{**TINY[family], **fields, "detection_strides": [8, 16], **overrides})


def label(*objects: tuple[int, list[float]]) -> dict[str, torch.Tensor]:
    """Labels of one image: class and box of each object."""
    boxes = torch.tensor([box for _, box in objects]).reshape(-1, 4)
    return {"class_labels": torch.tensor([kind for kind, _ in objects], dtype=torch.long), "boxes": boxes}


# ---- learning ----


@pytest.mark.slow
@FAMILIES
def test_detector_learns_drawn_shapes(family: str) -> None:
    torch.manual_seed(0)
    model = EupeForObjectDetection(tiny(family)).train()
    images, labels = draw_shapes(2000, 64, seed=0, smallest=0.25)
    steps = 600
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        chosen = torch.randint(0, len(images), (8,))
        optimizer.zero_grad()
        model(images[chosen], labels=[labels[i] for i in chosen]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    images, labels = draw_shapes(64, 64, seed=1, smallest=0.25)
    with torch.inference_mode():
        outputs = model.eval()(images)
    processor = EupeImageProcessorPil()
    found = processor.post_process_object_detection(outputs, threshold=0.0)
    assert average_precision(found, labels) >= 0.9  # 0.97 when measured, as by pycocotools
    # the model itself finds each object once, but for a few
    found = processor.post_process_object_detection(outputs, threshold=0.0, nms_threshold=None)
    assert average_precision(found, labels) >= 0.85  # 0.94 when measured


def test_untrained_head_finds_nothing_anywhere() -> None:
    model = EupeForObjectDetection(tiny("vit")).eval()
    torch.testing.assert_close(model.head.classify.bias, torch.full((3,), -4.59512))  # a score of 0.01
    for layer in (model.head.classify, model.head.select, model.head.locate):
        assert 0.009 < layer.weight.std() < 0.011
    with torch.inference_mode():
        assert 0.005 < model(torch.randn(1, 3, 64, 64)).logits.sigmoid().median() < 0.02


def test_average_precision_of_hand_worked_results() -> None:
    labels = [label((kind, [0.5, 0.5, 0.4, 0.4]), (kind, [0.2, 0.2, 0.2, 0.2])) for kind in range(len(SHAPES))]
    good, other = torch.tensor([0.3, 0.3, 0.7, 0.7]), torch.tensor([0.1, 0.1, 0.3, 0.3])
    perfect = [
        {"scores": torch.tensor([0.9, 0.8]), "labels": torch.full((2,), kind), "boxes": torch.stack([good, other])}
        for kind in range(len(SHAPES))
    ]
    assert average_precision(perfect, labels) == pytest.approx(1)
    # found, found again (wrong), the other: precision 1 up to recall 1/2, then 2/3; 51 and 50 of the 101 recalls
    repeated = [
        {
            "scores": torch.tensor([0.9, 0.8, 0.7]),
            "labels": torch.full((3,), kind),
            "boxes": torch.stack([good, good, other]),
        }
        for kind in range(len(SHAPES))
    ]
    assert average_precision(repeated, labels) == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision([{k: v[:1] for k, v in r.items()} for r in perfect], labels) == pytest.approx(51 / 101)


# ---- assignment, overlaps, decoding ----


def test_overlaps_of_hand_worked_boxes() -> None:
    a, b, c = [0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]
    torch.testing.assert_close(overlap(torch.tensor([a]), torch.tensor([a, b, c])), torch.tensor([[1, 1 / 3, 0]]))
    # shared area 2 of 6, hull 6; apart: 0 of 8, hull 12
    pairs = generalized_overlap(torch.tensor([a, a, a]), torch.tensor([a, b, c]))
    torch.testing.assert_close(pairs, torch.tensor([1, 1 / 3, -4 / 12]))


def test_each_object_gets_its_best_positions() -> None:
    points = torch.tensor([[0.1, 0.5], [0.3, 0.5], [0.5, 0.5], [0.7, 0.5], [0.9, 0.5]])
    boxes = torch.tensor([[0.0, 0.0, 0.6, 1.0], [0.4, 0.0, 1.0, 1.0], [0.71, 0.4, 0.73, 0.6]])
    scores = torch.tensor([[0.5, 0.1, 0.1], [0.5, 0.1, 0.1], [0.2, 0.8, 0.1], [0.9, 0.4, 0.1], [0.9, 0.4, 0.1]])
    overlaps = torch.tensor([[0.8, 0.1, 0.0], [0.6, 0.1, 0.0], [0.5, 0.5, 0.0], [0.9, 0.7, 0.2], [0.9, 0.5, 0.1]])
    # Alignment is score * overlap^2. Object 0 holds positions 0, 1, 2 (0.32, 0.18, 0.05), whatever 3 and 4 say; object
    # 1 holds 2, 3, 4 (0.2, 0.196, 0.1); object 2 holds none and takes the nearest, 3 (0.004), which fits 1 better.
    owner, quality = assign(scores, overlaps, points, boxes, count=2)
    assert owner.tolist() == [0, 0, 1, 1, -1]
    # each object's best alignment (0.32, 0.2) gets the best overlap among its positions (0.8, 0.7), the others less
    torch.testing.assert_close(quality, torch.tensor([0.8, 0.8 * 0.18 / 0.32, 0.7, 0.7 * 0.196 / 0.2, 0.0]))
    owner, _ = assign(scores, overlaps, points, boxes, count=1)
    assert owner.tolist() == [0, -1, 1, 2, -1]  # now that 3 is free, the small object keeps it


def test_object_beyond_the_last_position_gets_the_nearest() -> None:
    points = torch.tensor([[0.2, 0.5], [0.6, 0.5]])
    owner, quality = assign(
        torch.full((2, 1), 0.1), torch.zeros(2, 1), points, torch.tensor([[0.9, 0.4, 1.0, 0.6]]), count=10
    )
    assert owner.tolist() == [-1, 0]
    assert quality.tolist() == [0, 0]


@pytest.mark.parametrize("size", [(64, 96), (70, 49), (33, 47), (100, 36)])
@FAMILIES
def test_boxes_are_shares_of_the_image_also_beyond_the_last_patch(family: str, size: tuple[int, int]) -> None:
    model = EupeForObjectDetection(tiny(family)).eval()
    torch.nn.init.zeros_(model.head.locate.weight)
    # left 2 strides (the start), up 1, right 4, down 1/2
    model.head.locate.bias.data = torch.log(torch.tensor([1.0, 0.5, 2.0, 0.25]))
    with torch.inference_mode():
        outputs = model(torch.randn(2, 3, *size))
    height, width = size
    expected = []
    # grids as the encoder makes them: whole patches from the top left corner; pooling rounds up
    patch = 8
    fine = [side // patch for side in size]
    if family == "convnext":
        fine = [side // 4 // 2 for side in size]
    coarse = [-(-side // 2) for side in fine] if family == "vit" else [side // 2 for side in fine]
    for (rows, columns), stride in ((fine, 8), (coarse, 16)):
        for i in range(rows):
            for j in range(columns):
                x, y = (j + 0.5) * stride, (i + 0.5) * stride
                expected.append([x - 2 * stride, y - stride, x + 4 * stride, y + stride / 2])
    expected = torch.tensor(expected).clamp_min(0)
    expected = torch.minimum(expected, torch.tensor([width, height] * 2))  # clipped to the image, not to the grid
    found = EupeImageProcessorPil().post_process_object_detection(
        SimpleNamespace(logits=outputs.logits, pred_boxes=outputs.pred_boxes),
        threshold=0.0, target_sizes=[size] * 2, top_k=10_000, nms_threshold=None,
    )  # fmt: skip
    assert outputs.pred_boxes.shape == (2, len(expected), 4) and outputs.logits.shape == (2, len(expected), 3)
    for result in found:
        rows = sorted(tuple(round(v, 2) for v in row) for row in result["boxes"].tolist())
        wanted = sorted(tuple(round(v, 2) for v in row) for row in expected.tolist() for _ in range(3))
        np.testing.assert_allclose(rows, wanted, atol=0.02)


def test_losses_are_those_of_the_stated_targets() -> None:
    head = EupeDetectionHead(tiny("vit"))
    points = torch.tensor([[0.25, 0.5], [0.75, 0.5]])
    corners = torch.tensor([[[0.0, 0.0, 0.5, 1.0], [0.6, 0.0, 1.0, 1.0]]])
    class_logits, logits = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    losses = head.loss(class_logits, logits, corners, points, [label((1, [0.25, 0.5, 0.5, 1.0]))])
    target = torch.zeros(1, 2, 3)
    target[0, 0, 1] = 1  # the first position's box is the object's: overlap 1
    for name, given in (("class", class_logits), ("select", logits)):
        expected = functional.binary_cross_entropy_with_logits(given, target, reduction="sum")
        torch.testing.assert_close(losses[f"loss_{name}"], expected)
    torch.testing.assert_close(losses["loss_box"], torch.tensor(0.0))
    # another truth: overlap 0.8 (0.4 of 0.5), hull as large as the union
    losses = head.loss(class_logits, logits, corners, points, [label((1, [0.2, 0.5, 0.4, 1.0]))])
    torch.testing.assert_close(losses["loss_box"], torch.tensor(2 * 0.2))
    target[0, 0, 1] = 0.8
    expected = functional.binary_cross_entropy_with_logits(class_logits, target, reduction="sum")
    torch.testing.assert_close(losses["loss_class"], expected)


# ---- labels ----


def test_unlabelled_images_give_no_loss_and_empty_ones_do() -> None:
    torch.manual_seed(0)
    model = EupeForObjectDetection(tiny("vit")).eval()  # in train mode the rotary rescale is random
    images, labels = draw_shapes(3, 64, seed=0)
    alone = model(images[:1], labels=labels[:1])
    mixed = model(images, labels=[labels[0], None, None])
    for name, value in alone.loss_dict.items():
        torch.testing.assert_close(mixed.loss_dict[name], value)
    torch.testing.assert_close(mixed.loss, sum(mixed.loss_dict.values()))
    nothing = model(images, labels=[None] * 3)
    assert nothing.loss == 0
    nothing.loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.head.parameters())
    empty = model(images[:1], labels=[label()])
    assert empty.loss_dict["loss_box"] == 0 and empty.loss_dict["loss_class"] > 0
    assert torch.equal(empty.loss, model(images[:1], labels=[{k: torch.tensor([]) for k in label()}]).loss)
    empty.loss.backward()
    assert model.head.classify.bias.grad.min() > 0  # scores should fall


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([label()], r"one dictionary per image, 2 of them, got 1 entries"),
        (label(), r"one dictionary per image, 2 of them, got dict"),
        ([label(), {"labels": torch.tensor([1]), "boxes": torch.zeros(1, 4)}], r"labels\[1\].*got labels, boxes"),
        ([label(), torch.zeros(1, 4)], r"labels\[1\].*got Tensor"),
        ([None, {"class_labels": torch.tensor([1]), "boxes": torch.zeros(2, 4)}], r"labels\[1\].*\(1,\) and \(2, 4\)"),
        ([None, label((3, [0.5, 0.5, 0.1, 0.1]))], r"from 3 to 3.*3 classes.*labels\[1\].*count them from 0"),
        ([None, label((0, [30, 20, 10, 8]))], r"\(30, 20, 10, 8\).*pixels: divide by the width and height"),
        ([None, label((0, [0.5, 0.5, 0.9, 0.8]), (0, [0.2, 0.7, 0.9, 0.8]))], r"1 boxes.*left, top, right, bottom"),
        ([None, label((0, [0.5, 0.5, -0.1, 0.1]))], r"Leave out boxes without area"),
        ([None, label((0, [0.9, 0.5, 0.3, 0.1]))], r"Clip them to the image"),
        ([None, label((0, [float("nan"), 0.5, 0.3, 0.1]))], r"\(nan, 0.5, 0.3, 0.1\)"),
        ([None, {"class_labels": [0], "boxes": None}], r"labels\[1\]\['boxes'\] must be a tensor or an array .* None"),
        ([None, {"class_labels": ["cup"], "boxes": [BOX]}], r"labels\[1\]\['class_labels'\] must be .* \['cup'\]"),
        ([None, {"class_labels": [0], "boxes": [[0.5, None, 0.2, 0.2]]}], r"labels\[1\]\['boxes'\] must be a tensor"),
        ([None, {"class_labels": [0, 1], "boxes": [BOX, [0.5]]}], r"labels\[1\]\['boxes'\] must be a tensor"),
        ([None, {"class_labels": [0.5], "boxes": [BOX]}], r"labels\[1\] has class_labels that are not .*\[0\.5\]"),
        ([None, {"class_labels": [0], "boxes": [[1j] * 4]}], r"labels\[1\]\['boxes'\] must hold real numbers"),
        ([None, {"class_labels": 0, "boxes": BOX}], r"labels\[1\].*got \(\) and \(4,\)"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_are_refused(labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EupeForObjectDetection(tiny("vit"))(torch.zeros(2, 3, 32, 32), labels=labels)


@FAMILIES
def test_labels_that_are_arrays_or_lists_give_the_loss_of_tensors(family: str) -> None:
    torch.manual_seed(0)
    model, images = EupeForObjectDetection(tiny(family)).eval(), torch.rand(2, 3, 64, 64)
    labels = [label((0, BOX), (2, [0.3, 0.3, 0.2, 0.2])), label()]
    expected = model(images, labels=labels).loss
    arrays = [{key: value.numpy() for key, value in one.items()} for one in labels]
    lists = [{key: value.tolist() for key, value in one.items()} for one in labels]
    others = [{"class_labels": a["class_labels"].astype("u2"), "boxes": a["boxes"].astype(">f8")} for a in arrays]
    for given in (arrays, lists, [arrays[0], labels[1]], others):
        assert torch.equal(model(images, labels=given).loss, expected)


def test_labels_of_the_processor_as_arrays_are_taken() -> None:
    processor = EupeImageProcessorPil(size=64)
    coco = {"image_id": 7, "annotations": [{"bbox": [5, 2, 10, 4], "category_id": 2}]}
    image, model = Image.new("RGB", (20, 10)), EupeForObjectDetection(tiny("vit")).eval()
    arrays, tensors = (processor(image, annotations=coco, return_tensors=kind) for kind in ("np", "pt"))
    assert isinstance(arrays["labels"][0]["boxes"], np.ndarray)
    pixels = tensors["pixel_values"]
    assert model(pixels, labels=arrays["labels"]).loss == model(pixels, labels=tensors["labels"]).loss > 0


def test_boxes_that_rounding_moves_over_the_edge_are_taken() -> None:
    labels = [label((0, [0.95, 0.5, 0.1, 1.0]))]
    labels[0]["boxes"] = (labels[0]["boxes"].bfloat16() + 0.002).bfloat16()
    assert EupeForObjectDetection(tiny("vit"))(torch.zeros(1, 3, 32, 32), labels=labels).loss > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"detection_hidden_size": 20}, "multiple of 8, got 20"),
        ({"detection_strides": []}, "detection_strides"),
        ({"detection_strides": [16, 8]}, r"ascend.*\[16, 8\]"),
        ({"detection_strides": [8, 12]}, r"powers of 2, got \[8, 12\]"),
        ({"detection_strides": [0, 8]}, "detection_strides"),
    ],
)
def test_impossible_levels_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(Exception, match=message):
        EupeConfig(**fields)


# ---- post-processing ----


def outputs_of(boxes: list[list[float]], scores: list[list[float]]) -> SimpleNamespace:
    return SimpleNamespace(logits=torch.logit(torch.tensor([scores])), pred_boxes=torch.tensor([boxes]))


def test_post_processing_of_hand_worked_outputs() -> None:
    processor = EupeImageProcessorPil()
    boxes = [[0.5, 0.5, 0.4, 0.2], [0.5, 0.52, 0.4, 0.2], [0.2, 0.2, 0.2, 0.2]]
    outputs = outputs_of(boxes, [[0.9, 0.1], [0.8, 0.7], [0.05, 0.6]])
    [found] = processor.post_process_object_detection(outputs, threshold=0.3, target_sizes=[(100, 200)])
    # 0.8 repeats 0.9 (overlap 0.82, one class); 0.7 lies there too, but is of the other class
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.7, 0.6]))
    assert found["labels"].tolist() == [0, 1, 1]
    expected = torch.tensor([[60.0, 40, 140, 60], [60, 42, 140, 62], [20, 10, 60, 30]])
    torch.testing.assert_close(found["boxes"], expected)
    [found] = processor.post_process_object_detection(outputs, threshold=0.3, nms_threshold=None, top_k=2)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.8]))
    torch.testing.assert_close(found["boxes"][0], torch.tensor([0.3, 0.4, 0.7, 0.6]))  # shares of the sides
    [found] = processor.post_process_object_detection(outputs, threshold=0.3, nms_threshold=0.9)
    assert len(found["scores"]) == 4
    [found] = processor.post_process_object_detection(outputs, threshold=0.95, target_sizes=torch.tensor([[9, 9]]))
    assert found["boxes"].shape == (0, 4) and found["labels"].dtype == torch.long
    with pytest.raises(ValueError, match="there are 1 images and 2 sizes"):
        processor.post_process_object_detection(outputs, target_sizes=[(8, 8)] * 2)


# ---- the model as any other of transformers ----


def test_convnext_with_its_last_stage_alone_reads_three_and_says_so(tmp_path: Path) -> None:
    config = EupeConfig(**TINY["convnext"] | {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 20]})
    model = EupeForObjectDetection(config)
    assert model.config.out_indices == [2, 3, 4] and config.out_indices == [4]
    assert model.config.out_features == ["stage2", "stage3", "stage4"]
    assert model.head.pyramid.in_strides == model.head.pyramid.sources == (8, 16, 32)
    model.save_pretrained(tmp_path)
    assert EupeForObjectDetection.from_pretrained(tmp_path).config.out_indices == [2, 3, 4]
    for stages in ([1, 4], [3]):
        chosen = EupeConfig(**config.to_dict() | {"out_indices": stages, "out_features": None})
        assert EupeForObjectDetection.complete_config(chosen) is chosen
    assert EupeForObjectDetection.complete_config(vit := tiny("vit")) is vit


@FAMILIES
def test_saving_and_loading_reproduces_every_output(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EupeForObjectDetection(tiny(family)).eval()
    pixel_values = torch.randn(2, 3, 70, 48)
    model.save_pretrained(tmp_path)
    again = AutoModelForObjectDetection.from_pretrained(tmp_path)
    assert type(again) is EupeForObjectDetection
    with torch.inference_mode():
        expected, found = model(pixel_values), again(pixel_values)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.pred_boxes, expected.pred_boxes)
    encoder = EupeModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), model.eupe.parameters(), strict=True))
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForObjectDetection"] == "modeling_eupe_detection.EupeForObjectDetection"


_ISOLATED = """
import sys
sys.modules["eupe_hf"] = None
import torch
from transformers import AutoImageProcessor, AutoModelForObjectDetection
folder = sys.argv[1]
model = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.inference_mode():
    outputs = model(torch.load(f"{folder}/pixels.pt"))
found = processor.post_process_object_detection(outputs, threshold=0.0)
torch.save([outputs.logits, outputs.pred_boxes, found[0]["scores"]], f"{folder}/outputs.pt")
"""


def test_process_without_the_package_computes_the_same(tmp_path: Path) -> None:
    model = EupeForObjectDetection(tiny("convnext")).eval()
    model.save_pretrained(tmp_path)
    pixel_values = torch.randn(1, 3, 64, 48)
    torch.save(pixel_values, tmp_path / "pixels.pt")
    command = [sys.executable, "-I", "-c", _ISOLATED, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with torch.inference_mode():
        expected = model(pixel_values)
    logits, boxes, scores = torch.load(tmp_path / "outputs.pt")
    assert torch.equal(logits, expected.logits) and torch.equal(boxes, expected.pred_boxes)
    [found] = EupeImageProcessorPil().post_process_object_detection(expected, threshold=0.0)
    assert torch.equal(scores, found["scores"])


@FAMILIES
def test_frozen_encoder_stays_as_it_is(family: str) -> None:
    model = EupeForObjectDetection(tiny(family)).train()
    model.freeze_backbone()
    images, labels = draw_shapes(2, 64, seed=0)
    first, second = (model(images, labels=labels) for _ in range(2))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.loss, second.loss)
    first.loss.backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"head"}
    assert all(p.grad is not None for p in model.head.parameters())


@FAMILIES
def test_bfloat16_model_predicts_and_trains(family: str) -> None:
    torch.manual_seed(0)
    model = EupeForObjectDetection(tiny(family)).train()
    model.freeze_backbone()  # else the rotary rescale is random
    images, labels = draw_shapes(4, 64, seed=0)
    expected = model(images, labels=labels)
    outputs = model.bfloat16()(images, labels=labels)
    assert outputs.logits.dtype == torch.bfloat16
    assert outputs.pred_boxes.dtype == outputs.loss.dtype == torch.float32
    assert (outputs.pred_boxes - expected.pred_boxes).abs().max() < 0.02
    assert abs(float((outputs.loss / expected.loss).detach()) - 1) < 0.05
    outputs.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


def test_gradient_checkpointing_gives_equal_gradients() -> None:
    images, labels = draw_shapes(2, 64, seed=0)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = EupeForObjectDetection(tiny("vit", pos_embed_rescale=None)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(images, labels=labels).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 50
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@FAMILIES
def test_detector_compiles_without_a_graph_break(family: str) -> None:
    model = EupeForObjectDetection(tiny(family)).eval()
    pixel_values = torch.randn(1, 3, 64, 80)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        expected, found = model(pixel_values), compiled(pixel_values)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.pred_boxes, expected.pred_boxes)


class _Tensors(torch.nn.Module):
    # the exporter takes tensors, not transformers' output classes
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values, return_dict=False)


@FAMILIES
def test_export_takes_any_batch_and_size(family: str) -> None:
    model = EupeForObjectDetection(tiny(family)).eval().requires_grad_(False)
    dims = {0: Dim("batch", min=1, max=64), 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    example = {"pixel_values": torch.randn(2, 3, 64, 96)}
    program = export(_Tensors(model), (), example, dynamic_shapes={"pixel_values": dims}).module()
    for size in [(1, 64, 96), (3, 80, 64), (2, 77, 130)]:
        pixel_values = torch.randn(size[0], 3, *size[1:])
        expected = model(pixel_values)
        logits, boxes = program(pixel_values=pixel_values)
        torch.testing.assert_close(logits, expected.logits)
        torch.testing.assert_close(boxes, expected.pred_boxes)


def test_trainer_trains_and_evaluates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = EupeForObjectDetection(tiny("convnext"))
    images, labels = draw_shapes(6, 64, seed=0)
    data = [{"pixel_values": image, "labels": entry} for image, entry in zip(images, labels, strict=True)]

    def collate(rows: list[dict]) -> dict:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": [row["labels"] for row in rows],
        }

    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=2, per_device_eval_batch_size=2,
        remove_unused_columns=False, eval_do_concat_batches=False, report_to=[], use_cpu=True,
    )  # fmt: skip
    seen = {}

    def metrics(predictions) -> dict[str, float]:
        # as of transformers' detectors, batch by batch: losses, logits, boxes
        seen["logits"], seen["boxes"] = ([batch[i] for batch in predictions.predictions] for i in (1, 2))
        seen["labels"] = predictions.label_ids
        return {"batches": len(seen["logits"])}

    trainer = Trainer(
        model, arguments, data_collator=collate, train_dataset=data, eval_dataset=data, compute_metrics=metrics
    )
    before = model.head.classify.weight.clone()
    assert trainer.train().training_loss > 0
    assert not torch.equal(before, model.head.classify.weight)
    result = trainer.evaluate()
    assert result["eval_loss"] > 0 and result["eval_batches"] == 3
    assert seen["logits"][0].shape == (2, 80, 3) and seen["boxes"][2].shape == (2, 80, 4)
    assert len(seen["labels"]) == 3


@pytest.mark.parametrize("name", list(VARIANTS))
def test_head_fits_every_encoder(name: str) -> None:
    with torch.device("meta"):
        model = EupeForObjectDetection(variant_config(name, num_labels=80)).eval()
        outputs = model(torch.zeros(2, 3, 256, 320))
    positions = sum(256 * 320 // stride**2 for stride in (8, 16, 32))
    assert outputs.logits.shape == (2, positions, 80) and outputs.pred_boxes.shape == (2, positions, 4)
    parameters = sum(p.numel() for p in model.head.parameters())
    assert 1.0e6 < parameters < 2.6e6


def test_head_works_on_features_of_any_encoder_by_itself() -> None:
    torch.manual_seed(0)
    config = tiny("convnext", out_indices=[3])  # one coarse map: the pyramid makes the finer level from it
    head = EupeDetectionHead(config)
    images = torch.randn(2, 48, 4, 6)
    outputs = head((images,), (torch.zeros(2, 48),), (64, 96), [label((2, [0.5, 0.5, 0.5, 0.5])), None])
    assert outputs.logits.shape == (2, 8 * 12 + 4 * 6, 3)
    outputs.loss.backward()
    with pytest.raises(ValueError, match="one dictionary per image, 2 of them, got 3 entries"):
        head((images,), (), (64, 96), [None] * 3)


def test_pipeline_runs_a_saved_detector(tmp_path: Path) -> None:
    image = Image.open(ROOT / "examples" / "images" / "coffee.jpg")
    model = EupeForObjectDetection(tiny("vit", id2label={0: "cup", 1: "spoon", 2: "table"})).eval()
    model.save_pretrained(tmp_path)
    detect = pipeline("object-detection", model=str(tmp_path))
    found, twice = detect(image, threshold=0.0), detect([image] * 2, threshold=0.0)
    assert twice == [found, found]
    assert {part["label"] for part in found} <= {"cup", "spoon", "table"}
    with torch.inference_mode():
        outputs = model(detect.image_processor(image, return_tensors="pt")["pixel_values"])
    [expected] = detect.image_processor.post_process_object_detection(outputs, 0.0, [image.size[::-1]])
    assert [part["score"] for part in found] == expected["scores"].tolist()
    assert [list(part["box"].values()) for part in found] == expected["boxes"].int().tolist()
    assert detect(image) == []  # untrained: nothing above one half


def test_pipeline_takes_the_short_name_and_asks_for_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with HubServer() as server, use_hub(server, tmp_path / "home"):
        server.add_repo(REPO, {FILE: checkpoint()[0]})
        detect = pipeline("object-detection", model="eupe-t")
        assert server.requests == FETCHED
    assert type(detect.model) is EupeForObjectDetection and detect.model.name_or_path == "eupe-t"
    assert detect(Image.new("RGB", (40, 30)), threshold=0.99) == []
