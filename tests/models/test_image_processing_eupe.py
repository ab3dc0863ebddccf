# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The image processors: golden values, every option, and every kind of input."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import GOLDEN, PROCESSOR_CLASSES, run_tests_of_torchvision_class
from hub_server import HubServer
from image_common import GREY16, MEAN, PLAIN, RGB, RGBA, STD, channels_first, normalized, resized, unit, values
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import is_torchvision_available

from eupe_hf.models import image_processing_eupe


needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values do not lie beside this repository")


@pytest.fixture(params=PROCESSOR_CLASSES)
def processor_class(request: pytest.FixtureRequest) -> type:
    return request.param


@pytest.fixture
def processor(processor_class: type) -> Any:
    return processor_class()


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


@pytest.mark.slow
@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed, and tested above")
def test_torchvision_class_passes_the_same_tests(tmp_path: Path) -> None:
    assert run_tests_of_torchvision_class(__file__, tmp_path) >= 96
