# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Takes segmentation maps and boxes through the image processors with their images; part of those processors.

Where an image is resized to, and where its parts are in the result, follows from its size and the options alone.
`_place` works it out once, and maps and boxes both follow it.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_transforms import corners_to_center_format
from transformers.image_utils import SizeDict, is_pil_image
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging

from .image_processing_eupe_reading import upright


logger = logging.get_logger(__name__)

_MAP_MODES = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's modes of one integer per pixel
_COCO_BOX = "COCO is [left, top, width, height] in pixels of the original image"
_ROUNDING = 1e-6  # pixels: a narrower box is a rounding error at the edge of a crop


class EupeImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Options of the EUPE image processors beyond transformers' `ImagesKwargs`.

    Attributes:
        size_divisor: Makes both sides multiples of this number of pixels, e.g. 16, the ViTs' patch size. `do_pad=True`
            pads to it around the largest image of the batch. Otherwise the bottom and the right are cut.
        do_reduce_labels: Counts classes from 0 if the data counts from 1, as ADE20K does: 0 becomes the ignore index,
            k becomes k - 1, and the ignore index stays.
        semantic_loss_ignore_index: The class id of the padding around a segmentation map, and of 0 with
            `do_reduce_labels`. Must equal the model's, 255 by default.
        format: Of the annotations: "coco_detection", the only one.
    """

    size_divisor: int | None
    do_reduce_labels: bool | None
    semantic_loss_ignore_index: int
    format: str | None


class EupeTargetsMixin(BaseImageProcessor):
    """Turns `segmentation_maps` or `annotations` into `labels`. `preprocess` describes both.

    ```python
    >>> import numpy as np
    >>> from eupe_hf import EupeImageProcessor

    >>> processor = EupeImageProcessor(size=256)
    >>> image, ids = np.zeros((100, 200, 3), dtype=np.uint8), np.ones((100, 200), dtype=np.uint8)
    >>> processor(image, segmentation_maps=ids, return_tensors="pt")["labels"].shape
    torch.Size([1, 256, 256])
    >>> coco = {"image_id": 7, "annotations": [{"bbox": [50, 20, 100, 40], "category_id": 3}]}
    >>> processor(image, annotations=coco, return_tensors="pt")["labels"][0]["boxes"]
    tensor([[0.5000, 0.4000, 0.5000, 0.4000]])

    ```
    """

    do_reduce_labels = False
    semantic_loss_ignore_index = 255
    format = "coco_detection"

    def processed_sizes(self, sizes: Sequence[tuple[int, int]], **options: Any) -> list[tuple[int, int]]:
        """Returns height and width in pixels that images of these sizes, upright, get in a call with these options."""
        own = {name: getattr(self, name) for name in self._valid_kwargs_names}
        options = self._standardize_kwargs(**{**own, **options})
        return [(rows.size, columns.size) for rows, columns in _place(sizes, **options)]

    def place_boxes(
        self, boxes: torch.Tensor, class_labels: torch.Tensor, size: tuple[int, int], **options: Any
    ) -> dict[str, torch.Tensor]:
        """Gives `class_labels` and `boxes` as a call makes them of `annotations`.

        Args:
            boxes: (N, 4), float64: left, top, right and bottom in pixels, clipped to the upright image.
            class_labels: (N,), int64.
            size: Height and width of the image in pixels.
            **options: As a call takes them.
        """
        own = {name: getattr(self, name) for name in self._valid_kwargs_names}
        ((rows, columns),) = _place([size], **self._standardize_kwargs(**{**own, **options}))
        placed = _Objects(0, class_labels, boxes, torch.zeros(len(boxes), dtype=boxes.dtype)).place(rows, columns)
        return {key: placed[key] for key in ("class_labels", "boxes")}

    def _preprocess_image_like_inputs(
        self, images: Any, segmentation_maps: Any = None, annotations: Any = None, **kwargs: Any
    ) -> BatchFeature:
        if segmentation_maps is None and annotations is None:
            return super()._preprocess_image_like_inputs(images, **kwargs)
        if segmentation_maps is not None and annotations is not None:
            raise ValueError("segmentation_maps and annotations would both become labels: pass one of them.")
        images = self._prepare_image_like_inputs(images, **kwargs)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        targets: Any  # read, and refused, before the work on the images
        if annotations is not None:
            targets = _read_annotations(annotations, sizes)
        else:
            ignore_index, is_reduced = kwargs["semantic_loss_ignore_index"], bool(kwargs["do_reduce_labels"])
            targets = _read_maps(self.fetch_images(segmentation_maps), sizes, ignore_index, is_reduced)
        features = self._preprocess(images, **kwargs)
        is_array = isinstance(features["pixel_values"][0], np.ndarray)
        labels = []
        for index, axes in enumerate(_place(sizes, **kwargs)):
            placed, device = targets[index].place(*axes).items(), images[index].device
            labels.append({key: value.cpu().numpy() if is_array else value.to(device) for key, value in placed})
        if annotations is not None:
            features["labels"] = [BatchFeature(label) for label in labels]
            return features
        maps = [label["labels"] for label in labels]
        stack = np.stack if is_array else torch.stack
        features["labels"] = maps if kwargs["return_tensors"] is None else stack(maps)
        return features


def resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    """Returns the height and width, in pixels, that an image is resized to; `shortest_edge` keeps the aspect ratio."""
    if not size.shortest_edge:
        return size.height, size.width
    long = int(size.shortest_edge * max(height, width) / min(height, width))
    return (size.shortest_edge, long) if height <= width else (long, size.shortest_edge)


class _Axis(NamedTuple):
    """One side of an image on its way, all in pixels.

    `side` is resized to `resized`. Its pixels from `start` to `stop` begin at `offset` in a result of `size`. The rest
    of the result is padding.
    """

    side: int
    resized: int
    start: int
    stop: int
    offset: int
    size: int

    @property
    def kept(self) -> slice:
        """The part of the result that comes from the image."""
        return slice(self.offset, self.offset + self.stop - self.start)

    def sources(self, device: torch.device) -> torch.Tensor:
        """Nearest pixel of the image for each in `kept`, in integers, so that no rounding decides."""
        places = torch.arange(self.start, self.stop, device=device)
        return (2 * places + 1) * self.side // (2 * self.resized)

    def move(self, positions: torch.Tensor) -> torch.Tensor:
        """Moves positions on the side into the result. Those that were cut off go to the edge of `kept`."""
        resized = positions * self.resized / self.side
        return resized.clamp(self.start, self.stop) - self.start + self.offset

    def cut(self, size: int) -> "_Axis":
        return self._replace(stop=min(self.stop, self.start + size - self.offset), size=size)

    def pad(self, size: int) -> "_Axis":
        return self._replace(offset=self.offset + (size - self.size) // 2, size=size)


def _crop(side: int, resized: int, crop: int) -> _Axis:
    # like `center_crop`: first padded to the crop, then cut, with its rounding
    padded = max(resized, crop)
    start = round((padded - crop) / 2)
    return _Axis(side, resized, start, min(resized, start + crop), (padded - resized) // 2, crop)


def _place(sizes: Sequence[tuple[int, int]], **options: Any) -> list[tuple[_Axis, _Axis]]:
    """Returns rows and columns of each image in the result, by the options of the processor."""
    divisor, crop = options["size_divisor"] or 1, options["crop_size"]
    placements = []
    for size in sizes:
        resized = resized_size(*size, options["size"]) if options["do_resize"] else size
        cropped = (crop.height, crop.width) if options["do_center_crop"] else resized
        rows, columns = map(_crop, size, resized, cropped)
        if not options["do_pad"]:
            rows, columns = (axis.cut(axis.size - axis.size % divisor) for axis in (rows, columns))
        placements.append((rows, columns))
    if not options["do_pad"]:
        return placements
    largest = (max(axis.size for axis in axes) for axes in zip(*placements, strict=True))
    height, width = (-(-side // divisor) * divisor for side in largest)
    return [(rows.pad(height), columns.pad(width)) for rows, columns in placements]


def _check_count(targets: int, images: int, what: str) -> None:
    if targets != images:
        raise ValueError(f"There are {images} images and {targets} {what}: pass one for each image.")


class _Map(NamedTuple):
    """The class ids of one image, int64 (H, W)."""

    ids: torch.Tensor
    ignore_index: int

    def place(self, rows: _Axis, columns: _Axis) -> dict[str, torch.Tensor]:
        """Returns the ids in the result, with the ignore index in the padding."""
        rows_of, columns_of = (axis.sources(self.ids.device) for axis in (rows, columns))
        placed = self.ids.new_full((rows.size, columns.size), self.ignore_index)
        placed[rows.kept, columns.kept] = self.ids[rows_of][:, columns_of]
        return {"labels": placed}


def _read_maps(maps: Any, sizes: Sequence[tuple[int, int]], ignore_index: int, is_reduced: bool) -> list[_Map]:
    if isinstance(maps, (np.ndarray, torch.Tensor)) and maps.ndim == 3 and len(maps) == len(sizes):
        maps = list(maps)
    elif not isinstance(maps, Sequence):
        maps = [maps]
    _check_count(len(maps), len(sizes), "segmentation maps")
    targets = []
    for index, (given, size) in enumerate(zip(maps, sizes, strict=True)):
        ids = _read_map(given, size, index)
        reduced = torch.where((ids == 0) | (ids == ignore_index), ignore_index, ids - 1) if is_reduced else ids
        targets.append(_Map(reduced, ignore_index))
    return targets


def _read_map(ids: Any, size: tuple[int, int], index: int) -> torch.Tensor:
    name = f"segmentation_maps[{index}]"
    if is_pil_image(ids):
        if ids.mode not in _MAP_MODES:
            raise ValueError(
                f"{name} has the mode {ids.mode}: pass one class id per pixel, in the modes 1, L, P, I or I;16. "
                "Translate colours and fractions to ids first."
            )
        ids = np.asarray(upright(ids, name))  # a palette's indices, not its colours
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "bui":
        ids = torch.from_numpy(ids.astype(np.int64))
    if not isinstance(ids, (np.ndarray, torch.Tensor)):
        raise TypeError(f"{name} is of type {type(ids).__name__}: pass a PIL image, a path, an array or a tensor.")
    if isinstance(ids, np.ndarray) or ids.is_floating_point() or ids.is_complex():
        raise ValueError(f"{name} is of dtype {ids.dtype}: pass class ids as integers.")
    if ids.ndim != 2:
        raise ValueError(f"{name} has the shape {tuple(ids.shape)}: pass one class id per pixel, (height, width).")
    if tuple(ids.shape) != size:
        raise ValueError(
            f"{name} is {ids.shape[0]}x{ids.shape[1]} and images[{index}] is {size[0]}x{size[1]}, height x width, "
            "EXIF rotation undone: pass the map that belongs to the image, at its size."
        )
    return ids.detach().to(torch.int64)


class _Objects(NamedTuple):
    """The objects of one image: `boxes` (n, 4) as left, top, right and bottom, in pixels, within the image."""

    image_id: int
    class_labels: torch.Tensor
    boxes: torch.Tensor
    area: torch.Tensor

    def place(self, rows: _Axis, columns: _Axis) -> dict[str, torch.Tensor]:
        """Returns the labels that transformers' detectors are trained on, for the objects left in the result."""
        left, top, right, bottom = self.boxes.unbind(-1)
        boxes = torch.stack([columns.move(left), rows.move(top), columns.move(right), rows.move(bottom)], dim=-1)
        sides = boxes[:, 2:] - boxes[:, :2]
        kept = (sides > _ROUNDING).all(dim=-1)
        # an object that is not a rectangle keeps the same share of its area as its box
        area = self.area * sides.prod(dim=-1) / (self.boxes[:, 2:] - self.boxes[:, :2]).prod(dim=-1)
        centered = corners_to_center_format(boxes[kept]) / boxes.new_tensor([columns.size, rows.size] * 2)
        return {
            "size": torch.tensor([rows.size, columns.size]),
            "image_id": torch.tensor([self.image_id]),
            "class_labels": self.class_labels[kept],
            "boxes": centered.to(torch.float32),
            "area": area[kept].to(torch.float32),
            "iscrowd": torch.zeros_like(self.class_labels[kept]),
            "orig_size": torch.tensor([rows.side, columns.side]),
        }


