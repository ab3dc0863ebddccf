# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Cost of a LoRA step: time against full fine-tuning and against peft on transformers' DINOv3, and peak memory.

    python tests/benchmarks/lora.py
    python tests/benchmarks/lora.py --models eupe-s --rounds 21 --skip-memory

A step is forward, backward and one step of AdamW, batch 8 at 224 pixels, with a linear classifier of ten classes.
Rank 16 on the ViTs' q, k, v and o projections, or the ConvNeXts' pointwise layers; transformers' DINOv3 classes get
the same weights and the same layers. Each round times all of them within seconds of each other; printed are medians
over the rounds of the ratios taken within a round, and of a full step against itself, which is what noise does.

Memory is the peak of the resident set during three steps above that before the first one, without the weights of the
model, each kind in a process of its own, batch 16. For full fine-tuning it holds gradients and AdamW's state as well.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import peft
import psutil
import torch
from torch import nn
from transformers import DINOv3ConvNextModel, DINOv3ViTModel, logging

from eupe_hf import VARIANTS, EupeForImageClassification, variant_config
from eupe_hf.conversion.checkpoints import dinov3_config
from eupe_hf.conversion.layouts import from_eupe
from eupe_hf.lora import lora_config


KINDS = ("LoRA", "LoRA, checkpointing", "full", "full, checkpointing")
# the same layers in transformers' DINOv3 classes
DINOV3_TARGETS = {
    "vit": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "convnext": ["pointwise_conv1", "pointwise_conv2"],
}


class Dinov3Classifier(nn.Module):
    """transformers' DINOv3 with the classifier that `EupeForImageClassification` has, and the same weights."""

    def __init__(self, model: EupeForImageClassification):
        super().__init__()
        config = dinov3_config(model.config)
        is_vit = model.config.backbone_type == "vit"
        self.encoder = (DINOv3ViTModel if is_vit else DINOv3ConvNextModel)(config)
        self.encoder.load_state_dict(from_eupe(model.eupe.state_dict(), model.config, "dinov3"))
        self.head = nn.Linear(model.config.hidden_size, model.config.num_labels)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss."""
        logits = self.head(self.encoder(pixel_values).pooler_output)
        return nn.functional.cross_entropy(logits, labels)


def make(name: str, kind: str, rank: int) -> nn.Module:
    """A model to train: "full" or "LoRA" of ours, or "peer" for LoRA on transformers' DINOv3."""
    torch.manual_seed(0)
    model = EupeForImageClassification(variant_config(name, num_labels=10))
    if "checkpointing" in kind:
        model.gradient_checkpointing_enable()
    if kind.startswith("LoRA"):
        return peft.get_peft_model(model, lora_config(model, r=rank)).train()
    if kind == "peer":
        targets = DINOV3_TARGETS[model.config.backbone_type]
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, modules_to_save=["head"])
        return peft.get_peft_model(Dinov3Classifier(model), config).train()
    return model.train()


def stepper(model: nn.Module, batch: int, size: int) -> Callable[[], None]:
    """One training step of a model."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    pixels, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % 10

    def step() -> None:
        outputs = model(pixel_values=pixels, labels=labels)
        (outputs if isinstance(outputs, torch.Tensor) else outputs.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times(name: str, arguments: argparse.Namespace) -> str:
    """A row of the table of times."""
    models = {kind: make(name, kind, arguments.rank) for kind in ("full", "LoRA", "peer")}
    adapted = [sum("lora_A" in key and key.endswith("weight") for key in models[k].state_dict()) for k in models]
    assert adapted[1] == adapted[2], "ours and the peer must have the same number of adapted layers"
    steps = {kind: stepper(model, arguments.batch, arguments.size) for kind, model in models.items()}
    for step in steps.values():
        step(), step()
    rounds = []
    for _ in range(arguments.rounds):
        row = {kind: timed(step) for kind, step in steps.items()}
        rounds.append(row | {"again": timed(steps["full"])})
    of_full = statistics.median(2 * row["LoRA"] / (row["full"] + row["again"]) for row in rounds)
    peer_of_full = statistics.median(2 * row["peer"] / (row["full"] + row["again"]) for row in rounds)
    of_peer = statistics.median(row["LoRA"] / row["peer"] for row in rounds)
    itself = statistics.median(row["full"] / row["again"] for row in rounds)
    ms = [1e3 * statistics.median(row[kind] for row in rounds) for kind in ("full", "LoRA", "peer")]
    cells = " | ".join(f"{value:.0f}" for value in ms)
    return f"| {name} | {cells} | {of_full:.2f} | {peer_of_full:.2f} | {of_peer:.3f} | {itself:.3f} |"


def peak(name: str, kind: str, arguments: argparse.Namespace) -> float:
    """Megabytes that three steps need above what is there before the first; to be run in a process of its own."""
    step = stepper(make(name, kind, arguments.rank), arguments.memory_batch, arguments.size)
    gc.collect()
    process, seen, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            seen[0] = max(seen[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        step()
    done.set()
    watcher.join()
    return (seen[0] - before) / 1e6


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["eupe-s", "eupe-convnext-t"], choices=list(VARIANTS))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory-models", nargs="+", default=["eupe-s"], choices=list(VARIANTS))
    parser.add_argument("--memory-batch", type=int, default=16)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("MODEL", "KIND"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(*arguments.peak, arguments))
        return
    print(f"torch {torch.__version__}, peft {peft.__version__}, {arguments.threads} threads, rank {arguments.rank},")
    print(f"batch {arguments.batch} at {arguments.size} pixels, {arguments.rounds} rounds")
    print("| model | full, ms | LoRA, ms | DINOv3 + peft, ms | LoRA of full | DINOv3 + peft of full | of it | noise |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        print(times(name, arguments), flush=True)
    if arguments.skip_memory:
        return
    print(f"\n| model, batch {arguments.memory_batch} | kind of step | peak, MB | of full |")
    print("|---|---|---|---|")
    for name in arguments.memory_models:
        found = {}
        for kind in ("full", *(other for other in KINDS if other != "full")):
            options = [f"--{key}={getattr(arguments, key.replace('-', '_'))}" for key in ("rank", "size", "threads")]
            command = [sys.executable, __file__, *options, f"--memory-batch={arguments.memory_batch}"]
            # freed tensors go back to the system at once: else the peak is that of what the allocator keeps
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            result = subprocess.run(
                [*command, "--peak", name, kind], check=True, capture_output=True, text=True, env=environment
            )
            found[kind] = float(result.stdout.split()[-1])
            print(f"| {name} | {kind} | {found[kind]:.0f} | {found[kind] / found['full']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
