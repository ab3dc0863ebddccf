# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's evaluation protocols: k-NN, segmentation, depth, correspondence; and the results they give.

Each protocol has two halves: a prediction at the size of the picture, which needs a model and is made here, and a
metric, from `metrics.py` or `knn.py`, which takes tensors from anywhere. `examples/evaluate.py` joins them. All scores
are fractions, not percent. Metrics need an extra: `pip install 'eupe-hf[eval]'`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from eupe_hf.data.workers import hand_over
from eupe_hf.models.modeling_eupe import EupeBackbone
from eupe_hf.models.modeling_eupe_depth import EupeForDepthEstimation
from eupe_hf.models.modeling_eupe_segmentation import EupeForSegmentation

from .metrics import (
    check_finite,
)


# ---- k-NN classification ----


@torch.no_grad()
def extract_features(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Dataset,
    size: int = 224,
    batch_size: int = 64,
    num_workers: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Global features of the pictures of a data set, by the classification protocol.

    Args:
        model: A model with `pooler_output`, for example `EupeModel`, in eval mode and on the device to use.
        processor: Its image processor. Pictures are resized, bicubic, to a short side of 8/7 of `size`, and cropped.
        dataset: Pairs of a picture, of any size, and its class id.
        size: Side of the crop in pixels.
        batch_size: Images per forward pass.
        num_workers: Processes that read and prepare pictures.

    Returns:
        Features (N, C), float32, not normalised, and class ids (N,), both on the CPU.
    """
    options = {"size": {"shortest_edge": round(size * 256 / 224)}, "crop_size": size, "resample": 3}
    collate = partial(_collate, partial(processor, do_center_crop=True, return_tensors="pt", **options))
    features, labels = [], []
    loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    # the iterator: a silenced tqdm makes one of its own when it is built, and with it a second set of workers
    for pixel_values, ids in logging.tqdm(iter(loader), total=len(loader), desc="features"):
        pixel_values = torch.as_tensor(pixel_values).to(model.device, model.dtype)
        features.append(model(pixel_values).pooler_output.float().cpu())
        labels.append(torch.as_tensor(ids))
    return torch.cat(features), torch.cat(labels)


def _collate(prepare: Callable[..., Any], rows: list[tuple[Any, int]]) -> tuple[Any, np.ndarray]:
    pictures, labels = zip(*rows, strict=True)
    return hand_over(prepare(list(pictures))["pixel_values"]), np.array(labels)


# ---- segmentation ----


@torch.no_grad()
def predict_label_map(
    model: EupeForSegmentation,
    processor: BaseImageProcessor,
    image: ImageInput,
    short_side: int = 512,
    sliding_window: bool = True,
    batch_size: int = 8,
) -> torch.Tensor:
    """Segment one picture by upstream's protocol.

    Args:
        model: In eval mode.
        processor: Its image processor.
        image: One picture of any size.
        short_side: The picture is resized to it, bilinearly, and it is the window's side; the stride is 2/3 of it.
        sliding_window: Slide the window and average. If not, the picture goes through whole, its longer side rounded
            to whole patches.
        batch_size: Windows per forward pass.

    Returns:
        (H, W) class ids at the size of the picture, upright.

    Raises:
        ValueError: A `short_side` that is no multiple of the patch size, or logits that are not finite.
    """
    patch = model.config.patch_size
    if short_side < 1 or short_side % patch:
        raise ValueError(f"short_side must be a multiple of the patch size, {patch}, got {short_side}.")
    pixels = processor.process_image(image)
    height, width = pixels.shape[-2:]
    if sliding_window:
        inputs = processor(pixels, size={"shortest_edge": short_side}, return_tensors="pt")["pixel_values"]
        inputs = inputs.to(model.device, model.dtype)
        logits = model.predict_sliding_window(inputs, short_side, short_side * 2 // 3, batch_size)
    else:
        scale = short_side / min(height, width)
        sides = [max(1, round(side * scale / patch)) * patch for side in (height, width)]
        inputs = processor(pixels, size=dict(zip(("height", "width"), sides, strict=True)), return_tensors="pt")
        logits = model(inputs["pixel_values"].to(model.device, model.dtype)).logits
    check_finite(logits, "The logits")
    return processor.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), [(height, width)])[0]


# ---- depth ----


@torch.no_grad()
def predict_depth(
    model: EupeForDepthEstimation, processor: BaseImageProcessor, image: ImageInput, flip_average: bool = True
) -> torch.Tensor:
    """Depth of one picture by the NYUv2 protocol: native size, zeros around it up to whole patches.

    Args:
        model: In eval mode.
        processor: Its image processor.
        image: One picture of any size.
        flip_average: Average with the prediction for the mirrored picture.

    Returns:
        (H, W) in metres, float32, at the size of the picture, upright.
    """
    pixels = processor.process_image(image)
    height, width = pixels.shape[-2:]
    # upstream pads to multiples of 16; a ConvNeXt would cut off the rest of its stride of 32
    divisor = math.lcm(16, model.config.patch_size)
    inputs = processor(pixels, do_resize=False, do_pad=True, size_divisor=divisor, return_tensors="pt")["pixel_values"]
    outputs = model(inputs.to(model.device, model.dtype), flip_average=flip_average)
    output = DepthEstimatorOutput(predicted_depth=outputs.predicted_depth)
    (result,) = processor.post_process_depth_estimation(output, [tuple(inputs.shape[-2:])])
    top, left = ((padded - side) // 2 for padded, side in zip(inputs.shape[-2:], (height, width), strict=True))
    return result["predicted_depth"][top : top + height, left : left + width]


# ---- correspondence ----


@torch.no_grad()
def match_keypoints(
    source_map: torch.Tensor,
    target_map: torch.Tensor,
    points: torch.Tensor,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    chunk_size: int = 16384,
) -> torch.Tensor:
    """Find points of one picture in another: the pixel whose feature has the largest cosine similarity to the point's.

    As in upstream's SPair-71k evaluation, both maps are taken as upsampled bilinearly to the size of their picture;
    they are sampled, chunk by chunk, so that no map of that size exists.

    Args:
        source_map: (C, h, w) features of the picture that the points are in, not normalised.
        target_map: (C, h', w') features of the other one.
        points: (P, 2), x and y in pixels of the source picture; the middle of the first pixel is (0, 0).
        source_size: (height, width) of the source picture in pixels.
        target_size: The same of the target picture.
        chunk_size: Target pixels compared at once.

    Returns:
        (P, 2) x and y in whole pixels of the target picture, int64.

    Raises:
        ValueError: Shapes that do not fit, or features that are not finite.
    """
    if source_map.ndim != 3 or target_map.ndim != 3 or len(source_map) != len(target_map) or points.shape[1:] != (2,):
        raise ValueError(
            "source_map and target_map must be (C, h, w) with one C, and points (P, 2), got "
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
    """Find points of one picture in another with the last feature map of a backbone: `match_keypoints`.

    Args:
        model: In eval mode.
        processor: Its image processor.
        source: The picture that the points are in, of any size.
        target: The other picture.
        points: (P, 2), x and y in pixels of the source picture.
        size: Both pictures are squashed to this side.

    Returns:
        (P, 2) x and y in whole pixels of the target picture, int64.
    """
    pictures = [processor.process_image(image) for image in (source, target)]
    inputs = processor(pictures, size={"height": size, "width": size}, return_tensors="pt")["pixel_values"]
    maps = model(inputs.to(model.device, model.dtype)).feature_maps[-1]
    sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
    return match_keypoints(maps[0], maps[1], points, *sizes)
