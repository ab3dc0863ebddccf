# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Turns images of any kind into the `pixel_values` that EUPE was trained on.

`EupeImageProcessor` and `EupeImageProcessorPil` are transformers' two back ends over one implementation in plain
torch: the same values, bit for bit, with and without torchvision. The order of operations is upstream's eval
transform: RGB, resize on 8 bits with antialiasing, crop, times 1/255, ImageNet mean and standard deviation.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from torch.nn import functional
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import AnnotationType, ChannelDimension, ImageInput, SizeDict
from transformers.processing_utils import Unpack
from transformers.utils import is_torchvision_available
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .image_processing_eupe_reading import check_pixel_count, open_image, read_pixels
from .image_processing_eupe_targets import EupeImageProcessorKwargs, EupeTargetsMixin, resized_size
from .post_processing_eupe import EupePostProcessingMixin
from .sharing_eupe import EupeNamesMixin, EupeSavedProcessorMixin


_CLASSES = {"torchvision": "EupeImageProcessor", "pil": "EupeImageProcessorPil"}
# Pillow's codes for the filters that torch has: NEAREST, BILINEAR, BICUBIC, and LANCZOS in its recent releases
_INTERPOLATION = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
if hasattr(torch._C._nn, "_upsample_lanczos2d_aa"):
    _INTERPOLATION[1] = "lanczos"


class _ReadPixels(list[torch.Tensor]):
    """Images that `process_image` read and checked."""


