# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Speed of the eager float32 forward pass on the CPU, against transformers' DINOv3 classes.

    python tests/benchmarks/forward.py                      # all six models, three input shapes
    python tests/benchmarks/forward.py --models eupe-s --shapes 1x256

Both models hold the same weights. Each round times peer, ours, peer again, so a round gives a speed-up (peer / ours)
and a self-ratio (peer / peer), taken within seconds of each other. Printed are the medians over the rounds, and the
95 % band of the self-ratio's median (bootstrap): what the machine's noise alone can do. A speed-up of 1.05 means that
ours takes 1 / 1.05 of the peer's time.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import DINOv3ConvNextModel, DINOv3ViTModel, logging

from eupe_hf import VARIANTS, EupeModel, variant_config
from eupe_hf.conversion.checkpoints import dinov3_config
from eupe_hf.conversion.layouts import from_eupe


def make_models(name: str) -> tuple[EupeModel, torch.nn.Module]:
    """Our model and transformers' DINOv3 class, with equal weights."""
    torch.manual_seed(0)
    ours = EupeModel(variant_config(name)).eval()
    config = dinov3_config(ours.config)
    theirs = DINOv3ViTModel(config) if ours.config.backbone_type == "vit" else DINOv3ConvNextModel(config)
    theirs.load_state_dict(from_eupe(ours.state_dict(), ours.config, "dinov3"))
    return ours, theirs.eval()


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(ours: torch.nn.Module, theirs: torch.nn.Module, pixels: torch.Tensor, seconds: float) -> dict[str, float]:
    """Medians of speed-up and self-ratio over as many rounds as fit into `seconds`, at least 15."""
    calls = {"ours": lambda: ours(pixels), "theirs": lambda: theirs(pixels)}
    with torch.inference_mode():
        for call in calls.values():
            call(), call()
        rounds = max(15, math.ceil(seconds / (3 * timed(calls["theirs"]))))
        ratios, selves, times = [], [], []
        for _ in range(rounds):
            first, mine, second = timed(calls["theirs"]), timed(calls["ours"]), timed(calls["theirs"])
            ratios.append((first + second) / 2 / mine)
            selves.append(first / second)
            times.append(mine)
    draws = np.random.default_rng(0).choice(selves, size=(2000, rounds))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {
        "speedup": statistics.median(ratios),
        "self": statistics.median(selves),
        "low": min(low, 1 / high),
        "high": max(high, 1 / low),
        "ms": 1e3 * statistics.median(times),
        "rounds": rounds,
    }


def geometric_mean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--shapes", nargs="+", default=["1x256", "8x256", "1x512"], help="batch x side in pixels")
    parser.add_argument("--seconds", type=float, default=20, help="time for each cell")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    print("| model | input | rounds | ours, ms | speed-up | peer against itself (95 % band) |")
    print("|---|---|---|---|---|---|")
    speedups: dict[str, list[float]] = {}
    for name in arguments.models:
        ours, theirs = make_models(name)
        for shape in arguments.shapes:
            batch, side = map(int, shape.split("x"))
            row = compare(ours, theirs, torch.randn(batch, 3, side, side), arguments.seconds)
            speedups.setdefault("ViT" if ours.config.backbone_type == "vit" else "ConvNeXt", []).append(row["speedup"])
            print(
                f"| {name} | {shape} | {row['rounds']} | {row['ms']:.1f} | {row['speedup']:.3f} | {row['self']:.3f} "
                f"({row['low']:.3f} to {row['high']:.3f}){'' if row['speedup'] >= row['low'] else ' BELOW'} |",
                flush=True,
            )
    for family, values in speedups.items():
        print(f"geometric mean, {family}: {geometric_mean(values):.3f}")
    print(f"geometric mean, all: {geometric_mean([v for values in speedups.values() for v in values]):.3f}")


if __name__ == "__main__":
    main()
