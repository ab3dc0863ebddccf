# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""From the outputs of the task models to results at the size of the pictures; part of the image processors."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput


class EupePostProcessingMixin:
    """`post_process_*` methods of the image processors, by the names that transformers' pipelines call."""

    def post_process_semantic_segmentation(
        self,
        outputs: SemanticSegmenterOutput,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps from the logits of `EupeForSegmentation`.

        Args:
            outputs: With `logits` (B, num_labels, h, w).
            target_sizes: (height, width) of each result in pixels, one per image; by default the size of the logits.
                Logits are resized bilinearly before the best class is taken, as upstream does.
            return_segmentation_scores: Also give the resized logits.

        Returns:
            One (height, width) map of class ids per image; or objects with `segmentation` and `segmentation_scores`
            (num_labels, height, width).

        Raises:
            ValueError: Not one target size per image.
        """
        results = []
        for logits in _resized(outputs.logits, target_sizes, "logits"):
            labels = logits.argmax(dim=0)
            scored = {"segmentation": labels, "segmentation_scores": logits}
            results.append(SemanticSegmentationPostProcessorOutput(scored) if return_segmentation_scores else labels)
        return results

    def post_process_depth_estimation(
        self,
        outputs: DepthEstimatorOutput,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Depth maps from the output of `EupeForDepthEstimation`.

        Args:
            outputs: With `predicted_depth` (B, h, w) in metres.
            target_sizes: (height, width) of each result in pixels, one per image; by default the size predicted.

        Returns:
            One dictionary per image with `predicted_depth` (height, width) in metres, resized bilinearly.

        Raises:
            ValueError: Not one target size per image.
        """
        maps = _resized(outputs.predicted_depth.unsqueeze(1), target_sizes, "predicted depth")
        return [{"predicted_depth": depth[0]} for depth in maps]


def _resized(
    maps: torch.Tensor, target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None, what: str
) -> Iterator[torch.Tensor]:
    """(B, C, h, w) as one (C, height, width) per image."""
    if target_sizes is None:
        yield from maps
        return
    if len(target_sizes) != len(maps):
        raise ValueError(
            f"target_sizes must have one (height, width) per image: there are {len(maps)} {what} and "
            f"{len(target_sizes)} sizes."
        )
    for image, size in zip(maps, target_sizes, strict=True):
        height, width = map(int, size)
        yield functional.interpolate(image[None].float(), (height, width), mode="bilinear", align_corners=False)[0]


__all__ = ["EupePostProcessingMixin"]