class EupeImageProcessorMixin(EupeNamesMixin, EupeSavedProcessorMixin, EupePostProcessingMixin, EupeTargetsMixin):
    """What both back ends share: all of it. Images travel as (C, H, W) tensors, uint8 or float32 in [0, 1]."""

    valid_kwargs = EupeImageProcessorKwargs
    do_convert_rgb = do_resize = do_rescale = do_normalize = True
    do_center_crop = do_pad = False
    size = {"height": 256, "width": 256}
    resample = 2  # Pillow's BILINEAR
    image_mean, image_std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        annotations: AnnotationType | list[AnnotationType] | None = None,
        **kwargs: Unpack[EupeImageProcessorKwargs],
    ) -> BatchFeature:
        """Turns images into `pixel_values` and targets into `labels`. `processor(images)` is the same call.

        Args:
            images: One image or a list of any kinds and sizes: a file path, an http(s), file or data URL, base64, a
                PIL image of any mode, an array or tensor (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, or a batch
                of those with four axes. Integers are 0..255, uint16 0..65535, floats [0, 1], bool black and white. PIL
                mode I is 16-bit if a value exceeds 255. EXIF rotation is undone and alpha dropped. If both layouts
                fit, arrays are channels last and tensors channels first, unless `input_data_format` says otherwise.
                Pillow reads grey files of 16 bits in full, but colour files of 16 bits per channel as 8.
            segmentation_maps: One (H, W) map of class ids per image, of its size: PIL images in the modes 1, L, P (its
                indices), I and I;16, their paths, arrays or tensors of integers. They follow the image with the
                nearest pixel. Padding is `semantic_loss_ignore_index`. See also `do_reduce_labels`.
            annotations: COCO's, one dictionary per image: `image_id`, and `annotations`, a list of dictionaries with
                `bbox`, [left, top, width, height] in pixels of the original image with EXIF rotation undone,
                `category_id`, and optionally `area` in square pixels and `iscrowd`. Boxes are clipped to the part of
                the image that is left. Boxes outside it, and crowds, are dropped.
            **kwargs: `return_tensors`, `device`, `input_data_format`, and for this call any option of the constructor.
                With `disable_grouping=None` an accelerator resizes images of one size together, the CPU one by one,
                which is faster there. The values are the same.

        Returns:
            `pixel_values`, float32, normalised: with `return_tensors="pt"` or `"np"` of shape (B, 3, H, W), without it
            a list of (3, H, W), tensors from `EupeImageProcessor`, arrays from `EupeImageProcessorPil`. `labels`
            likewise: of maps int64 (B, H, W), of annotations a list of dictionaries. These have, for n boxes, `boxes`
            (n, 4), float32, center x, center y, width and height as shares of the processed image's sides,
            `class_labels` (n,), the category ids as they were, `area` (n,) in its square pixels, `iscrowd` (n,),
            zeros, `image_id` (1,), `size` (2,) of the processed and `orig_size` (2,) of the given image, height first.

        Raises:
            TypeError: An input is not an image or not a map.
            ValueError: An image is unreadable, empty, out of range or has wrong channels, an option is not supported,
                images of different sizes would be stacked, or targets do not fit their images.
        """
        return super().preprocess(images, segmentation_maps, annotations, **kwargs)

    def preprocess_pixels(self, images: Sequence[torch.Tensor], **kwargs: Any) -> BatchFeature:
        """Does what `preprocess` does, with images from `process_image`, without checking or converting them again.

        Use it if you augment in between. `images` are (3, H, W), uint8 or float32 in [0, 1]: other tensors give wrong
        values, not errors. `kwargs` are those of `preprocess`, also `segmentation_maps` and `annotations`.
        """
        return self.preprocess(_ReadPixels(images), **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Reads paths, URLs and base64, also in lists, into PIL images as stored; transformers' own cuts to 8 bits."""
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return open_image(image_url_or_urls, "The image")
        is_list = isinstance(image_url_or_urls, Sequence) and not isinstance(image_url_or_urls, bytes)
        return [self.fetch_images(item) for item in image_url_or_urls] if is_list else image_url_or_urls

    def process_image(self, image: Any, index: int = 0, **kwargs: Unpack[EupeImageProcessorKwargs]) -> torch.Tensor:
        """Reads one image (see `preprocess`) into (C, H, W): uint8, or float32 in [0, 1] if it has more than 8 bits.

        It uses the options `do_convert_rgb`, `input_data_format` and `device`; `index` is for error messages.
        """
        do_convert_rgb, layout = kwargs.get("do_convert_rgb", True), kwargs.get("input_data_format")
        return read_pixels(image, f"images[{index}]", do_convert_rgb, layout).to(kwargs.get("device"))

    def resize(self, image: torch.Tensor, size: SizeDict, resample: int = 2, **kwargs: Any) -> torch.Tensor:
        """Resizes (..., C, H, W) with antialiasing, as torchvision does; `shortest_edge` keeps the aspect ratio.

        uint8 stays uint8. Off the CPU it is rounded from float32, which can differ from the CPU by a grey level.
        """
        target = resized_size(image.shape[-2], image.shape[-1], size)
        if target == image.shape[-2:]:
            return image
        mode = _INTERPOLATION[resample]
        pixels = image if image.device.type == "cpu" else image.to(torch.float32)
        # one image gets its batch axis in the order (H, W, C), in which torch recognises the fast layout
        batch = pixels if image.ndim == 4 else pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
        resized = functional.interpolate(batch, target, mode=mode, antialias=mode != "nearest-exact")
        resized = resized.reshape(*image.shape[:-2], *target)
        if image.dtype != torch.uint8:
            return resized.clamp(0, 1)  # bicubic overshoots; torch clips uint8
        return resized if resized.dtype == torch.uint8 else resized.round().clamp(0, 255).to(torch.uint8)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """Cuts the middle out of (..., H, W), padded with black if it is smaller, like torchvision's `CenterCrop`."""
        image = _pad_centered(image, max(size.height, image.shape[-2]), max(size.width, image.shape[-1]))
        top = round((image.shape[-2] - size.height) / 2)
        left = round((image.shape[-1] - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def normalize(
        self, image: torch.Tensor, mean: Any, std: Any, inplace: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        """Subtracts `mean` from (..., C, H, W) and divides by `std`: one number or C of them, else a ValueError."""
        shift, scale = (torch.tensor(values, dtype=torch.float32, device=image.device) for values in (mean, std))
        counts, channels = [shift.numel(), scale.numel()], image.shape[-3]
        if not {*counts} <= {1, channels}:
            given = " and ".join(map(str, counts))
            raise ValueError(f"image_mean and image_std have {given} values: give 1 or {channels}.")
        pixels = image.to(torch.float32, copy=not inplace)
        return pixels.sub_(shift.reshape(-1, 1, 1)).div_(scale.reshape(-1, 1, 1))

    def pad(self, images: list[torch.Tensor], size_divisor: int | None = None, **kwargs: Any) -> list[torch.Tensor]:
        """Pads (C, H, W) with zeros all around to the largest, in multiples of `size_divisor`; odd pixels go last."""
        divisor = size_divisor or 1
        height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (-2, -1))
        check_pixel_count(width, height, "the images would be padded to")
        return [_pad_centered(image, height, width) for image in images]

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `preprocessor_config.json`: the options, and which files hold the code."""
        output = super().to_dict()
        output["image_processor_type"] = _CLASSES["torchvision"]
        auto_map = {backend: f"image_processing_eupe.{name}" for backend, name in _CLASSES.items()}
        output["auto_map"] = {**output.get("auto_map", {}), "AutoImageProcessor": auto_map}
        return output

    def _set_attributes(self, **kwargs: Any) -> None:
        # transformers checks the options of a call only; here a wrong one fails in the constructor
        options = {key: kwargs[key] for key in kwargs.keys() & self.valid_kwargs.__annotations__.keys()}
        options = {key: dict(value) if isinstance(value, SizeDict) else value for key, value in options.items()}
        validate_typed_dict(self.valid_kwargs, options)
        super()._set_attributes(**kwargs)
        self._validate_preprocess_kwargs(**{key: getattr(self, key) for key in self._valid_kwargs_names})

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        sides, resample, layout = {"height", "width"}, kwargs["resample"], kwargs["input_data_format"]
        size_divisor, std = kwargs["size_divisor"], kwargs["image_std"]
        checks = (
            ("size", _is_size(kwargs["size"], sides, {"shortest_edge"}), "height and width, or shortest_edge, from 1"),
            ("crop_size", _is_size(kwargs["crop_size"], sides), "height and width, from 1"),
            ("size_divisor", size_divisor is None or size_divisor > 0, "a number from 1, or None"),
            ("pad_size", kwargs["pad_size"] is None, "None: the largest image and size_divisor say how far to pad"),
            ("resample", resample is None or resample in _INTERPOLATION, f"one of {_INTERPOLATION}"),
            ("image_std", std is None or np.min(std) > 0, "numbers above 0"),
            ("image_mean", _is_on_scale(kwargs), "numbers on the scale of the rescaled pixels: divided by 255, too"),
            ("format", kwargs["format"] in (None, "coco_detection"), "coco_detection"),
            ("data_format", kwargs["data_format"] in (None, "channels_first"), "channels_first, as the models need"),
            ("input_data_format", layout in (None, *ChannelDimension), "channels_first, channels_last or None"),
        )
        for name, is_supported, choices in checks:
            if not is_supported:
                value = dict(kwargs[name]) if isinstance(kwargs[name], SizeDict) else repr(kwargs[name])
                raise ValueError(f"{name}={value} is not supported: give {choices}.")

    def _prepare_image_like_inputs(self, images: Any, **kwargs: Any) -> list[torch.Tensor]:
        if isinstance(images, _ReadPixels):
            return [image.to(kwargs.get("device")) for image in images]
        images = _flatten(images)
        if not images:
            raise ValueError("The batch is empty: pass at least one image.")
        return [self.process_image(image, index=index, **kwargs) for index, image in enumerate(images)]

    def _preprocess(self, images: list[torch.Tensor], **kwargs: Any) -> BatchFeature:
        divisor, return_tensors, is_alone = map(kwargs.get, ("size_divisor", "return_tensors", "disable_grouping"))
        if kwargs["do_resize"]:
            for index, (height, width) in enumerate(image.shape[-2:] for image in images):
                rows, columns = resized_size(height, width, kwargs["size"])
                # torch makes an image as wide as it shall be, and then as high
                what = f"images[{index}] is {width} x {height}: resizing it to {columns} x {rows} passes through"
                check_pixel_count(columns, max(height, rows), what)
            # on the CPU, stacking images at their full size costs more than one call saves
            is_alone = images[0].device.type == "cpu" if is_alone is None else is_alone
            resize = partial(self.resize, size=kwargs["size"], resample=kwargs["resample"])
            images = list(map(resize, images)) if is_alone else list(_by_shape(images, resize))
        if kwargs["do_center_crop"]:
            images = [self.center_crop(image, kwargs["crop_size"]) for image in images]
        if divisor and not kwargs["do_pad"]:
            images = [_cut_to_multiple(image, divisor, index) for index, image in enumerate(images)]
        processed = _by_shape(images, partial(self._to_values, **kwargs))
        if kwargs["do_pad"]:
            processed = self.pad(list(processed), divisor)
        if return_tensors is None:
            arrays = [image.cpu().numpy() if self.backend == "pil" else image for image in processed]
            return BatchFeature({"pixel_values": arrays})
        shapes = sorted({tuple(image.shape) for image in processed})
        if len(shapes) > 1:
            raise ValueError(
                f"The images have the shapes {', '.join(map(str, shapes[:8]))} and can't be stacked: pass a height "
                "and a width as size, do_center_crop=True, do_pad=True, or no return_tensors."
            )
        stacked = processed if isinstance(processed, torch.Tensor) else torch.stack(processed)
        stacked = stacked if return_tensors == "pt" else stacked.cpu().numpy()
        return BatchFeature({"pixel_values": stacked}, tensor_type=return_tensors)

    def _to_values(self, images: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Rescales and normalises (N, C, H, W), a stack that nothing else holds, in place if it is float32."""
        scale = 1 if images.dtype == torch.uint8 else 255  # what is in [0, 1] counts as divided by 255 already
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format)
        if kwargs["do_rescale"]:  # times 1/255, not divided by 255: upstream's last bit depends on it
            pixels.mul_(kwargs["rescale_factor"] * scale)
        if kwargs["do_normalize"]:
            pixels = self.normalize(pixels, kwargs["image_mean"], kwargs["image_std"], inplace=True)
        return pixels


class EupeImageProcessorPil(EupeImageProcessorMixin, PilBackend):
    """The twin of `EupeImageProcessor` without torchvision: the same options, inputs, values and errors.

    At native resolution, padded to whole patches, as in upstream's depth protocol:

    ```python
    >>> import numpy as np
    >>> from eupe_hf import EupeImageProcessorPil

    >>> processor = EupeImageProcessorPil(do_resize=False, size_divisor=16, do_pad=True)
    >>> processor(np.zeros((470, 640, 3), dtype=np.uint8), return_tensors="np")["pixel_values"].shape
    (1, 3, 480, 640)

    ```
    """


class EupeImageProcessor(EupeImageProcessorMixin, TorchvisionBackend):
    """Image processor of EUPE, by default upstream's eval transform: 256 x 256, bilinear, ImageNet statistics.

    Without torchvision the constructor, `from_pretrained` and `from_dict` return an `EupeImageProcessorPil`, whose
    values are the same. `preprocess` describes inputs and errors.

    Args:
        **kwargs: The options, which a call takes too.
            `do_convert_rgb`: Grey to three channels, alpha dropped; False keeps 1, 3 or 4 channels.
            `do_resize`, `size`, `resample`: `{"height", "width"}` in pixels, an int for a square, or
            `{"shortest_edge"}`, which keeps the aspect ratio. Pillow's code of the filter: 2 bilinear, 3 bicubic, 0
            nearest, 1 Lanczos (recent torch, CPU only).
            `do_center_crop`, `crop_size`: Cuts out the middle after resizing.
            `do_rescale`, `rescale_factor`: Times 1/255. Floats and 16-bit images are in [0, 1] without it.
            `do_normalize`, `image_mean`, `image_std`: One number or one per channel, on the scale [0, 1].
            `do_pad`: Pads normalised images with zeros all around. `EupeImageProcessorKwargs` describes the others.

    With upstream's classification protocol:

    ```python
    >>> import torch
    >>> from eupe_hf import EupeImageProcessor

    >>> processor = EupeImageProcessor(size={"shortest_edge": 256}, resample=3, do_center_crop=True, crop_size=224)
    >>> processor(torch.rand(3, 480, 640), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 224, 224])

    ```
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> BaseImageProcessor:  # noqa: D102
        if cls is EupeImageProcessor and not is_torchvision_available():
            return EupeImageProcessorPil(*args, **kwargs)
        return super().__new__(cls)


def _is_size(size: SizeDict | None, *allowed: set[str]) -> bool:
    return size is None or (set(dict(size)) in allowed and min(dict(size).values()) > 0)


def _is_on_scale(options: dict[str, Any]) -> bool:
    mean, factor = options["image_mean"], options["rescale_factor"]
    if mean is None or factor is None or not (options["do_normalize"] and options["do_rescale"]):
        return True
    return bool(np.max(mean) <= 255 * abs(factor) * (1 + 1e-6))


def _flatten(images: Any) -> list[Any]:
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return [image for item in images for image in _flatten(item)]
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _by_shape(images: Sequence[torch.Tensor], function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Applies `function` to stacks of the images of one shape and dtype. If there is one stack, it returns that."""
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(images):
        groups.setdefault((image.shape, image.dtype), []).append(index)
    results: dict[int, torch.Tensor] = {}
    for indices in groups.values():
        stacked = function(torch.stack([images[index] for index in indices]))
        if len(groups) == 1:
            return stacked
        results.update(zip(indices, stacked, strict=True))
    return [results[index] for index in range(len(images))]


def _pad_centered(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    rows, columns = height - image.shape[-2], width - image.shape[-1]
    return functional.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _cut_to_multiple(image: torch.Tensor, divisor: int, index: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    if min(height, width) < divisor:
        given = f"images[{index}] is {height}x{width}"
        raise ValueError(f"{given}, below size_divisor={divisor}: resize it or set do_pad.")
    return image[:, : height - height % divisor, : width - width % divisor]
