# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Metrics of classification, segmentation, depth and detection, as fractions: `pip install 'eupe-hf[eval]'`.

They take tensors from any source and count as they come, so that no data set has to fit into memory. Counts and errors
come from torchmetrics, average precision from pycocotools. Code of our own stands where neither follows the protocol:
a comment says what was weighed, and the tests compare.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch

from eupe_hf.extras import require
from eupe_hf.models.modeling_eupe_head import check_class_ids, check_ignore_index


# rows and columns of a 480 x 640 NYUv2 image that Eigen et al. (2014, arXiv:1406.2283) evaluate
NYU_EIGEN_CROP = (slice(45, 471), slice(41, 601))
# boxes that reach no farther than the first are shares of the image's sides, farther than the second pixels
_CLIPPED, _PIXELS = 0.05, 8.0


def check_finite(tensor: torch.Tensor, name: str) -> None:
    """Raise a ValueError for NaN and infinity, instead of returning meaningless scores."""
    if not tensor.numel() or torch.stack(tensor.detach().aminmax()).isfinite().all():  # makes no copy of a large bank
        return
    bad = tensor.numel() - int(tensor.isfinite().sum())
    raise ValueError(
        f"{name} holds {bad} values of {tensor.numel()} that are not finite: look for an overflow in half precision, "
        "or a damaged checkpoint."
    )


class ClassificationMetrics:
    """Accuracy, and its mean over the classes that occur.

    Args:
        num_labels: Number of classes.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf.evaluation import ClassificationMetrics

    >>> metrics = ClassificationMetrics(num_labels=3)
    >>> metrics.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
    >>> metrics.compute()["mean_accuracy"]
    0.75

    ```
    """

    def __init__(self, num_labels: int):
        # torchmetrics' confusion matrix would take 3.5 GB for 21,000 classes
        self.hits, self.totals = (torch.zeros(num_labels, dtype=torch.int64) for _ in range(2))

    def update(self, predicted: torch.Tensor, labels: torch.Tensor) -> None:
        """Count class ids `predicted` (N,) against `labels` (N,), where -100 is ignored.

        Raises:
            ValueError: The shapes differ, or an id is not a class.
        """
        if predicted.shape != labels.shape:
            raise ValueError(f"predicted must be {tuple(labels.shape)}, as the labels, got {tuple(predicted.shape)}.")
        predicted, labels = predicted.long(), labels.long()
        check_class_ids(labels, len(self.totals), "-100 is ignored.", -100)
        predicted, labels = predicted[labels != -100].cpu(), labels[labels != -100].cpu()
        self.totals += torch.bincount(labels, minlength=len(self.totals))
        self.hits += torch.bincount(labels[predicted == labels], minlength=len(self.totals))

    def compute(self) -> dict[str, float]:
        """Return `accuracy` and `mean_accuracy`, or raise a ValueError if no image with a class was counted."""
        if not self.totals.sum():
            raise ValueError("No image with a class was counted.")
        hits, occurs = self.hits.double(), self.totals > 0
        return {
            "accuracy": (hits.sum() / self.totals.sum()).item(),
            "mean_accuracy": (hits[occurs] / self.totals[occurs]).mean().item(),
        }


