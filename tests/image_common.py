# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Images and expected values for the tests of the image processors."""

from typing import Any

import numpy as np
import torch


MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
PLAIN = {"do_resize": False, "do_normalize": False}

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)
RGBA = np.concatenate([RGB, RGB[::-1, :, :1]], axis=2)
GREY16 = rng.integers(0, 65536, (20, 31), dtype=np.uint16)


def values(processor: Any, image: Any, **options: Any) -> torch.Tensor:
    """The pixel values of one image, (C, H, W)."""
    return processor(image, return_tensors="pt", **options)["pixel_values"][0]


def channels_first(array: np.ndarray) -> torch.Tensor:
    """(H, W) or (H, W, 3) to (3, H, W)."""
    array = np.repeat(array[..., None], 3, axis=2) if array.ndim == 2 else array
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def unit(array: np.ndarray) -> torch.Tensor:
    """What uint8 is worth on [0, 1], as (3, H, W)."""
    return channels_first(array).to(torch.float32) * (1 / 255)


def resized(array: np.ndarray, height: int, width: int, mode: str = "bilinear") -> torch.Tensor:
    image = channels_first(array)[None]
    return torch.nn.functional.interpolate(image, (height, width), mode=mode, antialias=True)[0]


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.to(torch.float32) * (1 / 255) - MEAN) / STD


def coco(*boxes: Any, **fields: Any) -> dict[str, Any]:
    """The annotations of an image in COCO's format; classes count from 0."""
    items = [{"bbox": list(box), "category_id": index, **fields} for index, box in enumerate(boxes)]
    return {"image_id": 39769, "annotations": items}
