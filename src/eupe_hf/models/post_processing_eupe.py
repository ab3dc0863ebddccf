# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Turns outputs of the task models into results at the size of the images; part of the image processors."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch.nn import functional
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_transforms import center_to_corners_format
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.utils import ModelOutput


_Sizes: TypeAlias = Sequence[tuple[int, int]] | torch.Tensor | None


class EupePostProcessingMixin:
    """`post_process_*` methods of the image processors, under the names that transformers' pipelines call.

    Each takes `target_sizes`, (height, width) in pixels, one per image, else it raises a ValueError, as for thresholds
    outside [0, 1].
    """

    def post_process_semantic_segmentation(
        self, outputs: SemanticSegmenterOutput, target_sizes: _Sizes = None, return_segmentation_scores: bool = False
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Turns the logits of `EupeForSegmentation` into label maps.

        Args:
            outputs: With `logits` (B, num_labels, h, w).
            target_sizes: Logits are resized to these, bilinearly, before the best class is taken, as upstream does.
            return_segmentation_scores: Also returns the resized logits.

        Returns:
            One (height, width) map of class ids per image, or objects with `segmentation` and `segmentation_scores`
            (num_labels, height, width).
        """
        results = []
        for logits in _resized(outputs.logits, target_sizes, "logits"):
            labels = logits.argmax(dim=0)
            scored = {"segmentation": labels, "segmentation_scores": logits}
            results.append(SemanticSegmentationPostProcessorOutput(scored) if return_segmentation_scores else labels)
        return results

    def post_process_depth_estimation(
        self, outputs: DepthEstimatorOutput, target_sizes: _Sizes = None
    ) -> list[dict[str, Any]]:
        """Resizes `predicted_depth` (B, h, w) of `EupeForDepthEstimation` bilinearly.

        Returns one dictionary per image with `predicted_depth` (height, width) in metres.
        """
        maps = _resized(outputs.predicted_depth.unsqueeze(1), target_sizes, "predicted depth")
        return [{"predicted_depth": depth[0]} for depth in maps]

    def post_process_object_detection(
        self,
        outputs: ModelOutput,
        threshold: float = 0.5,
        target_sizes: _Sizes = None,
        top_k: int = 100,
        nms_threshold: float | None = 0.6,
    ) -> list[dict[str, torch.Tensor]]:
        """Turns the output of `EupeForObjectDetection` into boxes.

        Args:
            outputs: With `logits` (B, N, num_labels) and `pred_boxes` (B, N, 4).
            threshold: Detections must have a higher score, in [0, 1].
            target_sizes: Without them boxes are shares of the image's sides.
            top_k: Largest number of detections per image; the best are kept.
            nms_threshold: If two boxes of one class overlap by more (intersection over union), the one with the lower
                score is dropped. The model learns to find each object once, but after only a few hundred steps of
                training a head still repeats some. `None` keeps repeats.

        Returns:
            One dictionary per image, best first: `scores` (n,) in [0, 1], `labels` (n,) class ids and `boxes` (n, 4)
            left, top, right, bottom.
        """
        for name, value in (("threshold", threshold), ("nms_threshold", nms_threshold)):
            if value is not None and not 0 <= value <= 1:
                cause = " It looks like percent: divide by 100." if 1 < value <= 100 else ""
                raise ValueError(f"{name} must be a share from 0 to 1, got {value}.{cause}")
        logits, boxes = outputs.logits.float(), center_to_corners_format(outputs.pred_boxes.float())
        if target_sizes is not None:
            _check_target_sizes(len(logits), target_sizes, "images")
            sizes = torch.as_tensor([[int(side) for side in size] for size in target_sizes], device=boxes.device)
            boxes = boxes * sizes.flip(-1).repeat(1, 2)[:, None]  # width, height, width, height
        num_labels = logits.shape[2]
        results = []
        for image_logits, image_boxes in zip(logits, boxes, strict=True):
            # ten candidates for each result, so that enough are left after the suppression
            scores, places = image_logits.sigmoid().flatten().topk(min(10 * top_k, image_logits.numel()))
            places = places[scores > threshold]
            found = {
                "scores": scores[: len(places)],
                "labels": places % num_labels,
                "boxes": image_boxes[places // num_labels],
            }
            if nms_threshold is not None:
                kept = _suppress(found["boxes"], found["labels"], nms_threshold)
                found = {name: values[kept] for name, values in found.items()}
            results.append({name: values[:top_k] for name, values in found.items()})
        return results


def _suppress(boxes: torch.Tensor, labels: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression per class: a mask (n,) of the boxes (n, 4), best first, that stay."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(dim=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)
    repeats = shared > threshold * (areas[:, None] + areas[None] - shared)
    repeats = (repeats & (labels[:, None] == labels[None])).cpu()
    kept = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if kept[i]:
            kept[i + 1 :] &= ~repeats[i, i + 1 :]
    return kept.to(boxes.device)


def _resized(maps: torch.Tensor, target_sizes: _Sizes, what: str) -> Iterator[torch.Tensor]:
    """Resizes (B, C, h, w) to one (C, height, width) per image."""
    if target_sizes is None:
        yield from maps
        return
    _check_target_sizes(len(maps), target_sizes, what)
    for image, size in zip(maps, target_sizes, strict=True):
        height, width = map(int, size)
        yield functional.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


def _check_target_sizes(count: int, target_sizes: Sequence[tuple[int, int]] | torch.Tensor, what: str) -> None:
    if len(target_sizes) != count:
        given = f"there are {count} {what} and {len(target_sizes)} sizes"
        raise ValueError(f"target_sizes must have one (height, width) per image: {given}.")
