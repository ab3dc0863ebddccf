# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics on cases worked by hand and against torchmetrics, scikit-learn and pycocotools; predictions at full size."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, tiny_config
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.metrics import accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch.nn import functional
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error

from eupe_hf import EupeBackbone, EupeForDepthEstimation, EupeForSegmentation, EupeImageProcessorPil, EupeModel
from eupe_hf import evaluation as ev


NAN = float("nan")


# ---- results ----


def result(**changes) -> ev.EvaluationResult:
    fields = {
        "protocol": "segmentation", "model": "runs/my-segmenter", "dataset": "someone/streets", "split": "validation",
        "num_examples": 20, "metrics": {"mean_iou": 0.5, "pixel_accuracy": 0.75}, "settings": {"size": 512},
    }  # fmt: skip
    return ev.EvaluationResult(**{**fields, **changes})


def test_result_is_json_and_metadata_of_a_card(tmp_path: Path) -> None:
    result().save(tmp_path / "new" / "results.json")
    saved = json.loads((tmp_path / "new" / "results.json").read_text())
    assert saved["metrics"] == {"mean_iou": 0.5, "pixel_accuracy": 0.75} and saved["settings"] == {"size": 512}
    EupeForSegmentation(tiny_config("vit")).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    card.data.model_name, card.data.eval_results = "my-segmenter", result().eval_results()
    card.save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md").data
    assert [(entry.metric_type, entry.metric_value, entry.dataset_type) for entry in again.eval_results] == [
        ("mean_iou", 0.5, "someone/streets"), ("pixel_accuracy", 0.75, "someone/streets")
    ]  # fmt: skip
    assert again.eval_results[0].task_type == "image-segmentation" and again.license is not None
    assert again.to_dict()["model-index"] == saved["model-index"]


def test_result_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean_iou' is nan"):
        result(metrics={"mean_iou": NAN})
    with pytest.raises(ValueError, match=r"protocol must be one of .*knn, .*got 'ocr'"):
        result(protocol="ocr")


# ---- k-NN ----


