"""The image processors: golden values, every kind of input, every option, every error, and life on the Hub."""

import copy
import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, PROCESSOR_CLASSES, run_tests_of_torchvision_class
from hub_server import TOKEN, HubServer, use_hub
from PIL import Image
from safetensors.torch import load_file
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available

from eupe_hf.models import image_processing_eupe
from eupe_hf.models.image_processing_eupe import EupeImageProcessor, EupeImageProcessorPil


needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values do not lie beside this repository")
AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_eupe.EupeImageProcessor",
        "pil": "image_processing_eupe.EupeImageProcessorPil",
    }
}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
PLAIN = {"do_resize": False, "do_normalize": False}

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (20, 31, 3), dtype=np.uint8)
RGBA = np.concatenate([RGB, RGB[::-1, :, :1]], axis=2)
GREY16 = rng.integers(0, 65536, (20, 31), dtype=np.uint16)


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def processor(processor_class: type) -> Any:
    return processor_class()


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


# 1. golden values

KINDS = {
    "path": lambda path, image: str(path),
    "pathlib": lambda path, image: path,
    "pil": lambda path, image: Image.open(path),
    "numpy HWC": lambda path, image: image.numpy(),
    "numpy CHW": lambda path, image: image.permute(2, 0, 1).numpy(),
    "numpy CHW contiguous": lambda path, image: np.ascontiguousarray(image.permute(2, 0, 1).numpy()),
    "torch HWC": lambda path, image: image,
    "torch CHW": lambda path, image: image.permute(2, 0, 1),
    "torch batch": lambda path, image: image.permute(2, 0, 1)[None],
}


@needs_golden
@pytest.mark.parametrize("kind", KINDS)
def test_golden_preprocessing_is_exact(processor_class: type, kind: str) -> None:
    golden = load_file(GOLDEN / "preprocessing.safetensors")
    cases = [key for key in golden if not key.endswith("/image")]
    assert len(cases) == 6
    for case in cases:
        name, size = case.split("/")
        height, width = map(int, size.split("x"))
        image = KINDS[kind](GOLDEN / f"{name}.png", golden[f"{name}/image"])
        pixel_values = values(processor_class(size={"height": height, "width": width}), image)
        assert torch.equal(pixel_values, golden[case]), f"{case}: {(pixel_values - golden[case]).abs().max()}"


def test_defaults_are_upstreams_eval_transform(processor: Any) -> None:
    pixel_values = processor(RGB, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 256, 256)
    assert pixel_values.dtype == torch.float32
    assert torch.equal(pixel_values[0], normalized(resized(RGB, 256, 256)))


# 2. options

PROTOCOLS = [
    ({"size": 24}, (24, 24)),
    ({"size": {"shortest_edge": 24}}, (24, 37)),  # 24 * 31 / 20 = 37.2, rounded down
    ({"size": {"height": 12, "width": 40}}, (12, 40)),
    ({"size": 24, "default_to_square": False}, (24, 37)),
]


@pytest.mark.parametrize(("options", "shape"), PROTOCOLS)
@pytest.mark.parametrize(("resample", "mode"), [(2, "bilinear"), (Image.Resampling.BICUBIC, "bicubic")])
def test_resize_has_the_size_and_the_values_of_torch(
    processor: Any, options: dict, shape: tuple[int, int], resample: int, mode: str
) -> None:
    assert torch.equal(values(processor, RGB, resample=resample, **options), normalized(resized(RGB, *shape, mode)))
    upright = RGB.transpose(1, 0, 2)
    if "shortest_edge" in str(options):
        assert values(processor, upright, **options).shape == (3, *shape[::-1])


def test_resize_nearest_repeats_pixels(processor: Any) -> None:
    pixels = values(processor, RGB, size={"height": 40, "width": 62}, resample=0, do_normalize=False)
    assert torch.equal(pixels, unit(RGB.repeat(2, axis=0).repeat(2, axis=1)))


@pytest.mark.skipif(1 not in image_processing_eupe._INTERPOLATION, reason="this torch has no Lanczos filter")
def test_resize_lanczos_is_close_to_pillow(processor: Any) -> None:
    smooth = np.asarray(Image.fromarray(RGB).resize((90, 60), Image.Resampling.BICUBIC))
    pillow = np.asarray(Image.fromarray(smooth).resize((31, 20), Image.Resampling.LANCZOS))
    pixels = values(processor, smooth, size={"height": 20, "width": 31}, resample=1, do_normalize=False)
    assert (pixels - unit(pillow)).abs().max() <= 1.5 / 255