def _read_annotations(annotations: Any, sizes: Sequence[tuple[int, int]]) -> list[_Objects]:
    annotations = list(annotations) if isinstance(annotations, Sequence) else [annotations]
    _check_count(len(annotations), len(sizes), "annotations")
    names = [f"annotations[{index}]" for index in range(len(sizes))]
    return list(map(_read_image_annotations, annotations, sizes, names))


def _read_image_annotations(target: Any, size: tuple[int, int], name: str) -> _Objects:
    if not isinstance(target, Mapping) or not {"image_id", "annotations"} <= set(target):
        given = f"the keys {list(target)}" if isinstance(target, Mapping) else f"the type {type(target).__name__}"
        raise ValueError(f"{name} has {given}: give a dictionary with image_id and annotations.")
    items = target["annotations"]
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, Mapping) for item in items):
        raise ValueError(f"{name}['annotations'] must be a list with one dictionary for each object.")
    if not isinstance(target["image_id"], Integral):
        raise ValueError(f"{name} has image_id={target['image_id']!r}: give a whole number.")
    class_labels, boxes, areas, bboxes = [], [], [], []
    for index, item in enumerate(items):
        if item.get("iscrowd"):  # a crowd is not one object; transformers leaves crowds out as well
            continue
        box = _read_box(item, size, f"{name}['annotations'][{index}]")
        sides = box[2] - box[0], box[3] - box[1]
        bboxes.append([float(value) for value in item["bbox"]])
        if min(sides) <= _ROUNDING:
            continue
        class_labels.append(int(item["category_id"]))
        boxes.append(box)
        areas.append(float(item.get("area", sides[0] * sides[1])))
    values = {value for bbox in bboxes for value in bbox}
    if values - {0, 1} and 0 <= min(values) <= max(values) <= 1 < min(size):  # [0, 0, 1, 1] may be one pixel
        raise ValueError(
            f"{name} has boxes from 0 to 1 alone, such as bbox={bboxes[0]}, as shares of the image's sides are: "
            f"multiply them by its width {size[1]} and height {size[0]}. {_COCO_BOX}."
        )
    return _Objects(
        int(target["image_id"]),
        torch.tensor(class_labels, dtype=torch.int64),
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor(areas, dtype=torch.float64),
    )