def clusters(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of five classes that overlap, of very different lengths."""
    centres = torch.randn(5, 16, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(count, 16, generator=generator)
    return features * torch.rand(count, 1, generator=generator).add(0.1), labels


def test_knn_votes_as_worked_by_hand() -> None:
    bank = torch.tensor([[2.0, 0], [0.8, 0.6], [0.6, 0.8]])  # cosines to (3, 0): 1, 0.8, 0.6
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[3.0, 0]])
    # at temperature 0.07 the first outweighs both others, at 1 it does not: e^1 = 2.72 < e^0.8 + e^0.6 = 4.05
    assert ev.knn_predict(bank, labels, query, k=(1, 3))[3].item() == 0
    assert ev.knn_predict(bank, labels, query, k=(1, 3), temperature=1.0)[3].item() == 1
    assert ev.knn_accuracy(bank, labels, query, torch.tensor([0]), k=(1,)) == {"accuracy@1": 1.0}


def test_knn_agrees_with_scikit_learn() -> None:
    (bank, labels), (queries, true) = clusters(400, 0), clusters(150, 1)
    found = ev.knn_predict(bank, labels, queries)
    for k in ev.KNN_K:

        def weigh(distances):  # scikit-learn gives 1 - cosine
            return torch.softmax(torch.from_numpy(1 - distances) / 0.07, dim=1).numpy()

        reference = KNeighborsClassifier(k, metric="cosine", weights=weigh).fit(bank.numpy(), labels.numpy())
        expected = reference.predict(queries.numpy())
        assert found[k].tolist() == expected.tolist()
        accuracy = ev.knn_accuracy(bank, labels, queries, true, k=(k,))[f"accuracy@{k}"]
        assert accuracy == accuracy_score(true, expected) and 0.5 < accuracy < 1


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(7, 33), (150, 5), (1, 400)])
def test_knn_in_chunks_equals_the_whole(query_chunk: int, bank_chunk: int) -> None:
    (bank, labels), (queries, _) = clusters(400, 0), clusters(150, 1)
    whole = ev.knn_predict(bank, labels, queries)
    parts = ev.knn_predict(bank, labels, queries, query_chunk=query_chunk, bank_chunk=bank_chunk)
    assert all(torch.equal(whole[k], parts[k]) for k in ev.KNN_K)


def test_knn_refuses_what_it_cannot_count() -> None:
    (bank, labels), (queries, true) = clusters(40, 0), clusters(5, 1)
    with pytest.raises(ValueError, match=r"k must be from 1 to the 40 features of the bank, got \[10, 100\]"):
        ev.knn_predict(bank, labels, queries, k=[10, 100])
    with pytest.raises(ValueError, match=r"got \(40, 16\), \(39,\) and \(5, 16\)"):
        ev.knn_predict(bank, labels[1:], queries, k=[1])
    with pytest.raises(ValueError, match="queries holds 1 values of 80 that are not finite"):
        ev.knn_predict(bank, labels, queries.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(NAN)), k=[1])
    with pytest.raises(ValueError, match=r"queries with one label each, got \(0,\) for 0"):
        ev.knn_accuracy(bank, labels, queries[:0], true[:0], k=[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_extract_features_gives_the_pooled_output_of_the_protocol(family: str) -> None:
    torch.manual_seed(0)
    model, processor = EupeModel(tiny_config(family)).eval(), EupeImageProcessorPil()
    pictures = [Image.effect_noise((90 + 20 * i, 80), 60).convert("RGB") for i in range(5)]
    rows = [(picture, i % 2) for i, picture in enumerate(pictures)]
    features, labels = ev.extract_features(model, processor, rows, size=56, batch_size=2)
    assert labels.tolist() == [0, 1, 0, 1, 0] and features.dtype == torch.float32
    inputs = processor(
        pictures[3], size={"shortest_edge": 64}, resample=3, do_center_crop=True, crop_size=56, return_tensors="pt"
    )
    with torch.inference_mode():
        torch.testing.assert_close(features[3:4], model(**inputs).pooler_output, atol=1e-5, rtol=1e-5)


# ---- segmentation ----


def test_segmentation_metrics_as_worked_by_hand() -> None:
    metrics = ev.SegmentationMetrics(num_labels=4)
    # of class 0 two of three are found, of class 1 one of one; class 2 is predicted only, class 3 nowhere
    metrics.update(torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[0, 0, 0, 1, 255]]))
    metrics.update(torch.tensor([[2]]), torch.tensor([[1]]))
    assert metrics.compute() == pytest.approx(
        {"mean_iou": (2 / 3 + 1 / 3 + 0) / 3, "pixel_accuracy": 3 / 5, "mean_accuracy": (2 / 3 + 1 / 2) / 2}
    )
    assert metrics.class_iou()[3].isnan()


def test_segmentation_metrics_agree_with_torchmetrics() -> None:
    torch.manual_seed(0)
    metrics = ev.SegmentationMetrics(num_labels=6)
    jaccard = MulticlassJaccardIndex(6, average="macro", ignore_index=255)
    micro, macro = (MulticlassAccuracy(6, average=average, ignore_index=255) for average in ("micro", "macro"))
    for size in ((7, 9), (16, 4)):
        labels = torch.randint(0, 6, size)
        found = torch.where(torch.rand(size) < 0.6, labels, torch.randint(0, 6, size))
        labels[0, :3] = 255
        metrics.update(found, labels)
        for reference in (jaccard, micro, macro):
            reference.update(found[None], labels[None])
    expected = {"mean_iou": jaccard, "pixel_accuracy": micro, "mean_accuracy": macro}
    assert metrics.compute() == pytest.approx({name: float(m.compute()) for name, m in expected.items()}, abs=1e-6)


def test_zero_label_rule_of_ade20k() -> None:
    labels = torch.tensor([[0, 1, 150, 255]], dtype=torch.uint8)
    assert ev.reduce_zero_label(labels).tolist() == [[255, 0, 149, 255]]
    metrics = ev.SegmentationMetrics(num_labels=150, reduce_labels=True)
    metrics.update(torch.tensor([[7, 0, 149, 7]]), labels)
    assert metrics.compute() == {"mean_iou": 1.0, "pixel_accuracy": 1.0, "mean_accuracy": 1.0}
    with pytest.raises(ValueError, match=r"labels go from 0 to 150, but the model has 150 classes.*reduce_labels"):
        ev.SegmentationMetrics(num_labels=150).update(torch.zeros(1, 4, dtype=torch.long), labels)


def test_segmentation_metrics_refuse_what_they_cannot_count() -> None:
    metrics = ev.SegmentationMetrics(num_labels=3)
    metrics.update(torch.zeros(2, 2, dtype=torch.long), torch.full((2, 2), 255))
    with pytest.raises(ValueError, match="No labelled pixel"):
        metrics.compute()
    with pytest.raises(ValueError, match=r"of the labels, \(2, 2\), got \(2, 3\)"):
        metrics.update(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        metrics.update(torch.full((2, 2), NAN), torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="These are the predictions"):
        metrics.update(torch.full((2, 2), 3), torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sliding_window", [True, False])
def test_label_map_has_the_size_of_the_picture(family: str, sliding_window: bool) -> None:
    torch.manual_seed(0)
    model = EupeForSegmentation(tiny_config(family, num_labels=3)).eval()
    torch.nn.init.normal_(model.head.linear.conv.weight)
    processor, picture = EupeImageProcessorPil(), Image.effect_noise((200, 90), 90).convert("RGB")
    found = ev.predict_label_map(model, processor, picture, 64, sliding_window)
    assert found.shape == (90, 200)
    if sliding_window:
        inputs = processor(picture, size={"height": 64, "width": 142}, return_tensors="pt")["pixel_values"]
        logits = model.predict_sliding_window(inputs, window=64, step=42)
    else:
        width = 128 if family == "convnext" else 144  # 142.2 pixels, to the nearest 32 or 16
        inputs = processor(picture, size={"height": 64, "width": width}, return_tensors="pt")["pixel_values"]
        logits = model(inputs).logits
    expected = functional.interpolate(logits, (90, 200), mode="bilinear", align_corners=False).argmax(dim=1)[0]
    assert torch.equal(found, expected) and len(found.unique()) > 1
    with pytest.raises(ValueError, match="multiple of the patch size"):
        ev.predict_label_map(model, processor, picture, 70)


# ---- depth ----


def test_depth_metrics_as_worked_by_hand() -> None:
    metrics = ev.DepthMetrics()
    # the second row is unknown: no depth, beyond ten metres, NaN; predictions there do not matter
    metrics.update(torch.tensor([[2.0, 4.0, 3.0], [NAN, 1, 1]]), torch.tensor([[1.0, 4.0, 3.0], [0, 11, NAN]]))
    metrics.update(torch.ones(1, 1), torch.zeros(1, 1))  # no valid depth: does not count
    expected = {
        "rmse": math.sqrt(1 / 3), "abs_rel": 1 / 3, "rmse_log": math.log(2) / math.sqrt(3), "log10": math.log10(2) / 3,
        "sigloss": math.sqrt((g := math.log(2.001 / 1.001)) ** 2 * (1 / 3 + 0.15 / 9)),
        "delta1": 2 / 3, "delta2": 2 / 3, "delta3": 2 / 3,
    }  # fmt: skip
    assert g > 0 and metrics.compute() == pytest.approx(expected, rel=1e-6)
    metrics.update(torch.tensor([[5.0]]), torch.tensor([[5.0]]))  # a perfect image, of one pixel
    halves = {name: (value + (1 if name.startswith("delta") else 0)) / 2 for name, value in expected.items()}
    assert metrics.compute() == pytest.approx(halves, rel=1e-6)


def test_depth_metrics_agree_with_torchmetrics_and_the_loss() -> None:
    torch.manual_seed(0)
    true, found = 0.5 + 9 * torch.rand(20, 30), 0.5 + 9 * torch.rand(20, 30)
    metrics = ev.DepthMetrics()
    metrics.update(found, true)
    scores = metrics.compute()
    assert scores["rmse"] == pytest.approx(float(mean_squared_error(found, true, squared=False)))
    assert scores["rmse_log"] == pytest.approx(float(mean_squared_error(found.log(), true.log(), squared=False)))
    assert scores["log10"] == pytest.approx(float(mean_absolute_error(found.log10(), true.log10())))
    assert scores["abs_rel"] == pytest.approx(float(((found - true).abs() / true).mean()))
    head = EupeForDepthEstimation(tiny_config("vit")).head
    assert scores["sigloss"] == pytest.approx(float(head.loss(found[None], true[None])), rel=1e-5)


def test_depth_metrics_count_the_eigen_crop_alone() -> None:
    metrics = ev.DepthMetrics(eigen_crop=True)
    found, true = torch.full((480, 640), 9.0), torch.full((480, 640), 2.0)
    found[45:471, 41:601] = 3.0
    metrics.update(found, true)
    assert metrics.compute()["rmse"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"480 x 640 pixels, got \(481, 640\)"):
        metrics.update(torch.ones(481, 640), torch.ones(481, 640))


def test_depth_metrics_refuse_what_they_cannot_count() -> None:
    metrics = ev.DepthMetrics()
    metrics.update(torch.ones(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"No image has a depth above 0\.001 and up to 10\.0 metres"):
        metrics.compute()
    with pytest.raises(ValueError, match="predicted holds 1 values of 4 that are not finite"):
        metrics.update(torch.tensor([[NAN, 1], [1, 1]]), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"got \(2, 3\) and \(2, 2\)"):
        metrics.update(torch.ones(2, 3), torch.ones(2, 2))
    metrics.update(torch.tensor([[-1.0, 99.0]]), torch.tensor([[1.0, 10.0]]))  # clamped to the range, so finite
    assert all(map(math.isfinite, metrics.compute().values()))


@pytest.mark.parametrize("family", FAMILIES)
def test_depth_has_the_size_of_the_picture_without_the_padding(family: str) -> None:
    torch.manual_seed(0)
    model, processor = EupeForDepthEstimation(tiny_config(family)).eval(), EupeImageProcessorPil()
    torch.nn.init.normal_(model.head.linear.conv.weight)
    picture = Image.effect_noise((75, 50), 90).convert("RGB")
    found = ev.predict_depth(model, processor, picture)
    inputs = processor(picture, do_resize=False, return_tensors="pt")["pixel_values"]
    if family == "vit":  # to 80 x 64: two pixels at the left, seven at the top
        padded, top, left = functional.pad(inputs, (2, 3, 7, 7)), 7, 2
    else:  # to 96 x 64
        padded, top, left = functional.pad(inputs, (10, 11, 7, 7)), 7, 10
    with torch.inference_mode():
        depth = model(padded, flip_average=True).predicted_depth
    full = functional.interpolate(depth[None], padded.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(found, full[top : top + 50, left : left + 75])
    assert found.std() > 0 and not torch.equal(found, ev.predict_depth(model, processor, picture, flip_average=False))


# ---- correspondence ----


@pytest.mark.parametrize("chunk_size", [64, 1000, 16384])
def test_matching_equals_maps_upsampled_to_the_picture(chunk_size: int) -> None:
    torch.manual_seed(0)
    source, target = torch.randn(8, 5, 7), torch.randn(8, 6, 4)
    source_size, target_size = (43, 61), (50, 31)
    points = torch.tensor([[0, 0], [60, 42], [17, 30], [33, 8]])
    found = ev.match_keypoints(source, target, points, source_size, target_size, chunk_size)
    big_source, big_target = (
        functional.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
        for maps, size in ((source, source_size), (target, target_size))
    )
    for (x, y), place in zip(points.tolist(), found.tolist(), strict=True):
        similarity = functional.cosine_similarity(big_source[:, y, x].view(-1, 1, 1), big_target, dim=0)
        assert similarity[place[1], place[0]] >= similarity.max() - 1e-5


def test_a_picture_is_matched_with_itself() -> None:
    torch.manual_seed(0)
    features = torch.randn(16, 12, 9)
    points = torch.stack((torch.randint(0, 72, (40,)), torch.randint(0, 96, (40,))), dim=1).double()
    found = ev.match_keypoints(features, features, points, (96, 72), (96, 72))
    # within the border of half a cell of 8 pixels the upsampled map is constant
    inner = ((points >= 4) & (points < torch.tensor([68, 92]))).all(dim=1)
    assert inner.sum() > 20 and torch.equal(found[inner].double(), points[inner])
    assert ev.match_keypoints(features, features, points[:0], (96, 72), (96, 72)).shape == (0, 2)
    with pytest.raises(ValueError, match="target_map holds 1 values"):
        broken = features.clone()
        broken[0, 0, 0] = NAN
        ev.match_keypoints(features, broken, points, (96, 72), (96, 72))
    with pytest.raises(ValueError, match=r"got \(16, 12, 9\), \(15, 12, 9\) and \(40, 2\)"):
        ev.match_keypoints(features, features[1:], points, (96, 72), (96, 72))


@pytest.mark.parametrize("family", FAMILIES)
def test_predict_keypoints_works_in_pixels_of_the_pictures(family: str) -> None:
    torch.manual_seed(0)
    model, processor = EupeBackbone(tiny_config(family, layerscale_value=0.5)).eval(), EupeImageProcessorPil()
    source, target = (Image.effect_noise(size, 90).convert("RGB") for size in ((120, 90), (200, 70)))
    points = torch.tensor([[60.0, 45.0], [90, 30]])
    found = ev.predict_keypoints(model, processor, source, source, points, size=128)
    assert (found - points).abs().max() <= 1  # float32 similarities of neighbouring pixels can tie
    found = ev.predict_keypoints(model, processor, source, target, points, size=128)
    with torch.inference_mode():
        inputs = processor([source, target], size={"height": 128, "width": 128}, return_tensors="pt")
        maps = model(**inputs).feature_maps[-1]
    assert torch.equal(found, ev.match_keypoints(*maps, points, (90, 120), (70, 200)))
    assert not torch.equal(found, ev.match_keypoints(*maps, points, (120, 90), (200, 70)))


def test_pck_as_worked_by_hand() -> None:
    metrics = ev.CorrespondenceMetrics(alpha=0.1)
    # the box is 100 wide and 40 high: ten pixels count, eleven do not; the third point is not visible
    found = torch.tensor([[10, 0], [0, 11], [500, 500]])
    metrics.update(found, torch.tensor([[0.0, 0], [0, 0], [NAN, NAN]]), (5, 5, 105, 45))
    metrics.update(torch.tensor([[7, 7]]), torch.tensor([[7.0, 7.0]]), (0, 0, 10, 10))
    metrics.update(torch.tensor([[7, 7]]), torch.tensor([[NAN, 7.0]]), (0, 0, 10, 10))  # nothing visible
    assert metrics.compute() == pytest.approx({"pck@0.1": (1 / 2 + 1) / 2, "pck@0.1_per_point": 2 / 3})


def test_pck_refuses_what_it_cannot_count() -> None:
    metrics = ev.CorrespondenceMetrics()
    with pytest.raises(ValueError, match="No visible point"):
        metrics.compute()
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(2, 2\)"):
        metrics.update(torch.zeros(1, 2), torch.zeros(2, 2), (0, 0, 1, 1))
    for box in ((5, 5, 5, 9), (0, 0, NAN, 1), (1, 2)):
        with pytest.raises(ValueError, match="with an extent"):
            metrics.update(torch.zeros(1, 2), torch.zeros(1, 2), box)
    with pytest.raises(ValueError, match="found holds 1 values"):
        metrics.update(torch.tensor([[NAN, 0]]), torch.zeros(1, 2), (0, 0, 1, 1))


# ---- detection ----


def boxes(*rows: list[float], labels: list[int], **extra: list[float]) -> dict[str, torch.Tensor]:
    entry = {"boxes": torch.tensor(rows), "labels": torch.tensor(labels)}
    return {**entry, **{key: torch.tensor(value) for key, value in extra.items()}}


def test_average_precision_as_worked_by_hand() -> None:
    targets = [boxes([0.0, 0, 10, 10], [20, 20, 40, 40], labels=[0, 0]), boxes([5.0, 5, 15, 15], labels=[1])]
    perfect = [{**entry, "scores": torch.full((len(entry["labels"]),), 0.9)} for entry in targets]
    assert ev.average_precision(perfect, targets) == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})
    # class 0: the first box with IoU 0.8 (thresholds 0.5 to 0.8, seven of ten), the second not: at most half is
    # recalled, 51 of COCO's 101 recall levels. Class 1: right, after a better-scored false box: precision 1/2.
    found = [
        boxes([0.0, 0, 10, 8], labels=[0], scores=[0.9]),
        boxes([80.0, 80, 90, 90], [5, 5, 15, 15], labels=[1, 1], scores=[0.9, 0.8]),
    ]
    first = 51 / 101
    expected = {"ap": (0.7 * first + 0.5) / 2, "ap50": (first + 0.5) / 2, "ap75": (first + 0.5) / 2}
    assert ev.average_precision(found, targets) == pytest.approx(expected, abs=1e-6)


def test_average_precision_of_empty_predictions_and_targets() -> None:
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    target = boxes([0.0, 0, 10, 10], labels=[3])
    assert ev.average_precision([none], [target]) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    empty = {"boxes": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    scored = boxes([0.0, 0, 10, 10], labels=[3], scores=[0.5])
    # a box in a picture without any costs precision only where it scores above the right one
    assert ev.average_precision([scored, scored], [target, empty])["ap"] == pytest.approx(1.0)
    better = {**scored, "scores": torch.tensor([0.6])}
    assert ev.average_precision([scored, better], [target, empty])["ap"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="no boxes"):
        ev.average_precision([scored], [empty])


def test_average_precision_refuses_what_it_cannot_count(capsys: pytest.CaptureFixture[str]) -> None:
    target = boxes([0.0, 0, 10, 10], labels=[0])
    scored = {**target, "scores": torch.tensor([0.5])}
    with pytest.raises(ValueError, match="as many predictions as targets; one of them ends after 1"):
        ev.average_precision([scored, scored], [target])
    with pytest.raises(ValueError, match=r"predictions\[0\] has no scores"):
        ev.average_precision([target], [target])
    with pytest.raises(ValueError, match=r"scores of predictions\[0\] holds 1 values"):
        ev.average_precision([{**scored, "scores": torch.tensor([NAN])}], [target])
    with pytest.raises(ValueError, match=r"targets\[0\] must have boxes \(N, 4\).*got \(1, 4\), \(2,\)"):
        ev.average_precision([scored], [{**target, "labels": torch.tensor([0, 1])}])
    ev.average_precision([scored], [target])
    assert capsys.readouterr().out == ""  # pycocotools prints its steps


def test_crowd_boxes_may_be_found_any_number_of_times() -> None:
    target = boxes([0.0, 0, 100, 100], [200, 200, 220, 220], labels=[0, 0], iscrowd=[1, 0])
    found = boxes(
        [0.0, 0, 30, 30], [40, 40, 90, 90], [200, 200, 220, 220], labels=[0, 0, 0], scores=[0.9, 0.8, 0.7]
    )  # fmt: skip
    assert ev.average_precision([found], [target])["ap"] == pytest.approx(1.0)
    target.pop("iscrowd")
    assert ev.average_precision([found], [target])["ap"] < 0.5


# ---- the extra ----


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"needs torchmetrics, .*: pip install 'eupe-hf\[eval\]'"):
        ev.SegmentationMetrics(2).update(torch.zeros(1, 1).long(), torch.zeros(1, 1).long())
    with pytest.raises(ImportError, match="needs pycocotools, "):
        ev.average_precision([], [])
