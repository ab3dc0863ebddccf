# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Cost of several tasks from one pass, against one model per task.

    python tests/benchmarks/multitask.py
    python tests/benchmarks/multitask.py --models eupe-s --size 512

One head of each kind on one encoder. Each round times every single-task model and the multi-task model, within
seconds of each other; printed are medians over the rounds of the ratios taken within a round. The weights' memory is
that of the parameters: one encoder and all heads, against one encoder per task.
"""

import argparse
import os
import statistics
import time

import torch

from eupe_hf import VARIANTS, EupeForMultiTask, EupeMultiTaskConfig, variant_config
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS


def timed(model: torch.nn.Module, pixels: torch.Tensor) -> float:
    """Seconds of one forward pass."""
    start = time.perf_counter()
    model(pixels)
    return time.perf_counter() - start


def megabytes(model: torch.nn.Module) -> float:
    """Memory of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tasks = list(TASK_MODELS)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.size} pixels, tasks {', '.join(tasks)}")
    print("| model | dearest alone, ms | all alone, ms | one pass, ms | of the dearest | of all | weights, MB |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        torch.manual_seed(0)
        heads = {task: {"task": task} for task in tasks}
        model = EupeForMultiTask(EupeMultiTaskConfig(encoder_config=variant_config(name), heads=heads)).eval()
        singles = {task: model.task_model(task) for task in tasks}
        pixels = torch.randn(1, 3, arguments.size, arguments.size)
        rows = []
        with torch.inference_mode():
            for each in (*singles.values(), model):
                each(pixels), each(pixels)
            for _ in range(arguments.rounds):
                alone = {task: timed(single, pixels) for task, single in singles.items()}
                rows.append((alone, timed(model, pixels)))
        dearest = max(tasks, key=lambda task: statistics.median(alone[task] for alone, _ in rows))
        medians = (
            1e3 * statistics.median(alone[dearest] for alone, _ in rows),
            1e3 * statistics.median(sum(alone.values()) for alone, _ in rows),
            1e3 * statistics.median(together for _, together in rows),
        )
        of_dearest = statistics.median(together / alone[dearest] for alone, together in rows)
        of_all = statistics.median(together / sum(alone.values()) for alone, together in rows)
        weights = f"{megabytes(model):.0f} instead of {sum(map(megabytes, singles.values())):.0f}"
        cells = " | ".join(f"{value:.1f}" for value in medians)
        print(f"| {name} | {cells} | {of_dearest:.2f} | {of_all:.2f} | {weights} |", flush=True)


if __name__ == "__main__":
    main()
