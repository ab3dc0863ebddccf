# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the image processors refuse: images and options, each with a message that says what to do."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROCESSOR_CLASSES, run_tests_of_torchvision_class
from image_common import GREY16, RGB, channels_first, normalized
from PIL import Image
from transformers.utils import is_torchvision_available


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def processor(processor_class: type) -> Any:
    return processor_class()


def damaged_image(how: str) -> Image.Image:
    """An image that fails when its pixels are asked for."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "png")
    image = Image.open(io.BytesIO(buffer.getvalue()[: 900 if how == "truncated" else None]))
    if how == "closed":
        image.close()
    return image


HERE = Path(__file__)
BAD_IMAGES = [
    (None, TypeError, "is of type NoneType: pass a path, URL, PIL image, array or tensor"),
    ({"bytes": b""}, TypeError, "is of type dict: pass a path"),
    (b"PNG", TypeError, "is of type bytes: pass a path"),
    (np.array([[None]]), TypeError, "is of type ndarray object: pass a path"),
    (RGB.astype(complex), TypeError, "is of type ndarray complex128: pass a path"),
    (torch.zeros(4, 4, dtype=torch.complex64), TypeError, "is of type Tensor torch.complex64: pass a path"),
    ("none.png", ValueError, r"'none.png' can't be read \(.*No such file.*\): pass an image file or URL"),
    (HERE, ValueError, rf"'.*{HERE.name}' can't be read \(cannot identify"),
    (HERE.parent, ValueError, r"'.*' can't be read \("),
    ("with\0null.png", ValueError, r".* can't be read \(embedded null"),
    ("http://127.0.0.1:9/a b.png", ValueError, r"'http://.*' can't be read \("),
    (damaged_image("truncated"), ValueError, r"can't be read \(.*truncated.*\): pass an intact image"),
    (damaged_image("closed"), ValueError, r"can't be read \(.*\): pass an intact image"),
    (np.zeros((0, 5, 3), np.uint8), ValueError, r"has the shape \(0, 5, 3\): pass .* at least one pixel"),
    (Image.new("RGB", (0, 5)), ValueError, r"has the shape \(5, 0, 3\): pass .* at least one pixel"),
    (torch.zeros(3), ValueError, r"has the shape \(3,\): pass HxW, HxWxC or CxHxW"),
    (np.zeros((1, 1, 1, 4, 4)), ValueError, r"has the shape \(1, 1, 1, 4, 4\): pass HxW"),
    (np.zeros((5, 8, 9)), ValueError, r"has the shape \(5, 8, 9\), without 1, 3 or 4 channels .*: pass grey, RGB"),
    (np.full((4, 4), np.nan), ValueError, r"\(torch.float64\) has values from nan to nan: pass floats"),
    (np.full((4, 4), np.inf), ValueError, r"\(torch.float64\) has values from inf to inf: pass floats"),
    (RGB.astype("f4"), ValueError, r"\(torch.float32\) has values from 0 to 255: pass floats in \[0, 1\]"),
    (normalized(channels_first(RGB)), ValueError, r".* values from -2\.\d+ to 2\.\d+: .* already normalised"),
    (RGB.astype(np.int32) - 1, ValueError, r"\(torch.int32\) has values from -1 to 254: pass .* in 0..255"),
    (GREY16.astype(np.int64), ValueError, r"\(torch.int64\) has values from \d+ to 65\d+: pass .*uint16"),
    (Image.fromarray(np.array([[0, 65536]], np.int32)), ValueError, ".* has values from 0 to 65536: pass"),
    (Image.fromarray(RGB).convert("F"), ValueError, r"\(torch.float32\) has values from"),
]


@pytest.mark.parametrize(("image", "error", "message"), BAD_IMAGES)
def test_bad_images_are_named_with_their_place(processor: Any, image: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=rf"images\[1\] {message}"):
        processor([RGB, image], return_tensors="pt")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "large.png"])
def test_damaged_and_oversized_files_are_errors(processor: Any, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    path, reason = tmp_path / name, "truncated"
    Image.fromarray(RGB.repeat(9, axis=0)).save(path)
    if name == "large.png":
        reason = "decompression bomb"
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"images\[0\] '.*{name}' can't be read \(.*{reason}"):
        processor(path)


def test_empty_batches_are_errors(processor: Any) -> None:
    for batch in ([], [[], []], np.zeros((0, 3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="The batch is empty: pass at least one image"):
            processor(batch)


@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_mixed_sizes_that_cannot_be_stacked_are_named(processor: Any, return_tensors: str) -> None:
    with pytest.raises(ValueError, match=r"shapes \(3, 9, 31\), \(3, 20, 31\) and can't be stacked: .*do_pad=True"):
        processor([RGB, RGB[:9]], do_resize=False, return_tensors=return_tensors)


def test_images_below_size_divisor_are_errors(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"images\[1\] is 9x31, below size_divisor=16: resize it or set do_pad"):
        processor([RGB, RGB[:9]], do_resize=False, size_divisor=16)


BAD_OPTIONS = [
    ({"size": {"longest_edge": 32}}, r"size=\{'longest_edge': 32\} is not supported: give height and width"),
    ({"size": {"shortest_edge": 32, "longest_edge": 64}}, r"size=.* is not supported: give height and width"),
    ({"size": 0}, r"size=\{'height': 0, 'width': 0\} is not supported: give .* from 1"),
    ({"size": {"height": 32}}, "size must have one of the following set of keys"),
    ({"crop_size": {"shortest_edge": 32}}, r"crop_size=.* is not supported: give height and width"),
    ({"do_center_crop": True}, "`crop_size` must be specified"),
    ({"size_divisor": 0}, "size_divisor=0 is not supported: give a number from 1, or None"),
    ({"pad_size": 32}, "pad_size=.* is not supported"),
    ({"resample": 4}, r"resample=4 is not supported: give one of .*2: 'bilinear', 3: 'bicubic'"),
    ({"resample": Image.Resampling.HAMMING}, r"resample=.*HAMMING.* is not supported: give one of"),
    ({"image_std": [0.2, 0.0, 0.2]}, r"image_std=\(0.2, 0.0, 0.2\) is not supported: give numbers above 0"),
    ({"data_format": "channels_last"}, "data_format='channels_last' is not supported"),
    ({"input_data_format": "HWC"}, "input_data_format='HWC' is not supported: give channels_first, channels_last"),
    ({"do_resize": "yes"}, "'do_resize'"),
    ({"size_divisor": "16"}, "'size_divisor'"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options_fail_in_the_constructor_and_in_a_call(processor_class: type, options: dict, message: str) -> None:
    # huggingface_hub's StrictDataclassFieldValidationError, for wrong types, is not a ValueError
    with pytest.raises(Exception, match=message) as constructed:
        processor_class(**options)
    with pytest.raises(Exception, match=message) as called:
        processor_class()(RGB, **options)
    kind = "ValueError" if not message.startswith("'") else "StrictDataclassFieldValidationError"
    assert constructed.typename == called.typename == kind


def test_image_mean_must_fit_the_channels(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"image_mean and image_std have 2 and 3 values: give 1 or 3\."):
        processor(RGB, image_mean=[0.5, 0.5])


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Path) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) >= 49
