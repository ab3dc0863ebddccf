# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Time and peak memory of `from_pretrained` for a converted eupe-b, against transformers' DINOv3 ViT-B.

    python tests/benchmarks/loading.py [--model eupe-b] [--rounds 7]

Each load runs in a process of its own, alternating between the two. Memory is the highest resident size during the
load minus that before it, as a multiple of the weights' size. Also prints what `import eupe_hf` costs beyond importing
what it needs of transformers.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import logging

from eupe_hf import VARIANTS, EupeModel, variant_config
from eupe_hf.conversion.checkpoints import Checkpoint, save_layout
from eupe_hf.variants import get_variant


_LOAD = """
import resource, sys, threading, time
import torch
from transformers import AutoModel, PreTrainedModel
from transformers.models.dinov3_vit import modeling_dinov3_vit
from transformers.models.dinov3_convnext import modeling_dinov3_convnext
from transformers import logging
import eupe_hf, psutil
logging.disable_progress_bar()
process, peak, done = psutil.Process(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], process.memory_info().rss)
        time.sleep(0.001)
before = process.memory_info().rss
thread = threading.Thread(target=watch); thread.start()
start = time.perf_counter()
model = AutoModel.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
sum(float(p.sum()) for p in model.parameters())  # weights may be mapped from the file: touch them all
done.set(); thread.join()
print(seconds, max(peak[0], process.memory_info().rss) - before)
"""

_IMPORT = """
import time
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, PreTrainedModel
start = time.perf_counter()
import eupe_hf
print(time.perf_counter() - start)
"""


def run(code: str, *arguments: str) -> list[float]:
    """Numbers that a fresh Python process prints."""
    result = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return [float(word) for word in result.stdout.split()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="eupe-b", choices=list(VARIANTS))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = EupeModel(variant_config(arguments.model))
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    checkpoint = Checkpoint(model.state_dict(), model.config, "eupe", get_variant(arguments.model), {})
    with tempfile.TemporaryDirectory() as scratch:
        folders = {layout: save_layout(checkpoint, Path(scratch) / layout, layout) for layout in ("eupe", "dinov3")}
        results: dict[str, list[list[float]]] = {"eupe": [], "dinov3": []}
        for layout in results:
            run(_LOAD, str(folders[layout]))  # warm the file cache
        for _ in range(arguments.rounds):
            for layout, rows in results.items():
                rows.append(run(_LOAD, str(folders[layout])))
    for layout, rows in results.items():
        seconds, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        share = f"{memory / size:.2f} x the weights ({size / 1e6:.0f} MB)"
        print(f"{arguments.model} as {layout}: {seconds:.3f} s, peak {share}")
    ratios = [mine[0] / theirs[0] for mine, theirs in zip(results["eupe"], results["dinov3"], strict=True)]
    print(f"time, ours / DINOv3: {statistics.median(ratios):.3f} (median of {arguments.rounds} pairs)")
    imports = [run(_IMPORT)[0] for _ in range(arguments.rounds)]
    print(f"import eupe_hf beyond transformers: {1e3 * statistics.median(imports):.0f} ms")
    print(f"torch {torch.__version__}")


if __name__ == "__main__":
    main()
