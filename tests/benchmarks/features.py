# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""How busy `eupe features` keeps the encoder: its throughput on JPEG files as a share of the bare forward pass.

    python tests/benchmarks/features.py                                  # eupe-s, 2,000 JPEGs of 512 pixels
    python tests/benchmarks/features.py --models eupe-t --images 200 --rounds 3

Both sides run the encoder with the same number of torch threads, by default one for each core. The bare pass gets
tensors in memory; `save_features` starts loader workers, which compete for the same cores, reads the files, ends
those, computes, and writes its file. Images are taken in blocks: each round times bare pass, `save_features`,
bare pass again on its block and gives a ratio, so what else the machine does meanwhile weighs on both. Printed are the
medians over the rounds, and the bare pass against itself, the band of noise. 1.00: reading costs nothing. That each
block is a run of its own, with start and end, makes the figure a little worse than that of one long run.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import logging

from eupe_hf import VARIANTS, EupeImageProcessorPil, EupeModel, variant_config
from eupe_hf.features import ImageReader, save_features


PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "examples" / "images"


def make_images(folder: Path, count: int, side: int = 512) -> list[Path]:
    """So many different JPEGs of quality 90: crops of three photographs, mirrored at random, with a little noise."""
    generator = np.random.default_rng(0)
    photographs = [Image.open(path).convert("RGB") for path in sorted(PHOTOGRAPHS.glob("*.jpg"))]
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photograph = photographs[number % len(photographs)]
        edge = int(min(photograph.size) * generator.uniform(0.5, 1))
        left, top = (int(generator.integers(0, size - edge + 1)) for size in photograph.size)
        crop = photograph.resize((side, side), box=(left, top, left + edge, top + edge))
        pixels = np.asarray(crop, dtype=np.float32)[:, :: generator.choice([-1, 1])]
        noisy = (pixels + generator.normal(0, 4, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=90)
    return paths


def bare(model: EupeModel, batches: list[torch.Tensor]) -> float:
    """Seconds of the forward pass alone."""
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            model(batch)
    return time.perf_counter() - start


def measure(name: str, paths: list[Path], folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Medians over the rounds, each on a block of the images."""
    torch.manual_seed(0)
    model, processor = EupeModel(variant_config(name)).eval(), EupeImageProcessorPil()
    reader, size = ImageReader(processor), arguments.batch_size
    ratios, selves, rates = [], [], []
    for number, block in enumerate(np.array_split(np.array(list(map(str, paths))), arguments.rounds)):
        batches = [reader[list(block[start : start + size])].pixel_values for start in range(0, len(block), size)]
        if number == 0:
            bare(model, batches[:2])  # warm
        first = bare(model, batches)
        start = time.perf_counter()
        save_features(model, processor, list(block), folder / f"{name}-{number}.parquet", size, arguments.workers)
        seconds = time.perf_counter() - start
        second = bare(model, batches)
        ratios.append((first + second) / 2 / seconds)
        selves.append(min(first, second) / max(first, second))
        rates.append(len(block) / seconds)
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "self": statistics.median(selves),
        "rate": statistics.median(rates),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["eupe-s"], choices=list(VARIANTS))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5, help="the images are divided among them")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, on both sides")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.workers} workers")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = make_images(folder, arguments.images)
        size = sum(path.stat().st_size for path in paths) / len(paths)
        print(f"{len(paths)} JPEGs of 512 pixels, {size / 1e3:.0f} kB on average, batches of {arguments.batch_size}")
        print("| model | images per second | of the bare pass | least to most | bare pass against itself |")
        print("|---|---|---|---|---|")
        for name in arguments.models:
            row = measure(name, paths, folder, arguments)
            print(
                f"| {name} | {row['rate']:.1f} | {row['ratio']:.3f} | {row['least']:.3f} to {row['most']:.3f} | "
                f"{row['self']:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