def reduce_zero_label(labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """ADE20K's rule: label 0, "other", becomes the ignore index, and 1 to 150 become 0 to 149; int64, any shape."""
    labels = labels.long()
    return torch.where((labels == 0) | (labels == ignore_index), ignore_index, labels - 1)


class SegmentationMetrics:
    """Mean IoU, pixel accuracy and mean class accuracy, from one confusion matrix of all pixels of a data set.

    Mean IoU leaves out classes that occur neither in the labels nor in the predictions; mean class accuracy leaves out
    classes that do not occur in the labels.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels to ignore, which cannot be a class.
        reduce_labels: Apply `reduce_zero_label` to the labels, as for ADE20K; predictions stay as they are.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf.evaluation import SegmentationMetrics

    >>> metrics = SegmentationMetrics(num_labels=2)
    >>> metrics.update(torch.tensor([[0, 1]]), torch.tensor([[0, 255]]))
    >>> metrics.compute()["pixel_accuracy"]
    1.0

    ```
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, reduce_labels: bool = False):
        check_ignore_index(ignore_index, num_labels, "ignore_index")
        self.num_labels, self.ignore_index, self.reduce_labels = num_labels, ignore_index, reduce_labels
        self.confusion = torch.zeros(num_labels, num_labels, dtype=torch.int64)  # true class, predicted class

    def update(self, predicted: torch.Tensor, labels: torch.Tensor) -> None:
        """Count class ids `predicted` against `labels`, integers of one shape, for example (H, W).

        Raises:
            ValueError: The shapes differ, ids are not integers, or an id is not a class.
        """
        if predicted.shape != labels.shape or predicted.is_floating_point():
            raise ValueError(
                f"predicted must be class ids of the shape of the labels, {tuple(labels.shape)}, got "
                f"{tuple(predicted.shape)} of {predicted.dtype}."
            )
        if labels.is_floating_point():
            raise ValueError(f"labels must be class ids, integers, got {labels.dtype}.")
        labels = reduce_zero_label(labels, self.ignore_index) if self.reduce_labels else labels.long()
        hint = f"{self.ignore_index} is ignored. Where labels count from 1, as ADE20K's, set reduce_labels."
        check_class_ids(labels, self.num_labels, hint, self.ignore_index)
        check_class_ids(predicted, self.num_labels, "These are the predictions.")
        predicted = predicted.long()
        count = require("torchmetrics.functional.classification").multiclass_confusion_matrix
        matrix = count(predicted.cpu(), labels.cpu(), self.num_labels, None, self.ignore_index, validate_args=False)
        self.confusion += matrix

    def class_iou(self) -> torch.Tensor:
        """Intersection over union per class, (num_labels,); NaN for a class that does not occur."""
        hits = self.confusion.diag().double()
        return hits / (self.confusion.sum(0) + self.confusion.sum(1) - hits)

    def compute(self) -> dict[str, float]:
        """Return `mean_iou`, `pixel_accuracy`, `mean_accuracy`, or raise a ValueError if no label was counted."""
        if not self.confusion.sum():
            raise ValueError("No labelled pixel was counted: there are no label maps, or all of them are ignored.")
        # torchmetrics' macro accuracy counts a class that is predicted but absent as 0; the benchmarks leave it out.
        # Its Jaccard index agrees with the mean IoU: the tests compare.
        hits = self.confusion.diag().double()
        return {
            "mean_iou": self.class_iou().nanmean().item(),
            "pixel_accuracy": (hits.sum() / self.confusion.sum()).item(),
            "mean_accuracy": (hits / self.confusion.sum(1)).nanmean().item(),
        }


class DepthMetrics:
    """Errors of depth estimation, computed per image and averaged over images.

    Args:
        min_depth: Count true depths above it, in metres. Predictions are clamped to the same range.
        max_depth: Count true depths up to it, in metres.
        eigen_crop: Count only the part of 480 x 640 pixels that the NYUv2 protocol evaluates.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf.evaluation import DepthMetrics

    >>> metrics = DepthMetrics()
    >>> metrics.update(torch.tensor([[1.5, 2.0]]), torch.tensor([[1.0, 0.0]]))  # 0 m: unknown
    >>> metrics.compute()["abs_rel"]
    0.5

    ```
    """

    def __init__(self, min_depth: float = 1e-3, max_depth: float = 10.0, eigen_crop: bool = False):
        self.min_depth, self.max_depth, self.eigen_crop = min_depth, max_depth, eigen_crop
        self.totals: dict[str, float] = {}
        self.num_images = 0

    def update(self, predicted: torch.Tensor, depth: torch.Tensor) -> None:
        """Compare a predicted map (H, W) with the true one (H, W), in metres, NaN or out of range where unknown.

        An image without a valid depth is left out.

        Raises:
            ValueError: The shapes differ, the size is not 480 x 640 with the Eigen crop, or a value is not finite.
        """
        if predicted.shape != depth.shape or predicted.ndim != 2:
            raise ValueError(
                f"predicted and depth must both be (H, W), got {tuple(predicted.shape)} and {tuple(depth.shape)}."
            )
        if self.eigen_crop:
            if tuple(depth.shape) != (480, 640):
                raise ValueError(f"The Eigen crop needs 480 x 640 pixels, got {tuple(depth.shape)}: leave it out.")
            predicted, depth = predicted[NYU_EIGEN_CROP], depth[NYU_EIGEN_CROP]
        valid = depth.isfinite() & (depth > self.min_depth) & (depth <= self.max_depth)
        found, true = predicted[valid.to(predicted.device)].double().cpu(), depth[valid].double().cpu()
        if not len(true):
            return
        check_finite(found, "predicted")
        for name, value in _depth_errors(found.clamp(self.min_depth, self.max_depth), true).items():
            self.totals[name] = self.totals.get(name, 0.0) + float(value)
        self.num_images += 1

    def compute(self) -> dict[str, float]:
        """Return `rmse` (metres), `abs_rel`, `rmse_log`, `log10`, `sigloss`; `delta1` to `delta3`: higher is better.

        Raises:
            ValueError: No image had a valid depth.
        """
        if not self.num_images:
            allowed = f"above {self.min_depth} and up to {self.max_depth} metres"
            raise ValueError(f"No image has a depth {allowed}: check the unit.")
        return {name: total / self.num_images for name, total in self.totals.items()}


def _depth_errors(found: torch.Tensor, true: torch.Tensor) -> dict[str, torch.Tensor]:
    regression = require("torchmetrics.functional.regression")
    rmse, difference = regression.mean_squared_error, torch.log10(found) - torch.log10(true)
    ratio = torch.maximum(found / true, true / found)
    # sigloss is the loss of `EupeForDepthEstimation`; torchmetrics lacks it and the deltas. One pixel has variance 0.
    error = torch.log(found + 1e-3) - torch.log(true + 1e-3)
    variance = error.var(correction=min(1, len(error) - 1))
    return {
        "rmse": rmse(found, true, squared=False),
        "abs_rel": regression.mean_absolute_percentage_error(found, true),
        "rmse_log": rmse(found.log(), true.log(), squared=False),
        "log10": difference.abs().mean(),
        "sigloss": torch.sqrt(variance + 0.15 * error.mean() ** 2),
        **{f"delta{power}": (ratio < 1.25**power).double().mean() for power in (1, 2, 3)},
    }


def average_precision(
    predictions: Iterable[Mapping[str, torch.Tensor]], targets: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, float]:
    """COCO's average precision of boxes: `ap` over IoU 0.5 to 0.95, `ap50` and `ap75`.

    Args:
        predictions: One dictionary per image, as `post_process_object_detection` returns it: `boxes` (P, 4) as left,
            top, right, bottom in pixels, `scores` (P,), `labels` (P,). The best 100 of an image count.
        targets: One dictionary per image, in the same order: `boxes` (T, 4), `labels` (T,), and optionally `iscrowd`
            (T,), 1 for a box around a crowd, which may be found any number of times.

    Returns:
        Means over the classes that occur in the targets; 0 without predictions.

    Raises:
        ValueError: The numbers of predictions and targets differ, shapes do not fit, a value is not finite, one has
            boxes in pixels and the other shares of the image's sides, or there are no targets but crowds.
    """
    # torchmetrics' MeanAveragePrecision also runs pycocotools, but needs torchvision, which is optional here
    coco, evaluator = require("pycocotools.coco").COCO, require("pycocotools.cocoeval").COCOeval
    found: list[dict[str, Any]] = []
    true: list[dict[str, Any]] = []
    for images, (prediction, target) in enumerate(zip_longest(predictions, targets), start=1):
        if prediction is None or target is None:
            raise ValueError(f"There must be as many predictions as targets; one of them ends after {images - 1}.")
        found += _annotations(prediction, images, "scores", f"predictions[{images - 1}]")
        target = {"iscrowd": [0] * len(target["labels"]), **target}
        true += _annotations(target, images, "iscrowd", f"targets[{images - 1}]")
    if all(entry["iscrowd"] for entry in true):
        but = " but crowds" if true else ""
        raise ValueError(f"The targets hold no boxes{but}, so average precision is not defined.")
    _check_unit(found, true)
    if not found:
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    reference = coco()
    reference.dataset = {
        "images": [{"id": image} for image in range(1, images + 1)],
        "categories": [{"id": label} for label in sorted({entry["category_id"] for entry in true})],
        # from 1: pycocotools reads the id 0 as "not matched"
        "annotations": [{**entry, "id": i} for i, entry in enumerate(true, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        reference.createIndex()
        evaluation = evaluator(reference, reference.loadRes(found), "bbox")
        for step in (evaluation.evaluate, evaluation.accumulate, evaluation.summarize):
            step()
    return dict(zip(("ap", "ap50", "ap75"), map(float, evaluation.stats[:3]), strict=True))


def _check_unit(found: list[dict[str, Any]], true: list[dict[str, Any]]) -> None:
    boxes = [[entry["bbox"] for entry in part] for part in (found, true)]
    reach = [max((max(x + width, y + height) for x, y, width, height in part), default=0.0) for part in boxes]
    if 0 < min(reach) <= 1 + _CLIPPED and max(reach) > _PIXELS:
        shares, pixels = ("predictions", "targets") if reach[0] < reach[1] else ("targets", "predictions")
        raise ValueError(
            f"The boxes of the {shares} reach to {min(reach):.4g}, as shares of the image's sides do, those of the "
            f"{pixels} to {max(reach):.4g}, as pixels do. Give both in one unit: post_process_object_detection gives "
            "pixels with target_sizes."
        )


def _annotations(entry: Mapping[str, Any], image: int, extra: str, name: str) -> list[dict[str, Any]]:
    """Boxes of one image in COCO's form: left, top, width, height; each with its value of `extra`."""
    if missing := {"boxes", "labels", extra} - set(entry):
        raise ValueError(f"{name} has no {' and no '.join(sorted(missing))}, only {', '.join(sorted(entry))}.")
    boxes, labels, values = (torch.as_tensor(entry[key]).cpu() for key in ("boxes", "labels", extra))
    boxes = boxes.double().reshape(-1, 4) if not boxes.numel() else boxes.double()
    if boxes.shape != (len(labels), 4) or values.shape != labels.shape:
        raise ValueError(
            f"{name} must have boxes (N, 4), labels (N,) and {extra} (N,), got {tuple(boxes.shape)}, "
            f"{tuple(labels.shape)} and {tuple(values.shape)}."
        )
    check_finite(boxes, f"boxes of {name}")
    check_finite(values, f"{extra} of {name}")
    key = "score" if extra == "scores" else extra
    rows = zip(boxes.tolist(), labels.tolist(), values.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": label, "bbox": [x, y, right - x, bottom - y],
         "area": (right - x) * (bottom - y), key: value}
        for (x, y, right, bottom), label, value in rows
    ]  # fmt: skip
