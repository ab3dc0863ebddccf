# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Images and their targets, augmented together."""

import importlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from eupe_hf.data.options import InputArguments


class Augmentation:
    """Crops, mirrors and recolours an image together with its mask, depth map or boxes.

    albumentations does all of this on numpy images. torchvision is optional here, and kornia works on batches of float
    tensors. Masks and depth maps take the value of the nearest pixel, so they get no class or depth in between.

    Args:
        size: Side of the result in pixels.
        scale: With `crop="area"`, the share of the image to cut out. With `crop="side"`, the short side of the resized
            image as a multiple of `size`; a square is cut out of it, padded if it is smaller. `crop="window"` does
            the same, but resizes the image to a square, as for evaluation.
        crop: "area", "side" or "window".
        flip: Probability of mirroring.
        colour: Largest relative change of brightness, contrast and saturation; hue changes by 0.4 of it.
        fill: Value of a mask outside the image.
        boxes: Whether samples have boxes.

    Example:

    ```python
    >>> import torch
    >>> from eupe_hf.training.augmentation import Augmentation

    >>> augment = Augmentation(32, scale=(0.5, 2.0), crop="side")
    >>> sample = {"image": torch.zeros(3, 48, 64, dtype=torch.uint8), "mask": torch.zeros(48, 64)}
    >>> augment(sample, seed=0)["mask"].shape
    torch.Size([32, 32])

    ```
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        crop: str = "area",
        flip: float = 0.5,
        colour: float = 0.25,
        fill: float = 255,
        boxes: bool = False,
    ):
        if crop not in ("area", "side", "window"):
            raise ValueError(f"crop must be 'area', 'side' or 'window', got {crop!r}.")
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
        try:
            library, cv2 = importlib.import_module("albumentations"), importlib.import_module("cv2")
        except ImportError as error:
            raise ImportError("Augmentation needs albumentations: pip install 'eupe-hf[train]'.") from error
        resized = {"mask_interpolation": cv2.INTER_NEAREST_EXACT, "area_for_downscale": "image"}
        if crop == "area":
            steps = [library.RandomResizedCrop((size, size), scale=scale, **resized)]
        else:
            sides = sorted({max(1, round(size * factor)) for factor in np.geomspace(*scale, 33)})
            squares = [library.Resize(side, side, **resized) for side in sides]
            steps = [
                library.SmallestMaxSize(max_size=sides, **resized) if crop == "side" else library.OneOf(squares, p=1),
                library.PadIfNeeded(size, size, fill_mask=fill, border_mode=cv2.BORDER_CONSTANT),
                library.RandomCrop(size, size),
            ]
        steps.append(library.HorizontalFlip(p=flip))
        if colour:
            span = (max(0.0, 1 - colour), 1 + colour)
            steps.append(library.ColorJitter(span, span, span, (-0.4 * colour, 0.4 * colour), p=1))
        boxed = library.BboxParams("pascal_voc", label_fields=["box_index"], min_visibility=0.1, clip=True)
        self.steps = library.Compose(steps, bbox_params=boxed if boxes else None)

    def __call__(self, sample: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Augment one sample; the same seed gives the same result in every process.

        Args:
            sample: `image`, (3, H, W), uint8 or float on [0, 1]; perhaps `mask`, (H, W), of class ids or metres;
                perhaps `boxes`, (N, 4), left, top, right, bottom in pixels, with `box_labels` (N,). Boxes of which
                less than a tenth is left are dropped. Other keys stay as they are.
            seed: Decides everything random.

        Returns:
            The same keys, with the same dtypes, but a mask of integers or booleans as int64, which holds every id and
            the `fill`.
        """
        self.steps.set_random_seed(seed)
        given: dict[str, Any] = {"image": np.ascontiguousarray(sample["image"].permute(1, 2, 0).numpy())}
        if "mask" in sample:  # OpenCV does not resize int64; float32 holds every class id and depth
            given["mask"] = sample["mask"].to(torch.float32).numpy()
        if "boxes" in sample:
            given |= {"bboxes": sample["boxes"].numpy(), "box_index": np.arange(len(sample["boxes"]))}
        made = self.steps(**given)
        result = {**sample, "image": torch.from_numpy(np.ascontiguousarray(made["image"])).permute(2, 0, 1)}
        if "mask" in sample:
            dtype = sample["mask"].dtype if sample["mask"].is_floating_point() else torch.int64
            result["mask"] = torch.from_numpy(np.ascontiguousarray(made["mask"])).to(dtype)
        if "boxes" in sample:
            result["boxes"] = torch.as_tensor(np.asarray(made["bboxes"])).reshape(-1, 4).to(sample["boxes"].dtype)
            result["box_labels"] = sample["box_labels"][torch.as_tensor(made["box_index"], dtype=torch.int64)]
        return result


def training_augmentation(arguments: InputArguments, side: int | None = None, **options: Any) -> Augmentation | None:
    """The augmentation of a recipe; `None` with `--no_augment`.

    Args:
        arguments: Options of the run.
        side: Of the result in pixels, cut out of an image of `--size`; by default `--size` itself.
        **options: Other arguments of `Augmentation`: those that the task declares as `crops`.
    """
    if not arguments.augment:
        return None
    side = side or arguments.size
    chosen = {"scale": (arguments.size / side,) * 2, **options}
    return Augmentation(side, flip=arguments.flip, colour=arguments.colour, **chosen)