def _read_box(item: Mapping[str, Any], size: tuple[int, int], name: str) -> tuple[float, float, float, float]:
    """Returns left, top, right and bottom of an object, clipped to its image, in pixels."""
    missing = [key for key in ("bbox", "category_id") if key not in item]
    if missing:
        raise ValueError(f"{name} has no {' and no '.join(missing)}: give bbox, {_COCO_BOX}, and category_id.")
    for key, kind in (("category_id", Integral), ("area", Real)):
        value = item.get(key, 0)
        if not isinstance(value, kind) or not 0 <= float(value) < math.inf:
            what = "a whole number" if kind is Integral else "a number of pixels"
            raise ValueError(f"{name} has {key}={value!r}: give {what} from 0.")
    bbox = item["bbox"].tolist() if isinstance(item["bbox"], (np.ndarray, torch.Tensor)) else item["bbox"]
    is_box = isinstance(bbox, Sequence) and len(bbox) == 4
    if not is_box or not all(isinstance(value, Real) and math.isfinite(value) for value in bbox):
        raise ValueError(f"{name} has bbox={bbox!r}: give 4 numbers, {_COCO_BOX}.")
    left, top, width, height = map(float, bbox)
    if width < 0 or height < 0:
        raise ValueError(f"{name} has bbox={bbox!r}, of negative width or height: {_COCO_BOX}.")
    right, bottom, limits = left + width, top + height, (size[1], size[0])
    if width and height and (left >= limits[0] or top >= limits[1] or right <= 0 or bottom <= 0):
        where = f"outside its image of height {size[0]} and width {size[1]}"
        raise ValueError(f"{name} has bbox={bbox!r}, {where}: {_COCO_BOX}.")
    if right > limits[0] + 1 or bottom > limits[1] + 1 or min(left, top) < -1:
        # fixed words, so that it appears once; often right and bottom were given as width and height
        logger.warning_once(f"Boxes reach beyond their images by over a pixel and are clipped: {_COCO_BOX}.")
    return max(left, 0.0), max(top, 0.0), min(right, limits[0]), min(bottom, limits[1])
