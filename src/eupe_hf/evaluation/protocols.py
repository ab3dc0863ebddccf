# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Predictions by the paper's evaluation protocols: features for k-NN, label maps and depth maps.

Each is made at the size of the image, for a metric of `metrics.py` or `knn.py`. `examples/evaluate.py` joins the two.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput
from transformers.modeling_outputs import DepthEstimatorOutput, SemanticSegmenterOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from eupe_hf.data.workers import hand_over, read_in_workers
from eupe_hf.models.modeling_eupe_depth import EupeForDepthEstimation
from eupe_hf.models.modeling_eupe_segmentation import EupeForSegmentation

from .metrics import check_finite


@torch.no_grad()
def extract_features(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: Dataset,
    size: int = 224,
    batch_size: int = 64,
    num_workers: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the global features of a data set by the classification protocol.

    Args:
        model: A model with `pooler_output`, for example `EupeModel`, in eval mode and on the device to use.
        processor: Its image processor. Images are resized (bicubic) to a short side of 8/7 of `size`, and cropped.
        dataset: Pairs of an image of any size and its class id.
        size: Side of the crop in pixels.
        batch_size: Images per forward pass.
        num_workers: Processes that read and prepare images.

    Returns:
        Features (N, C), float32, not normalised, and class ids (N,), both on the CPU.
    """
    options = {"size": {"shortest_edge": round(size * 256 / 224)}, "crop_size": size, "resample": 3}
    collate = partial(_collate, partial(processor, do_center_crop=True, return_tensors="pt", **options))
    features, labels = [], []
    loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collate)
    for pixel_values, ids in logging.tqdm(read_in_workers(loader), total=len(loader), desc="features"):
        pixel_values = torch.as_tensor(pixel_values).to(model.device, model.dtype)
        features.append(model(pixel_values).pooler_output.float().cpu())
        labels.append(torch.as_tensor(ids))
    return torch.cat(features), torch.cat(labels)


def _collate(prepare: Callable[..., Any], rows: list[tuple[Any, int]]) -> tuple[Any, np.ndarray]:
    pictures, labels = zip(*rows, strict=True)
    return hand_over(prepare(list(pictures))["pixel_values"]), np.array(labels)


@torch.no_grad()
def predict_label_map(
    model: EupeForSegmentation,
    processor: BaseImageProcessor,
    image: ImageInput,
    short_side: int = 512,
    sliding_window: bool = True,
    batch_size: int = 8,
) -> torch.Tensor:
    """Segment one image by upstream's protocol.

    Args:
        model: In eval mode.
        processor: Its image processor.
        image: One image of any size.
        short_side: Pixels; the image is resized to it (bilinear). It is the side of the window, whose step is 2/3.
        sliding_window: Slide the window and average. Otherwise the model sees the whole image, its sides rounded to
            whole patches.
        batch_size: Windows per forward pass.

    Returns:
        (H, W) class ids at the size of the image, upright.

    Raises:
        ValueError: `short_side` is not a multiple of the patch size, or logits are not finite.
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


@torch.no_grad()
def predict_depth(
    model: EupeForDepthEstimation, processor: BaseImageProcessor, image: ImageInput, flip_average: bool = True
) -> torch.Tensor:
    """Predict the depth of one image by the NYUv2 protocol: at its own size, padded with zeros to whole patches.

    Args:
        model: In eval mode.
        processor: Its image processor.
        image: One image of any size.
        flip_average: Average with the prediction for the mirrored image.

    Returns:
        (H, W) in metres, float32, at the size of the image, upright.
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
