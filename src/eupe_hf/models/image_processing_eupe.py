# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""From pictures in any form to the `pixel_values` that EUPE was trained on.

`EupeImageProcessor` and `EupeImageProcessorPil` are transformers' two back ends over one implementation in plain
torch: the same values, bit for bit, with and without torchvision. The order of operations is that of upstream's eval
transform: RGB, resize on 8 bits with antialiasing, crop, times 1/255, ImageNet mean and standard deviation.
"""

import http.client
import io
import os
import struct
import urllib.request
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from torch.nn import functional
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import AnnotationType, ChannelDimension, ImageInput, SizeDict, is_pil_image
from transformers.processing_utils import Unpack
from transformers.utils import is_torchvision_available, is_vision_available, requires_backends
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .image_processing_eupe_targets import EupeTargetsKwargs, EupeTargetsMixin, resized_size
from .post_processing_eupe import EupePostProcessingMixin
from .sharing_eupe import EupeCodeMixin, EupeNamesMixin


if is_vision_available():
    import PIL.Image
    import PIL.ImageOps

    # what Pillow raises on damaged, truncated and oversized pictures
    _UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, struct.error, PIL.Image.DecompressionBombError)


_MODULE = "image_processing_eupe"


_AUTO_MAP = {"torchvision": f"{_MODULE}.EupeImageProcessor", "pil": f"{_MODULE}.EupeImageProcessorPil"}


# Pillow's codes for the filters that torch has: NEAREST, BILINEAR, BICUBIC, and LANCZOS in its recent releases
_INTERPOLATION = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


if hasattr(torch._C._nn, "_upsample_lanczos2d_aa"):
    _INTERPOLATION[1] = "lanczos"


class EupeImageProcessorKwargs(EupeTargetsKwargs, total=False):  # type: ignore[call-arg]
    """Options of the EUPE image processors beyond transformers' `ImagesKwargs`, and those for targets.

    Attributes:
        size_divisor: Makes both sides multiples of this number of pixels, e.g. 16, the ViTs' patch size. `do_pad=True`
            pads to it around the largest image of the batch, else the bottom and the right are cut, as encoders do.
    """

    size_divisor: int | None


class EupeImageProcessorMixin(EupeNamesMixin, EupeCodeMixin, EupePostProcessingMixin, EupeTargetsMixin):
    """What both back ends share: all of it. Images travel as (C, H, W) tensors, uint8 or float32 on [0, 1]."""

    valid_kwargs = EupeImageProcessorKwargs
    do_convert_rgb = True
    do_resize = True
    size = {"height": 256, "width": 256}
    resample = 2  # Pillow's BILINEAR
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    do_pad = False

    def preprocess(
        self,
        images: ImageInput,
        segmentation_maps: ImageInput | None = None,
        annotations: AnnotationType | list[AnnotationType] | None = None,
        **kwargs: Unpack[EupeImageProcessorKwargs],
    ) -> BatchFeature:
        """Turns images into `pixel_values`, targets into `labels`; `processor(images)` is the same call.

        Args:
            images: One image or a list, kinds and sizes mixed at will: a file path, an http(s) URL, a PIL image of any
                mode, an array or tensor (H, W), (H, W, C) or (C, H, W) with C = 1, 3 or 4, or a batch of those with
                four axes. Integers are 0..255, uint16 0..65535, floats [0, 1], bool black and white; PIL mode I is
                16-bit where a value exceeds 255. EXIF rotation is undone and alpha dropped. Where both layouts fit,
                arrays are channels last and tensors channels first, unless `input_data_format` says otherwise. Pillow
                reads grey files of 16 bits in full, but colour files of 16 bits per channel as 8.
            segmentation_maps: One (H, W) map of class ids per image, of its size: PIL images in the modes 1, L, P (its
                indices), I and I;16, their paths, arrays or tensors of integers. They follow the image with the
                nearest pixel; what is added around is `semantic_loss_ignore_index`. See also `do_reduce_labels`.
            annotations: COCO's, one dictionary per image: `image_id`, and `annotations`, a list of dictionaries with
                `bbox`, [left, top, width, height] in pixels of the original image with EXIF rotation undone,
                `category_id`, and optionally `area` in square pixels and `iscrowd`. Boxes are clipped to what is left
                of the image; those of which nothing is left, and crowds, are dropped.
            **kwargs: `return_tensors`, `device`, `input_data_format`, and for this call any option of the constructor.

        Returns:
            `pixel_values`, float32, normalised: with `return_tensors="pt"` or `"np"` of shape (B, 3, H, W), without it
            a list of (3, H, W), tensors from `EupeImageProcessor`, arrays from `EupeImageProcessorPil`.
            `labels` likewise: of maps int64 (B, H, W). Of annotations a list of dictionaries, for n boxes: `boxes`
            (n, 4), float32, center x, center y, width and height as shares of the processed image's sides,
            `class_labels` (n,), the category ids as they were, `area` (n,) in its square pixels, `iscrowd` (n,),
            zeros, `image_id` (1,), `size` (2,) of the processed and `orig_size` (2,) of the given image, height first.

        Raises:
            TypeError: Where an input is no image, or no map.
            ValueError: Where an image is unreadable, empty, out of range or of another number of channels, an option
                is not supported, images of different sizes are to be stacked, or targets do not fit their images.
        """
        return super().preprocess(images, segmentation_maps, annotations, **kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Reads paths and URLs, also in lists, into PIL images as stored: transformers' own cuts them to 8 bits."""
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return _read_image(image_url_or_urls, "The image")
        is_list = _is_list(image_url_or_urls)
        return [self.fetch_images(item) for item in image_url_or_urls] if is_list else image_url_or_urls

    def process_image(self, image: Any, index: int = 0, **kwargs: Unpack[EupeImageProcessorKwargs]) -> torch.Tensor:
        """Brings one image (see `preprocess`) to (C, H, W): uint8, or float32 on [0, 1] where it has more than 8 bits.

        Of the options it reads `do_convert_rgb`, `input_data_format` and `device`; `index` is for error messages.
        """
        name, do_convert_rgb = f"images[{index}]", kwargs.get("do_convert_rgb", True)
        layouts = [ChannelDimension.LAST, ChannelDimension.FIRST]
        if isinstance(image, (str, os.PathLike)):
            image = _read_image(image, name)
        if is_pil_image(image):
            image, layouts = _pil_to_array(image, do_convert_rgb, name), layouts[:1]
        elif kwargs.get("input_data_format") is not None:
            layouts = [kwargs["input_data_format"]]
        elif isinstance(image, torch.Tensor):
            layouts.reverse()
        if isinstance(image, np.ndarray) and image.dtype.kind in "buif" and image.dtype.itemsize <= 8:
            # a copy: torch takes neither read-only arrays nor negative strides nor foreign byte orders
            image = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
        if not isinstance(image, torch.Tensor) or image.is_complex():
            kind = f"{type(image).__name__} {getattr(image, 'dtype', '')}".rstrip()
            raise TypeError(f"{name} is of type {kind}: pass a path, URL, PIL image, array or tensor of real numbers.")
        image = _to_pixels(_to_channels_first(image.detach(), layouts, name), name)
        if do_convert_rgb:
            image = image.expand(3, -1, -1) if len(image) == 1 else image[:3]
        return image.to(kwargs.get("device"))

    def resize(self, image: torch.Tensor, size: SizeDict, resample: int = 2, **kwargs: Any) -> torch.Tensor:
        """Resizes (C, H, W) with antialiasing, as torchvision's `Resize` does; `shortest_edge` keeps the aspect ratio.

        uint8 stays uint8; off the CPU it is rounded from float32, which can differ from the CPU by a grey level.
        """
        height, width = image.shape[-2:]
        target = resized_size(height, width, size)
        if target == (height, width):
            return image
        mode = _INTERPOLATION[resample]
        pixels = image if image.device.type == "cpu" else image.to(torch.float32)
        resized = functional.interpolate(pixels[None], target, mode=mode, antialias=mode != "nearest-exact")[0]
        if image.dtype == torch.uint8:
            return resized if resized.dtype == torch.uint8 else resized.round().clamp(0, 255).to(torch.uint8)
        return resized.clamp(0, 1)  # bicubic overshoots; torch clips uint8 by itself

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """Cuts the middle out of (C, H, W), padding with black where that is smaller: torchvision's `CenterCrop`."""
        image = _pad_centered(image, max(size.height, image.shape[-2]), max(size.width, image.shape[-1]))
        top = round((image.shape[-2] - size.height) / 2)
        left = round((image.shape[-1] - size.width) / 2)
        return image[:, top : top + size.height, left : left + size.width]

    def normalize(
        self, image: torch.Tensor, mean: float | Sequence[float], std: float | Sequence[float], **kwargs: Any
    ) -> torch.Tensor:
        """Subtracts `mean` from (C, H, W) and divides by `std`: one number or C of them, else a ValueError."""
        shift = torch.tensor(mean, dtype=torch.float32, device=image.device).reshape(-1, 1, 1)
        scale = torch.tensor(std, dtype=torch.float32, device=image.device).reshape(-1, 1, 1)
        if not {len(shift), len(scale)} <= {1, len(image)}:
            counts = f"{len(shift)} and {len(scale)}"
            raise ValueError(f"image_mean and image_std have {counts} values: give 1 or {len(image)}.")
        return (image.to(torch.float32) - shift) / scale

    def pad(self, images: list[torch.Tensor], size_divisor: int | None = None, **kwargs: Any) -> list[torch.Tensor]:
        """Pads (C, H, W) with zeros all around to the largest, in multiples of `size_divisor`; odd pixels go last."""
        divisor = size_divisor or 1
        largest = (max(image.shape[axis] for image in images) for axis in (-2, -1))
        height, width = (-(-side // divisor) * divisor for side in largest)
        return [_pad_centered(image, height, width) for image in images]

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> list[str]:
        """Saves as transformers does, and the source files with it, so that `trust_remote_code=True` finds them."""
        sources = self._save_code(save_directory)
        return [*super().save_pretrained(os.fspath(save_directory), *args, **kwargs), *sources]

    def to_dict(self) -> dict[str, Any]:
        """Gives the content of `preprocessor_config.json`: the options, and where the code is for those without it."""
        output = super().to_dict()
        output["image_processor_type"] = "EupeImageProcessor"
        output["auto_map"] = {**output.get("auto_map", {}), "AutoImageProcessor": dict(_AUTO_MAP)}
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
            ("format", kwargs["format"] in (None, "coco_detection"), "coco_detection"),
            ("data_format", kwargs["data_format"] in (None, "channels_first"), "channels_first, as the models need"),
            ("input_data_format", layout in (None, *ChannelDimension), "channels_first, channels_last or None"),
        )
        for name, is_supported, choices in checks:
            if not is_supported:
                value = dict(kwargs[name]) if isinstance(kwargs[name], SizeDict) else repr(kwargs[name])
                raise ValueError(f"{name}={value} is not supported: give {choices}.")

    def _prepare_image_like_inputs(self, images: Any, **kwargs: Any) -> list[torch.Tensor]:
        images = _flatten(images)
        if not images:
            raise ValueError("The batch is empty: pass at least one image.")
        return [self.process_image(image, index=index, **kwargs) for index, image in enumerate(images)]

    def _preprocess(self, images: list[torch.Tensor], **kwargs: Any) -> BatchFeature:
        divisor, return_tensors = kwargs["size_divisor"], kwargs["return_tensors"]
        processed = []
        for index, image in enumerate(images):
            if kwargs["do_resize"]:
                image = self.resize(image, kwargs["size"], kwargs["resample"])
            if kwargs["do_center_crop"]:
                image = self.center_crop(image, kwargs["crop_size"])
            if divisor and not kwargs["do_pad"]:
                image = _cut_to_multiple(image, divisor, index)
            scale = 1 if image.dtype == torch.uint8 else 255  # what is on [0, 1] counts as divided by 255 already
            image = image.to(torch.float32).contiguous()
            if kwargs["do_rescale"]:  # times 1/255, not divided by 255: upstream's last bit hangs on it
                image = image * (kwargs["rescale_factor"] * scale)
            if kwargs["do_normalize"]:
                image = self.normalize(image, kwargs["image_mean"], kwargs["image_std"])
            processed.append(image)
        if kwargs["do_pad"]:
            processed = self.pad(processed, divisor)
        if return_tensors is None:
            arrays = [image.cpu().numpy() for image in processed] if self.backend == "pil" else processed
            return BatchFeature({"pixel_values": arrays})
        shapes = sorted({tuple(image.shape) for image in processed})
        if len(shapes) > 1:
            raise ValueError(
                f"The images have the shapes {', '.join(map(str, shapes[:8]))} and can't be stacked: pass a height "
                "and a width as size, do_center_crop=True, do_pad=True, or no return_tensors."
            )
        stacked = torch.stack(processed)
        stacked = stacked if return_tensors == "pt" else stacked.cpu().numpy()
        return BatchFeature({"pixel_values": stacked}, tensor_type=return_tensors)


class EupeImageProcessorPil(EupeImageProcessorMixin, PilBackend):
    """The twin of `EupeImageProcessor` without torchvision: the same options, inputs, values and errors.

    Here at native resolution, padded to whole patches, as in upstream's depth protocol:

    ```python
    >>> import numpy as np
    >>> from eupe_hf import EupeImageProcessorPil

    >>> processor = EupeImageProcessorPil(do_resize=False, size_divisor=16, do_pad=True)
    >>> processor(np.zeros((470, 640, 3), dtype=np.uint8), return_tensors="np")["pixel_values"].shape
    (1, 3, 480, 640)

    ```
    """


class EupeImageProcessor(EupeImageProcessorMixin, TorchvisionBackend):
    """Image processor of EUPE. By default upstream's eval transform: squash to 256x256, bilinear, ImageNet statistics.

    Where torchvision is not available the constructor, `from_pretrained` and `from_dict` give an
    `EupeImageProcessorPil`, whose values are the same. Inputs and errors: see `preprocess`.

    Args:
        **kwargs: The options, all of which a call takes too.
            `do_convert_rgb`: Grey to three channels, alpha dropped; False keeps 1, 3 or 4 channels.
            `do_resize`, `size`, `resample`: The size in pixels: `{"height", "width"}`, an int for a square, or
            `{"shortest_edge"}`, which keeps the aspect ratio. Pillow's code of the filter: 2 bilinear, 3 bicubic, 0
            nearest, 1 Lanczos (recent torch, CPU only).
            `do_center_crop`, `crop_size`: Cuts out the middle after resizing.
            `do_rescale`, `rescale_factor`: Times 1/255. Floats and 16-bit images are on [0, 1] without it.
            `do_normalize`, `image_mean`, `image_std`: One number or one per channel, on the scale [0, 1].
            `do_pad`, `size_divisor`: Pads normalised images with zeros all around; see `EupeImageProcessorKwargs`.
            `do_reduce_labels`, `semantic_loss_ignore_index`, `format`: For targets; see `EupeTargetsKwargs`.

    Here upstream's classification protocol:

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


def _is_list(images: Any) -> bool:
    return isinstance(images, Sequence) and not isinstance(images, (str, bytes))


def _flatten(images: Any) -> list[Any]:
    if _is_list(images):
        return [image for item in images for image in _flatten(item)]
    is_batch = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4
    return list(images) if is_batch else [images]


def _read_image(reference: str | os.PathLike, name: str) -> "PIL.Image.Image":
    requires_backends("EupeImageProcessor", ["vision"])
    source: Any = os.fsdecode(reference)
    try:
        if source.startswith(("http://", "https://")):
            request = urllib.request.Request(source, headers={"User-Agent": "eupe-hf"})
            with urllib.request.urlopen(request, timeout=30) as response:
                source = io.BytesIO(response.read())
        with PIL.Image.open(source) as image:
            image.load()
        return image
    except (*_UNREADABLE, http.client.HTTPException) as error:
        name = f"{name} {str(reference)[:200]!r}"
        raise ValueError(f"{name} can't be read ({error}): pass an image file or URL.") from error


def _pil_to_array(image: "PIL.Image.Image", do_convert_rgb: bool | None, name: str) -> np.ndarray:
    # Pillow gives grey PPM of 16 bits, and older Pillow PNG too, the mode I of 32 bits
    is_16bit = image.mode == "I" and image.format in ("PNG", "PPM")
    try:
        is_rotated = image.getexif().get(0x0112, 1) != 1
        image = PIL.ImageOps.exif_transpose(image) if is_rotated else image
        if do_convert_rgb and image.mode not in ("RGB", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        array = np.asarray(image)
    except _UNREADABLE as error:
        raise ValueError(f"{name} can't be read ({error}): pass an intact image.") from error
    if image.mode == "I" and array.size and array.min() >= 0 and (is_16bit or 255 < array.max() <= 65535):
        array = array.astype(np.uint16)
    return array


def _to_channels_first(image: torch.Tensor, layouts: list[str], name: str) -> torch.Tensor:
    shape = tuple(image.shape)
    if image.ndim not in (2, 3) or 0 in shape:
        raise ValueError(f"{name} has the shape {shape}: pass HxW, HxWxC or CxHxW of at least one pixel.")
    if image.ndim == 2:
        return image[None]
    for layout in layouts:
        if shape[0 if layout == ChannelDimension.FIRST else 2] in (1, 3, 4):
            return image if layout == ChannelDimension.FIRST else image.permute(2, 0, 1)
    where = " or ".join(str(ChannelDimension(layout).value) for layout in layouts)
    raise ValueError(f"{name} has the shape {shape}, without 1, 3 or 4 channels ({where}): pass grey, RGB or RGBA.")


def _to_pixels(image: torch.Tensor, name: str) -> torch.Tensor:
    if image.dtype in (torch.uint8, torch.bool):
        return image if image.dtype == torch.uint8 else image.to(torch.uint8) * 255
    if image.dtype == torch.uint16:
        return image.to(torch.float32) / 65535
    is_float = image.is_floating_point()
    pixels = image.to(torch.float32 if is_float else torch.int64)
    low, high = (bound.item() for bound in pixels.aminmax())
    tolerance = 1e-5  # an earlier resize or blend leaves values like 1.0000001
    if not (low >= -tolerance and high <= (1 if is_float else 255) + tolerance):  # also where they are NaN
        raise ValueError(
            f"{name} ({image.dtype}) has values from {low:.6g} to {high:.6g}: pass floats in [0, 1], uint16, or other "
            "integers in 0..255, and if it is already normalised give it straight to the model."
        )
    return pixels.clamp(0, 1) if is_float else pixels.to(torch.uint8)


def _pad_centered(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    rows, columns = height - image.shape[-2], width - image.shape[-1]
    return functional.pad(image, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def _cut_to_multiple(image: torch.Tensor, divisor: int, index: int) -> torch.Tensor:
    height, width = image.shape[-2:]
    if min(height, width) < divisor:
        raise ValueError(
            f"images[{index}] is {height}x{width}, below size_divisor={divisor}: resize it or set do_pad."
        )
    return image[:, : height - height % divisor, : width - width % divisor]
