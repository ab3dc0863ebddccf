# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Correspondence: finding points of one image in another, and the share of points found (PCK), as on SPair-71k."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput

from eupe_hf.models.modeling_eupe import EupeBackbone

from .metrics import check_finite


PIPELINE_TAGS = {"correspondence": "keypoint-matching"}


@torch.no_grad()
def match_keypoints(
    source_map: torch.Tensor,
    target_map: torch.Tensor,
    points: torch.Tensor,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    chunk_size: int = 16384,
) -> torch.Tensor:
    """Find for each point of an image the pixel of another whose feature has the largest cosine similarity.

    As in upstream's SPair-71k evaluation, both maps are upsampled bilinearly to the size of their image. They are
    sampled in chunks, so that no map of that size is built.

    Args:
        source_map: (C, h, w) features of the image with the points, not normalised.
        target_map: (C, h', w') features of the other image.
        points: (P, 2), x and y in pixels of the source image; the centre of the first pixel is (0, 0).
        source_size: (height, width) of the source image in pixels.
        target_size: (height, width) of the target image in pixels.
        chunk_size: Target pixels compared at once.

    Returns:
        (P, 2) x and y in whole pixels of the target image, int64.

    Raises:
        ValueError: Shapes do not fit, or features are not finite.
    """
    if source_map.ndim != 3 or target_map.ndim != 3 or len(source_map) != len(target_map) or points.shape[1:] != (2,):
        raise ValueError(
            "source_map and target_map must be (C, h, w) with the same C, and points (P, 2), got "
            f"{tuple(source_map.shape)}, {tuple(target_map.shape)} and {tuple(points.shape)}."
        )
    check_finite(source_map, "source_map")
    check_finite(target_map, "target_map")
    check_finite(points, "points")
    queries = _sample(source_map, points.to(source_map.device), source_size)
    best = queries.new_full((len(queries),), -math.inf)
    place = torch.zeros(len(queries), dtype=torch.int64, device=queries.device)
    for pixels in torch.arange(math.prod(target_size), device=target_map.device).split(chunk_size):
        positions = torch.stack((pixels % target_size[1], pixels // target_size[1]), dim=1)
        similarity, index = (queries @ _sample(target_map, positions, target_size).T).max(dim=1)
        place = torch.where(similarity > best, pixels[index], place)
        best = torch.maximum(similarity, best)
    return torch.stack((place % target_size[1], place // target_size[1]), dim=1)


def _sample(feature_map: torch.Tensor, points: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Unit features (P, C) at points (P, 2) of a map (C, h, w) upsampled to `size`, corners not aligned."""
    sides = torch.tensor((size[1], size[0]), dtype=torch.float32, device=points.device)
    grid = (2 * points.float() + 1) / sides - 1
    sampled = functional.grid_sample(
        feature_map[None].float(), grid[None, None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return functional.normalize(sampled[0, :, 0].T, dim=1)


@torch.no_grad()
def predict_keypoints(
    model: EupeBackbone,
    processor: BaseImageProcessor,
    source: ImageInput,
    target: ImageInput,
    points: torch.Tensor,
    size: int = 512,
) -> torch.Tensor:
    """Find points of one image in another with a backbone's last feature map, see `match_keypoints`.

    Args:
        model: In eval mode.
        processor: Its image processor.
        source: The image with the points, of any size.
        target: The other image, of any size.
        points: (P, 2), x and y in pixels of the source image.
        size: Both images are resized to this height and width in pixels.

    Returns:
        (P, 2) x and y in whole pixels of the target image, int64.
    """
    pictures = [processor.process_image(image) for image in (source, target)]
    inputs = processor(pictures, size={"height": size, "width": size}, return_tensors="pt")["pixel_values"]
    maps = model(inputs.to(model.device, model.dtype)).feature_maps[-1]
    sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
    return match_keypoints(maps[0], maps[1], points, *sizes)


class CorrespondenceMetrics:
    """PCK: the share of points found within `alpha` times the longer side of the target object's bounding box.

    "pck@alpha" averages over image pairs, as the SPair-71k benchmark (arXiv:1908.10543) reports it;
    "pck@alpha_per_point" averages over all points of all pairs.

    Args:
        alpha: Fraction of the longer side.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf.evaluation import CorrespondenceMetrics

    >>> metrics = CorrespondenceMetrics(alpha=0.1)
    >>> metrics.update(torch.tensor([[5, 5], [40, 9]]), torch.tensor([[5, 9], [5, 9]]), (0, 0, 60, 20))
    >>> metrics.compute()
    {'pck@0.1': 0.5, 'pck@0.1_per_point': 0.5}

    ```
    """

    def __init__(self, alpha: float = 0.1):
        self.alpha = alpha
        self.shares, self.hits, self.num_points, self.num_pairs = 0.0, 0, 0, 0

    def update(self, found: torch.Tensor, points: torch.Tensor, box: Sequence[float]) -> None:
        """Compare points found in the target image with the true ones. A pair without a visible point is left out.

        All are (P, 2), x and y in pixels, NaN where not visible. `box` is the object's: left, top, right, bottom.

        Raises:
            ValueError: The shapes differ, a point found is not finite, or the box has no extent.
        """
        if found.shape != points.shape or points.shape[1:] != (2,):
            raise ValueError(f"found and points must be (P, 2), got {tuple(found.shape)} and {tuple(points.shape)}.")
        left, top, right, bottom = map(float, box) if len(box) == 4 else (0.0,) * 4
        if not (right > left and bottom > top):
            raise ValueError(f"The box must be left, top, right, bottom with an extent, got {list(box)}.")
        check_finite(found, "found")
        points = points.double().cpu()
        visible = points.isfinite().all(dim=1)
        if not visible.any():
            return
        distances = (found.double().cpu() - points)[visible].norm(dim=1)
        hits = int((distances <= self.alpha * max(right - left, bottom - top)).sum())
        self.hits, self.num_points = self.hits + hits, self.num_points + len(distances)
        self.shares, self.num_pairs = self.shares + hits / len(distances), self.num_pairs + 1

    def compute(self) -> dict[str, float]:
        """Return both averages, or raise a ValueError if no visible point was counted."""
        if not self.num_points:
            raise ValueError("No visible point was counted.")
        name = f"pck@{self.alpha:g}"
        return {name: self.shares / self.num_pairs, f"{name}_per_point": self.hits / self.num_points}