@pytest.mark.parametrize(("side", "start"), [(6, 1), (7, 2), (9, 2), (11, 4)])  # 1.5, 2.5, 3.5: to the even number
def test_center_crop_rounds_as_torchvision_does(processor: Any, side: int, start: int) -> None:
    ramp = np.broadcast_to(np.arange(side, dtype=np.uint8), (side, side))
    expected = [range(start, start + 4)] * 4
    for image, rows in ((ramp, expected), (ramp.T, zip(*expected, strict=True))):
        pixels = values(processor, image, **PLAIN, do_rescale=False, do_center_crop=True, crop_size=4)
        assert pixels[0].tolist() == [list(row) for row in rows]


def test_center_crop_pads_small_images_with_black(processor: Any) -> None:
    white = np.full((2, 3, 3), 255, dtype=np.uint8)
    pixels = values(processor, white, do_resize=False, do_center_crop=True, crop_size={"height": 4, "width": 6})
    expected = torch.zeros(3, 4, 6)
    expected[:, 1:3, 1:4] = 1
    assert torch.equal(pixels, (expected - MEAN) / STD)


def test_classification_protocol_resizes_and_then_crops(processor_class: type) -> None:
    processor = processor_class(size={"shortest_edge": 256}, resample=3, do_center_crop=True, crop_size=224)
    expected = normalized(resized(RGB, 256, 396, "bicubic"))[:, 16:240, 86:310]
    assert torch.equal(values(processor, RGB), expected)


def test_rescale_and_normalize_can_be_left_out(processor: Any) -> None:
    assert torch.equal(values(processor, RGB, **PLAIN), unit(RGB))
    assert torch.equal(values(processor, RGB, **PLAIN, do_rescale=False), channels_first(RGB).to(torch.float32))
    halves = values(processor, RGB, do_resize=False, image_mean=0.5, image_std=[0.5, 0.5, 0.25])
    assert torch.equal(halves, (unit(RGB) - 0.5) / torch.tensor([0.5, 0.5, 0.25]).view(3, 1, 1))
    doubled = values(processor, RGB, **PLAIN, rescale_factor=2 / 255)
    torch.testing.assert_close(doubled, unit(RGB) * 2)
    torch.testing.assert_close(values(processor, unit(RGB), **PLAIN, rescale_factor=2 / 255), doubled)


def test_a_call_leaves_the_options_as_they_were(processor: Any) -> None:
    before = processor.to_dict()
    values(processor, RGB, size=32, resample=3, do_pad=True, size_divisor=7)
    assert processor.to_dict() == before
    assert values(processor, RGB).shape == (3, 256, 256)


def test_size_divisor_cuts_at_the_bottom_and_the_right(processor_class: type) -> None:
    processor = processor_class(do_resize=False, size_divisor=8)
    assert torch.equal(values(processor, RGB), normalized(channels_first(RGB))[:, :16, :24])


def test_size_divisor_with_padding_centres_the_image_in_zeros(processor_class: type) -> None:
    processor = processor_class(do_resize=False, size_divisor=8, do_pad=True)
    expected = torch.zeros(3, 24, 32)
    expected[:, 2:22, 0:31] = normalized(channels_first(RGB))
    assert torch.equal(values(processor, RGB), expected)


@pytest.mark.parametrize(("size_divisor", "shape"), [(None, (20, 31)), (16, (32, 32))])
def test_padding_goes_to_the_largest_of_the_batch(processor: Any, size_divisor: int | None, shape: tuple) -> None:
    small = RGB[:9, :10]
    options = {"do_resize": False, "do_pad": True, "size_divisor": size_divisor}
    pixel_values = processor([RGB, small], return_tensors="pt", **options)["pixel_values"]
    assert pixel_values.shape == (2, 3, *shape)
    top, left = (shape[0] - 9) // 2, (shape[1] - 10) // 2
    assert torch.equal(pixel_values[1, :, top : top + 9, left : left + 10], normalized(channels_first(small)))
    assert pixel_values[1].count_nonzero() == 3 * 9 * 10


