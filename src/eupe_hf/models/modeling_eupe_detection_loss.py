# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the detection head learns from: overlaps of boxes, which position learns which object, checks of the labels."""

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_transforms import center_to_corners_format

from .modeling_eupe_head import check_class_ids


_TOLERANCE = 5e-3  # by which boxes may leave the image: bfloat16 rounds that far


def assign(
    scores: torch.Tensor, overlaps: torch.Tensor, points: torch.Tensor, boxes: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give each object the `count` positions inside its box with the highest score * overlap^2 (TOOD's alignment).

    An object without a position inside takes the nearest. A position that several objects want goes to the best fit.

    Args:
        scores: (N, objects), the score of each position for the class of each object, in [0, 1].
        overlaps: (N, objects), of predicted and true boxes, in [0, 1].
        points: (N, 2) positions x, y.
        boxes: (objects, 4) left, top, right, bottom, in the same unit.
        count: Positions per object.

    Returns:
        (N,) the object of each position, -1 for none, and (N,) how well it fits: the alignment, scaled per object so
        that its best position gets the highest overlap among its positions.
    """
    inside = ((points[:, None] > boxes[:, :2]) & (points[:, None] < boxes[:, 2:])).all(dim=-1)  # (N, objects)
    distance = (points[:, None] - (boxes[:, :2] + boxes[:, 2:]) / 2).square().sum(dim=-1)
    nearest = distance == distance.amin(dim=0)
    candidates = inside | (nearest & ~inside.any(dim=0))
    # the small term keeps candidates apart from the rest where nothing overlaps yet
    alignment = torch.where(candidates, scores * overlaps.square() + 1e-9, 0.0)
    best = alignment.topk(min(count, len(points)), dim=0)
    kept = torch.zeros_like(alignment).scatter(0, best.indices, best.values)
    fit, owner = kept.max(dim=1)
    owner = torch.where(fit > 0, owner, -1)
    mine = owner[:, None] == torch.arange(len(boxes), device=owner.device)
    aligned, overlapped = kept * mine, overlaps * mine
    quality = aligned / aligned.amax(dim=0).clamp_min(1e-9) * overlapped.amax(dim=0)
    return owner, quality.sum(dim=1)


def overlap(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes (N, 4) with others (M, 4), left, top, right, bottom: (N, M) in [0, 1]."""
    boxes, others = boxes[:, None], others[None]
    shared = _area(torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:]))
    union = _area(boxes[..., :2], boxes[..., 2:]) + _area(others[..., :2], others[..., 2:]) - shared
    return shared / union.clamp_min(1e-9)


def generalized_overlap(boxes: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Generalised intersection over union (arXiv 1902.09630) of pairs of boxes (N, 4), (N, 4): (N,) in [-1, 1]."""
    low, high = torch.minimum(boxes[:, :2], others[:, :2]), torch.maximum(boxes[:, 2:], others[:, 2:])
    shared = _area(torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:]))
    union = (_area(boxes[:, :2], boxes[:, 2:]) + _area(others[:, :2], others[:, 2:]) - shared).clamp_min(1e-9)
    hull = _area(low, high).clamp_min(1e-9)
    return shared / union - (hull - union) / hull


def _area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    return (high - low).clamp_min(0).prod(dim=-1)


def read_detection_labels(labels: Any, batch_size: int, num_labels: int) -> list[Mapping[str, torch.Tensor] | None]:
    """Check labels, and turn arrays and lists in them, such as the image processor gives, into tensors.

    Args:
        labels: As `EupeForObjectDetection` takes them.
        batch_size: How many images there are.
        num_labels: Classes of the model.

    Returns:
        For each image `class_labels` (objects,) and `boxes` (objects, 4), or `None`.

    Raises:
        ValueError: Not one dictionary (or `None`) per image, a missing key, values that are no numbers, shapes or
            class ids that do not fit, or boxes that are not normalised (centre x, centre y, width, height) or leave
            the image.
    """
    if torch.compiler.is_compiling():  # looking at values would break the graph
        return labels
    if not isinstance(labels, Sequence) or len(labels) != batch_size:
        found = f"{len(labels)} entries" if isinstance(labels, Sequence) else type(labels).__name__
        raise ValueError(
            f"labels must be a list with one dictionary per image, {batch_size} of them, got {found}. Give empty "
            "tensors for an image without objects, None for one that is not labelled."
        )
    read: list[Mapping[str, torch.Tensor] | None] = []
    for i, label in enumerate(labels):
        if label is None:
            read.append(None)
            continue
        if not isinstance(label, Mapping) or not {"class_labels", "boxes"} <= label.keys():
            found = ", ".join(map(str, label)) if isinstance(label, Mapping) else type(label).__name__
            raise ValueError(f"labels[{i}] must be a dictionary with class_labels and boxes, got {found}.")
        boxes, classes = (_numbers(label[key], f"labels[{i}][{key!r}]") for key in ("boxes", "class_labels"))
        count = classes.numel()
        if (count or boxes.numel()) and (tuple(boxes.shape) != (count, 4) or classes.ndim != 1):
            raise ValueError(
                f"labels[{i}] must have class_labels (objects,) and boxes (objects, 4), got "
                f"{tuple(classes.shape)} and {tuple(boxes.shape)}."
            )
        if count:
            hint = f"These are the class_labels of labels[{i}]; COCO's category ids have gaps: count them from 0."
            if classes.is_floating_point() and (classes != classes.long()).any():
                shown = reprlib.repr(classes.tolist())
                raise ValueError(f"labels[{i}] has class_labels that are not whole numbers: {shown}.")
            check_class_ids(classes.long(), num_labels, hint)
            _check_boxes(boxes.float(), f"labels[{i}]")
        read.append({"class_labels": classes, "boxes": boxes})
    return read


def _numbers(values: Any, name: str) -> torch.Tensor:
    """A tensor of real numbers, from a tensor, an array or lists."""
    try:
        if not isinstance(values, torch.Tensor):
            array = np.asarray(values)
            values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))  # torch takes no other
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {reprlib.repr(values)}.") from error
    if values.is_complex():
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}.")
    return values


def _check_boxes(boxes: torch.Tensor, name: str) -> None:
    corners = center_to_corners_format(boxes)
    fits = (boxes[:, 2:] > 0).all(dim=1) & ((corners >= -_TOLERANCE) & (corners <= 1 + _TOLERANCE)).all(dim=1)
    if fits.all():
        return
    wrong = boxes[~fits]
    if (wrong > 2).any():
        advice = "They look like pixels: divide by the width and height of the image."
    elif (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all() and (boxes <= 1).all():
        advice = "They look like left, top, right, bottom: give the centre, and the differences as width and height."
    elif (wrong[:, 2:] <= 0).any():
        advice = "Leave out boxes without area."
    else:
        advice = "Clip them to the image."
    values = ", ".join(f"{value:.4g}" for value in wrong[0].tolist())
    raise ValueError(
        f"{name} has {len(wrong)} boxes that are not centre x, centre y, width and height on [0, 1] within the image, "
        f"the first of them ({values}). {advice}"
    )
