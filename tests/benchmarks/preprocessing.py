# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""CPU time of the image processor for a batch of photographs of one size, decoding excluded, on one thread.

    python tests/benchmarks/preprocessing.py [--count 64] [--size 512] [--rounds 9] [--against FOLDER]

Compares the default with images resized together (`disable_grouping=False`), with one call for each image, and with
the processor of another version: `--against` takes a folder that its `save_pretrained` wrote, which holds its code.
Every row is a median, and its ratio is taken to the default within each round.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from eupe_hf import EupeImageProcessorPil


PHOTOGRAPHS = Path(__file__).parents[2] / "examples" / "images"


def photographs(count: int, size: int) -> list[PIL.Image.Image]:
    """Squares cut out of the example images at random, decoded, of `size` pixels."""
    rng = np.random.default_rng(0)
    images = [PIL.Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    squares = []
    for index in range(count):
        image = images[index % len(images)]
        side = int(min(image.size) * rng.uniform(0.5, 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
        squares.append(image.resize((size, size), box=(left, top, left + side, top + side)))
    return squares


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=64, help="images in the batch (default: 64)")
    parser.add_argument("--size", type=int, default=512, help="their sides in pixels (default: 512)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a processor saved by another version")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processor, images = EupeImageProcessorPil(), photographs(arguments.count, arguments.size)
    pixels = [processor.process_image(image) for image in images]
    pt = {"return_tensors": "pt"}
    ways: dict[str, Callable] = {
        "default": partial(processor, images, **pt),
        "resized together": partial(processor, images, disable_grouping=False, **pt),
        "one call each": lambda: {"pixel_values": torch.cat([processor(i, **pt)["pixel_values"] for i in images])},
        "read before": partial(processor.preprocess_pixels, pixels, **pt),
    }
    if arguments.against is not None:
        name = "image_processing_eupe.EupeImageProcessorPil"
        other = get_class_from_dynamic_module(name, str(arguments.against)).from_pretrained(arguments.against)
        ways["other version"] = partial(other, images, **pt)
    expected = ways["default"]()["pixel_values"]
    if not all(torch.equal(way()["pixel_values"], expected) for way in ways.values()):
        sys.exit("The ways give different values.")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    batch = f"{arguments.count} photographs of {arguments.size} pixels"
    print(f"{batch}, {arguments.rounds} rounds, torch {torch.__version__}")
    print("| way | ms | of the default |\n|---|---|---|")
    for name, taken in seconds.items():
        ratios = [one / default for one, default in zip(taken, seconds["default"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {1e3 * statistics.median(taken):.1f} | {spread} |")


if __name__ == "__main__":
    main()