# 3. inputs


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "HSV", "YCbCr"])
def test_pil_modes_become_what_pillow_makes_of_them(processor: Any, mode: str) -> None:
    alpha = Image.fromarray(RGB[..., 0])
    image = Image.fromarray(RGB).convert("P" if mode == "PA" else mode if mode != "RGBA" else "RGB")
    if mode in ("RGBA", "PA", "LA"):
        image = image.convert(mode)
        image.putalpha(alpha)
        assert image.mode == mode
    expected = np.asarray(image.convert("RGB"))
    assert expected.std() > 1
    assert torch.equal(values(processor, image, **PLAIN), unit(expected))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_pil_16_bit_keeps_all_bits(processor: Any, mode: str) -> None:
    dtype = {"I;16B": ">u2", "I": np.int32}.get(mode, "<u2")
    image = Image.frombytes(mode, (31, 20), GREY16.astype(dtype).tobytes())
    expected = channels_first(GREY16.astype(np.int32)).to(torch.float32) / 65535
    assert expected.unique().numel() > 500
    assert torch.equal(values(processor, image, **PLAIN), expected)


def test_pil_32_bit_images_are_0_to_255_or_0_to_1(processor: Any) -> None:
    grey = Image.fromarray(RGB[..., 0])
    floats = Image.fromarray(unit(RGB[..., 0])[0].numpy())
    assert floats.mode == "F"
    for image in (grey.convert("I"), floats):
        assert torch.equal(values(processor, image, **PLAIN), unit(RGB[..., 0]))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_files_keep_all_bits(processor: Any, tmp_path: Path, suffix: str) -> None:
    dark = GREY16 // 257  # nothing above 255: a look at the values could take it for 8 bits
    path = tmp_path / f"dark.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 31 20 65535\n" + dark.astype(">u2").tobytes())
    else:
        Image.fromarray(dark).save(path)
    expected = channels_first(dark.astype(np.int32)).to(torch.float32) / 65535
    assert torch.equal(values(processor, path, **PLAIN), expected)
    (fetched,) = processor.fetch_images([str(path)])
    assert isinstance(fetched, Image.Image)
    assert torch.equal(values(processor, fetched, **PLAIN), expected)


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_undone(processor: Any, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "rotated.png"
    for stored in (RGB, GREY16):
        Image.fromarray(stored).save(path, exif=exif)
        upright = UPRIGHT[orientation](stored).copy()
        for image in (path, Image.open(path), processor.fetch_images(path)):
            assert torch.equal(values(processor, image, **PLAIN), values(processor, upright, **PLAIN))


LAYOUTS = {
    "numpy HW": (RGB[..., 0], RGB[..., 0]),
    "numpy HW1": (RGB[..., :1], RGB[..., 0]),
    "numpy 1HW": (RGB[..., 0][None], RGB[..., 0]),
    "numpy 3HW": (RGB.transpose(2, 0, 1), RGB),
    "numpy RGBA": (RGBA, RGB),
    "numpy 4HW": (RGBA.transpose(2, 0, 1), RGB),
    "numpy ambiguous is HWC": (RGB[:3], RGB[:3]),
    "numpy one pixel": (RGB[:1, :1], RGB[:1, :1]),
    "numpy flipped view": (RGB[::-1, ::-1], RGB[::-1, ::-1].copy()),
    "numpy read-only": (np.broadcast_to(RGB[:1], RGB.shape), np.repeat(RGB[:1], 20, axis=0)),
    "torch HW": (torch.from_numpy(RGB[..., 0]), RGB[..., 0]),
    "torch HWC": (torch.from_numpy(RGB), RGB),
    "torch 1HW": (torch.from_numpy(RGB[..., 0])[None], RGB[..., 0]),
    "torch RGBA": (torch.from_numpy(RGBA).permute(2, 0, 1), RGB),
    "torch ambiguous is CHW": (torch.from_numpy(RGB[:3]), RGB[:3].transpose(1, 2, 0)),
    "torch one pixel": (torch.from_numpy(RGB[:1, :1]).permute(2, 0, 1), RGB[:1, :1]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_layouts_are_found_out(processor: Any, layout: str) -> None:
    image, expected = LAYOUTS[layout]
    assert torch.equal(values(processor, image, **PLAIN), unit(expected))


def test_input_data_format_settles_the_layout(processor: Any) -> None:
    cube = RGB[:3]  # (3, 31, 3)
    as_rows = unit(cube.transpose(1, 2, 0))
    assert torch.equal(values(processor, cube, **PLAIN, input_data_format="channels_first"), as_rows)
    tensor = torch.from_numpy(cube)
    assert torch.equal(values(processor, tensor, **PLAIN, input_data_format="channels_last"), unit(cube))
    mixed = [Image.fromarray(cube), cube.transpose(2, 0, 1)]
    pixel_values = processor(mixed, **PLAIN, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values[0], unit(cube))
    assert torch.equal(pixel_values[1], unit(cube))


ON_UNIT = (RGB / 255).astype(np.float64)
DTYPES = [
    *(pytest.param(RGB.astype(dtype), 0, id=f"numpy {dtype}") for dtype in ("i2", "i4", "i8", "u4", "u8", ">i4")),
    *(pytest.param(torch.from_numpy(RGB).to(dtype), 0, id=str(dtype)) for dtype in (torch.int16, torch.int64)),
    *(pytest.param(RGB.astype(dtype) * 257, 1e-6, id=f"numpy {dtype}") for dtype in ("<u2", ">u2")),
    pytest.param(torch.from_numpy(RGB.astype(np.uint16) * 257), 1e-6, id="torch.uint16"),
    *(pytest.param(ON_UNIT.astype(dtype), 1e-6, id=f"numpy {dtype}") for dtype in ("f4", "f8", ">f4")),
    pytest.param(ON_UNIT.astype("f2"), 5e-4, id="numpy f2"),
    pytest.param(torch.from_numpy(ON_UNIT).requires_grad_(), 1e-6, id="torch.float64"),
    pytest.param(torch.from_numpy(ON_UNIT).to(torch.float16), 5e-4, id="torch.float16"),
    pytest.param(torch.from_numpy(ON_UNIT).to(torch.bfloat16), 4e-3, id="torch.bfloat16"),
]


@pytest.mark.parametrize(("image", "tolerance"), DTYPES)
def test_dtypes_mean_the_same_picture(processor: Any, image: Any, tolerance: float) -> None:
    torch.testing.assert_close(values(processor, image, **PLAIN), unit(RGB), atol=tolerance, rtol=0)
    # 8 bits are resized as such, rounded after each of two passes: up to a grey level from the others
    small = {"size": 12, "do_normalize": False}
    rounding = 0 if tolerance == 0 else 1 / 255 + tolerance
    assert (values(processor, image, **small) - values(processor, RGB, **small)).abs().max() <= rounding


@pytest.mark.parametrize("mask", [RGB[..., 0] > 127, torch.from_numpy(RGB[..., 0] > 127)], ids=["numpy", "torch"])
def test_bool_is_black_and_white(processor: Any, mask: Any) -> None:
    picture = Image.fromarray(np.asarray(mask))
    assert picture.mode == "1"
    assert torch.equal(values(processor, mask), values(processor, picture))
    assert values(processor, mask, **PLAIN).unique().tolist() == [0, 1]


@pytest.mark.parametrize("resample", [2, 3])
def test_floats_and_16_bit_stay_in_range_when_resized(processor: Any, resample: int) -> None:
    edge = np.zeros((8, 8), dtype=np.uint16)
    edge[:, 4:] = 65535
    options = {"size": 32, "resample": resample, "do_normalize": False}
    from_16_bit = values(processor, edge, **options)
    from_8_bit = values(processor, (edge // 257).astype("u1"), **options)
    assert from_16_bit.min() == 0
    assert from_16_bit.max() == 1
    torch.testing.assert_close(from_16_bit, from_8_bit, atol=0.6 / 255, rtol=0)
    assert torch.equal(values(processor, (edge / 65535).astype("f4"), **options), from_16_bit)


def test_floats_bear_the_rounding_of_earlier_steps(processor: Any) -> None:
    nearly = np.array([[-1e-7, 1 + 1e-6]], dtype=np.float32)
    assert values(processor, nearly, **PLAIN)[0].tolist() == [[0, 1]]


def test_alpha_is_dropped_alike(processor: Any) -> None:
    expected = normalized(resized(RGB, 256, 256))
    for image in (Image.fromarray(RGBA), RGBA, torch.from_numpy(RGBA).permute(2, 0, 1)):
        assert torch.equal(values(processor, image), expected)


def test_do_convert_rgb_false_keeps_the_channels(processor: Any) -> None:
    kept = values(processor, RGBA, **PLAIN, do_convert_rgb=False)
    assert torch.equal(kept, torch.from_numpy(RGBA).permute(2, 0, 1) * (1 / 255))
    grey = values(processor, Image.fromarray(RGB).convert("L"), do_convert_rgb=False, image_mean=0.5, image_std=0.5)
    assert grey.shape == (1, 256, 256)
    two_channels = Image.fromarray(RGB[:3]).convert("LA")  # three rows are not taken for channels
    with pytest.raises(ValueError, match=r"shape \(3, 31, 2\), without 1, 3 or 4 channels \(channels_last\)"):
        processor(two_channels, do_convert_rgb=False)


def test_batches_mix_kinds_and_sizes(processor: Any) -> None:
    small = RGB[:7, :9]
    batch = [Image.fromarray(RGB), [small, torch.from_numpy(small)], RGB.transpose(2, 0, 1)[None], ON_UNIT[..., 0]]
    pixel_values = processor(batch, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (5, 3, 256, 256)
    for index, image in enumerate([RGB, small, small, RGB, ON_UNIT[..., 0]]):
        assert torch.equal(pixel_values[index], values(processor, image))
    four_axes = np.stack([RGB, RGB[::-1]])
    pixel_values = processor(four_axes, return_tensors="pt")["pixel_values"]
    assert torch.equal(pixel_values[1], values(processor, RGB[::-1]))


def test_return_tensors_says_the_type(processor: Any) -> None:
    expected = normalized(resized(RGB, 256, 256))
    array = processor(RGB, return_tensors="np")["pixel_values"]
    assert isinstance(array, np.ndarray)
    assert np.array_equal(array[0], expected.numpy())
    untyped = processor([RGB, RGB[:9]], do_resize=False)["pixel_values"]
    assert [image.shape for image in untyped] == [(3, 20, 31), (3, 9, 31)]
    assert type(untyped[0]) is (np.ndarray if processor.backend == "pil" else torch.Tensor)
    assert torch.as_tensor(untyped[0]).is_contiguous()


def test_device_is_where_the_values_are(processor: Any) -> None:
    options = {"do_normalize": False, "device": "meta", "size": {"shortest_edge": 8}}
    pixel_values = processor(RGB, return_tensors="pt", **options)["pixel_values"]
    assert pixel_values.device.type == "meta"
    assert pixel_values.shape == (1, 3, 8, 12)


def test_urls_are_read_like_files(processor: Any, tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "picture.png")
    expected = values(processor, RGB)
    with HubServer() as server:
        server.add_repo("me/pictures", {"picture.png": (tmp_path / "picture.png").read_bytes()})
        url = f"{server.endpoint}/me/pictures/resolve/main"
        assert torch.equal(values(processor, f"{url}/picture.png"), expected)
        assert torch.equal(values(processor, processor.fetch_images([[f"{url}/picture.png"]])), expected)
        with pytest.raises(ValueError, match=r"images\[1\] 'http://.*/none.png' can't be read \(HTTP Error 404"):
            processor([RGB, f"{url}/none.png"])


# 4. errors


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
    # huggingface_hub's StrictDataclassFieldValidationError, for wrong types, is no ValueError
    with pytest.raises(Exception, match=message) as constructed:
        processor_class(**options)
    with pytest.raises(Exception, match=message) as called:
        processor_class()(RGB, **options)
    kind = "ValueError" if not message.startswith("'") else "StrictDataclassFieldValidationError"
    assert constructed.typename == called.typename == kind


def test_image_mean_must_fit_the_channels(processor: Any) -> None:
    with pytest.raises(ValueError, match=r"image_mean and image_std have 2 and 3 values: give 1 or 3\."):
        processor(RGB, image_mean=[0.5, 0.5])


# 5. saving, loading, the Hub


def saved(folder: Path, name: str = "preprocessor_config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def test_saved_files_carry_the_options_and_the_code(processor_class: type, tmp_path: Path) -> None:
    options = {"size": {"shortest_edge": 32}, "resample": 3, "size_divisor": 16, "do_pad": True, "image_mean": [0.5]}
    files = processor_class(**options).save_pretrained(tmp_path / "first")
    assert [Path(file).name for file in files[:2]] == ["preprocessor_config.json", "image_processing_eupe.py"]
    parts = ("image_processing_eupe_reading.py", "image_processing_eupe_targets.py", "post_processing_eupe.py")
    assert sorted(Path(file).name for file in files[2:]) == list(parts)
    config = saved(tmp_path / "first")
    assert config["image_processor_type"] == "EupeImageProcessor"
    assert config["auto_map"] == AUTO_MAP
    assert {key: config[key] for key in options} == options
    assert Path(files[1]).read_bytes() == Path(image_processing_eupe.__file__).read_bytes()

    loaded = processor_class.from_pretrained(tmp_path / "first", do_normalize=False)
    loaded.save_pretrained(tmp_path / "second")
    assert saved(tmp_path / "second") == {**config, "do_normalize": False}
    assert (tmp_path / "second" / "image_processing_eupe.py").is_file()
    assert torch.equal(values(loaded, RGB), values(processor_class(**options, do_normalize=False), RGB))
    assert EupeImageProcessorPil.from_pretrained(tmp_path / "second").to_dict() == loaded.to_dict()


def test_instances_do_not_share_their_options(processor_class: type) -> None:
    first, second = processor_class(), processor_class()
    first.size["height"] = 8
    first.to_dict()["auto_map"]["AutoImageProcessor"]["pil"] = "other.Class"
    assert second.size == {"height": 256, "width": 256}
    assert first.to_dict()["auto_map"] == AUTO_MAP
    assert copy.deepcopy(second).to_dict() == second.to_dict()


class TinyProcessor(ProcessorMixin):
    """A processor of an image processor alone."""

    def __init__(self, image_processor: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, **kwargs)


def test_processor_config_carries_the_auto_map(processor: Any, tmp_path: Path) -> None:
    TinyProcessor(processor).save_pretrained(tmp_path)
    nested = saved(tmp_path, "processor_config.json")["image_processor"]
    assert nested == saved_dict(processor)
    assert nested["auto_map"] == AUTO_MAP
    assert type(processor).from_pretrained(tmp_path).to_dict() == processor.to_dict()


def saved_dict(processor: Any) -> dict[str, Any]:
    return json.loads(processor.to_json_string())


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_without_torchvision_the_twin_is_made(tmp_path: Path) -> None:
    processor = EupeImageProcessor(size=32, resample=3)
    assert type(processor) is EupeImageProcessorPil
    assert processor.to_dict() == EupeImageProcessorPil(size=32, resample=3).to_dict()
    processor.save_pretrained(tmp_path)
    assert type(EupeImageProcessor.from_pretrained(tmp_path)) is EupeImageProcessorPil
    assert type(EupeImageProcessor.from_dict(processor.to_dict())) is EupeImageProcessorPil


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_push_uploads_the_config_and_the_code(tmp_path: Path, how: str) -> None:
    processor = EupeImageProcessorPil(size=32)
    processor.save_pretrained(tmp_path / "eupe")  # the second upload must not take the first's files for known ones
    with HubServer() as server, use_hub(server, tmp_path / "home", token=TOKEN):
        if how == "push_to_hub":
            processor.push_to_hub("tester/eupe")
        else:
            processor.save_pretrained(tmp_path / "eupe", push_to_hub=True, repo_id="tester/eupe")
        files = server.files("tester/eupe")
        assert json.loads(files["preprocessor_config.json"]) == saved_dict(processor)
        assert files["image_processing_eupe.py"] == Path(image_processing_eupe.__file__).read_bytes()


REMOTE = """
    import sys

    sys.modules["eupe_hf"] = None  # importing the package fails
    import numpy as np
    from transformers import AutoImageProcessor

    folder, again, class_name = sys.argv[1:]
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor).__name__ == class_name, type(processor)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    np.save("values.npy", processor(np.load("image.npy"), return_tensors="np")["pixel_values"])
    processor.save_pretrained(again)
"""


@pytest.mark.parametrize("nested", [False, True], ids=["preprocessor_config", "processor_config"])
def test_remote_code_loads_without_the_package(tmp_path: Path, nested: bool) -> None:
    processor = EupeImageProcessorPil(size={"shortest_edge": 32}, resample=3)
    processor.save_pretrained(tmp_path / "eupe")
    if nested:
        TinyProcessor(processor).save_pretrained(tmp_path / "eupe")
        (tmp_path / "eupe" / "preprocessor_config.json").unlink()
    np.save(tmp_path / "image.npy", RGB)
    class_name = "EupeImageProcessor" if is_torchvision_available() else "EupeImageProcessorPil"
    command = [sys.executable, "-c", textwrap.dedent(REMOTE), tmp_path / "eupe", tmp_path / "again", class_name]
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "values.npy")[0], values(processor, RGB).numpy())
    assert saved(tmp_path / "again") == saved_dict(processor)
    source = (tmp_path / "again" / "image_processing_eupe.py").read_bytes()
    assert source == Path(image_processing_eupe.__file__).read_bytes()


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Path) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) > 150
