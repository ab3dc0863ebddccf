# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Quality of LoRA: test accuracy by rank and layers, against full fine-tuning and a frozen encoder.

    python tests/benchmarks/lora_quality.py --cache lora-quality
    python tests/benchmarks/lora_quality.py --cache lora-quality --families convnext --seeds 1 2 3 4 5

A tiny encoder of each family first learns other images (`pretraining.py`): from random weights LoRA could not learn
much, as real layer scales start at 1e-5. Then it is fine-tuned as `examples/finetune_lora_classification.py` does,
with its defaults but without augmentation, on handwritten digits (scikit-learn) and on small patches of photographs
(scikit-image: which one is it from?), all kinds for as many steps. The learning rates are the recipe's times the power
of two that is best on held-out training images, searched for per data set, for LoRA once: with the recommended layers
at rank 16; but "own rates" are the recipe's as they stand. Runs are kept in the folder of --cache, and not repeated.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.color
import skimage.data
import sklearn.datasets
import torch
from torch import nn
from transformers import PrinterCallback, logging, set_seed

from eupe_hf import EupeConfig, EupeForImageClassification, EupeImageProcessor
from eupe_hf.data.splits import TaskData
from eupe_hf.training import (
    RecipeArguments,
    RecipeTrainer,
    adapt,
    parameter_groups,
    parse_recipe,
    rate_by_depth,
)
from eupe_hf.training.tasks.classification import ClassificationTask


sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.pretraining import SIDE, pretrain


# weights start larger than in wide models, whose 0.02 would leave the branches of narrow ones without effect
SHARED = {"image_size": SIDE, "initializer_range": 0.12, "layerscale_value": 1.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 8},
    "convnext": {"backbone_type": "convnext", "hidden_sizes": [32, 48, 96, 128], "depths": [1, 1, 1, 1]},
}
RECOMMENDED = {"vit": "attention", "convnext": "mlp"}  # at rank 16
# Of the recipe's learning rates, which are meant for far wider models: where the search starts. Updates of rsLoRA are
# four times as large; DoRA's are as large as LoRA's, whose rates it takes.
FACTORS = {"probe": (8, 16, 32), "full": (16, 32, 64), "LoRA": (4, 8, 16), "rsLoRA": (1, 2, 4)}
PHOTOGRAPHS = ("brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field", "cell", "moon", "camera")

Part = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Setting:
    """What is trained: a name that starts with its kind, and options of the recipe."""

    name: str
    options: tuple[str, ...]
    factor: float | None = None  # of the learning rates; default: the best

    @property
    def kind(self) -> str:
        """The key of `FACTORS`."""
        return self.name.split()[0].rstrip(",").replace("DoRA", "LoRA")


def settings(family: str) -> list[Setting]:
    """The rows of the table."""
    ranks: dict[str, tuple[int, ...]] = {"attention": (4, 16, 32), "mlp": (16,), "all": (16,)}
    if family == "convnext":
        ranks = {"mlp": (4, 16, 32)}
    best = RECOMMENDED[family]
    rows = [Setting(mode, ("--mode", mode)) for mode in ("probe", "full")]
    rows += [
        Setting(f"LoRA {targets} {rank}", ("--mode", "lora", "--targets", targets, "--rank", str(rank)))
        for targets, several in ranks.items()
        for rank in several
    ]
    for kind in ("DoRA", "rsLoRA"):
        options = ("--mode", "lora", "--targets", best, f"--use_{kind.lower()}", "True")
        rows.append(Setting(f"{kind} {best} 16", options))
    rows.append(Setting("full, own rates", ("--mode", "full"), factor=1.0))
    rows.append(Setting(f"LoRA {best} 16, own rates", ("--mode", "lora"), factor=1.0))
    return rows


# ---- data ----


def digits() -> tuple[Part, Part]:
    """Handwritten digits of 8 x 8 pixels: the first 1,200 to train on, and the last 597."""
    found = sklearn.datasets.load_digits()
    images = np.repeat((found.images * 255 / 16).astype(np.uint8)[..., None], 3, axis=-1)
    rows = _rows(images, found.target)
    return rows[:1200], rows[1200:]


def patches() -> tuple[Part, Part]:
    """Grey patches of 32 x 32 pixels from eight photographs, 150 each to train on and 72 others.

    Training and test patches come from separate blocks of 64 x 64 pixels; brightness and contrast are made equal.
    """
    parts: tuple[Part, Part] = ([], [])
    for label, name in enumerate(PHOTOGRAPHS):
        image = getattr(skimage.data, name)()
        image = skimage.color.rgb2gray(image) if image.ndim == 3 else image / 255
        h, w = (side // 64 for side in image.shape)
        blocks = image[: 64 * h, : 64 * w].reshape(h, 2, 32, w, 2, 32).transpose(0, 3, 1, 4, 2, 5).reshape(-1, 32, 32)
        spread = blocks.std((1, 2), keepdims=True)
        blocks = (128 + 45 * (blocks - blocks.mean((1, 2), keepdims=True)) / (spread + 1e-6)).clip(0, 255)
        order = np.random.default_rng(label).permutation(h * w)
        patches = blocks.reshape(h * w, 4, 32, 32)[order].reshape(-1, 32, 32).astype(np.uint8)[..., None]
        rows = _rows(np.repeat(patches, 3, axis=-1), np.full(len(patches), label))
        split = len(rows) // 4 * 2 // 3 * 4  # two thirds of the blocks
        for part, several, count in zip(parts, (rows[:split], rows[split:]), (150, 72), strict=True):
            part += several[:count]
    return parts


def _rows(images: np.ndarray, labels: np.ndarray) -> Part:
    processor = EupeImageProcessor(size={"height": SIDE, "width": SIDE})
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    return [
        {"pixel_values": row, "labels": torch.tensor(int(label))} for row, label in zip(pixels, labels, strict=True)
    ]


DATA: dict[str, Callable[[], tuple[Part, Part]]] = {"digits": digits, "patches": patches}


# ---- fine-tuning ----


@dataclass(frozen=True)
class Parts:
    """What stands for the arguments of a task here: both parts, and the side of their images in pixels."""

    train: Part
    test: Part
    size: int = SIDE


class PreparedImages(ClassificationTask):
    """Classification of images that are ready for the model, without augmentation; its arguments are `Parts`."""

    def load(self) -> TaskData:
        """The parts as they are."""
        train, test = self.arguments.train, self.arguments.test
        return TaskData(train, test, [str(i) for i in range(1 + max(int(row["labels"]) for row in train))], "test")

    def rows(self, processor: Any, patch_size: int) -> tuple[Part, Part]:
        """The parts as they are."""
        return self.data.train, self.data.evaluation


def options_of(setting: Setting, folder: str, factor: float, steps: int, seed: int) -> tuple[Any, RecipeArguments]:
    """The recipe's options of the model and of the Trainer, with its learning rates times a factor."""
    fixed: dict[str, Any] = {
        "--dataset": "-", "--output_dir": folder, "--max_steps": steps, "--seed": seed, "--eval_strategy": "no",
        "--save_strategy": "no", "--load_best_model_at_end": False, "--report_to": "none", "--disable_tqdm": True,
        "--use_cpu": True, "--dataloader_num_workers": 0, "--per_device_eval_batch_size": 100,
        "--logging_strategy": "no",
    }  # fmt: skip
    line = [str(part) for pair in fixed.items() for part in pair]
    model_args, _, args = parse_recipe(ClassificationTask, "", [*line, *setting.options])
    args.learning_rate *= factor
    if args.head_learning_rate is not None:
        args.head_learning_rate *= factor
    return model_args, args


def finetune(
    encoder: Path, setting: Setting, train: Part, test: Part, factor: float, steps: int, seed: int
) -> dict[str, float]:
    """Train as the recipe does; gives the accuracy, the trained parameters and the size of the file in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        model_args, args = options_of(setting, folder, factor, steps, seed)
        set_seed(seed)
        task = PreparedImages(Parts(train, test), seed)
        model = EupeForImageClassification.from_pretrained(encoder, **task.head())
        trainer = RecipeTrainer(task, None, model.config.patch_size, args, model=adapt(model, model_args))
        trainer.remove_callback(PrinterCallback)
        trained = trainer.get_num_trainable_parameters()
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
        trainer.save_model(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {"accuracy": accuracy, "trained": trained, "bytes": size}


class Runs:
    """Fine-tuning runs of one family on one data set, each of which is done once and kept in a file."""

    def __init__(self, family: str, data: str, arguments: argparse.Namespace):
        self.family, self.steps, self.fixed = family, arguments.steps, arguments.factor
        self.encoder, self.file = arguments.cache / family, arguments.cache / f"{family}-{data}-{self.steps}.jsonl"
        self.train, self.test = (part[:: 10 if arguments.quick else 1] for part in DATA[data]())
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.done = {tuple(key): result for key, result in map(json.loads, lines)}

    def __call__(self, setting: Setting, factor: float, seed: int) -> dict[str, float]:
        """A run; with seed 0 one of the search, on three quarters of the training images and judged by the others."""
        key = (setting.name, factor, seed)
        if key not in self.done:
            order = np.random.default_rng(0).permutation(len(self.train))
            cut = len(order) * 3 // 4
            kept, held_out = ([self.train[row] for row in part] for part in (order[:cut], order[cut:]))
            parts = (kept, held_out) if seed == 0 else (self.train, self.test)
            self.done[key] = finetune(self.encoder, setting, *parts, factor, self.steps, seed)
            with self.file.open("a") as file:
                file.write(json.dumps([key, self.done[key]]) + "\n")
        return self.done[key]

    def factor(self, kind: str) -> float:
        """The best factor for the learning rates of a kind; it goes on while that is the first or the last."""
        if self.fixed is not None:
            return self.fixed
        name = kind if kind in ("probe", "full") else f"{kind} {RECOMMENDED[self.family]} 16"
        row = next(row for row in settings(self.family) if row.name == name)
        scores: dict[float, float] = {}
        wanted = list(FACTORS[kind])
        while wanted:
            scores |= {factor: self(row, factor, seed=0)["accuracy"] for factor in wanted}
            best = max(scores, key=lambda factor: scores[factor])
            wanted = [best / 2] if best == min(scores) else [best * 2] if best == max(scores) else []
        return best


# ---- tables ----


def step_times(encoder: Path, family: str, rounds: int) -> dict[str, float]:
    """Time of a training step over that of full fine-tuning, medians of ratios taken within a round."""
    pixels, labels = torch.randn(32, 3, SIDE, SIDE), torch.arange(32) % 10
    steps: dict[str, Callable[[], None]] = {}
    for setting in settings(family):
        with tempfile.TemporaryDirectory() as folder:
            model_args, args = options_of(setting, folder, 1.0, 1, 0)
        model = EupeForImageClassification.from_pretrained(encoder, num_labels=10)
        steps[setting.name] = _stepper(adapt(model, model_args).train(), args, pixels, labels)
    ratios: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        seconds = {}
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - start
        ratios.append({name: value / seconds["full"] for name, value in seconds.items()})
    return {name: statistics.median(row[name] for row in ratios[1:]) for name in steps}  # the first warms up


def _stepper(
    model: nn.Module, args: RecipeArguments, pixels: torch.Tensor, labels: torch.Tensor
) -> Callable[[], None]:
    rate_of = rate_by_depth(model, args.learning_rate, args.layer_decay, args.head_learning_rate)
    optimizer = torch.optim.AdamW(parameter_groups(model, rate_of, args.weight_decay))

    def step() -> None:
        model(pixel_values=pixels, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def spread(values: list[float]) -> str:
    """Mean and standard deviation of shares, in points."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):+.1f} ± {100 * deviation:.1f}"


def report(family: str, arguments: argparse.Namespace) -> None:
    """Run what is missing, and print the table of one family."""
    names = arguments.data
    several = {name: Runs(family, name, arguments) for name in names}
    rows = settings(family)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name, run in several.items():
        for row in rows:
            factor = run.factor(row.kind) if row.factor is None else row.factor
            found[name, row.name] = [run(row, factor, seed) for seed in arguments.seeds]
    times = step_times(arguments.cache / family, family, arguments.rounds)
    columns = [part for name in names for part in (f"{name}, %", "against full")]
    print(f"\n| {family} | trained | file, kB | step | {' | '.join(columns)} |\n|---|{'---|' * (3 + len(columns))}")
    for row in rows:
        cells = []
        for name in names:
            scores, full = ([run["accuracy"] for run in found[name, kind]] for kind in (row.name, "full"))
            cells += [spread(scores).lstrip("+"), spread([a - b for a, b in zip(scores, full, strict=True)])]
        result = found[names[0], row.name][0]
        size = f"{result['bytes'] / 1000:.0f}" if "lora" in row.options else "all"
        print(f"| {row.name} | {result['trained']:,} | {size} | {times[row.name]:.2f} | {' | '.join(cells)} |")
    for name, run in several.items():
        chosen = ", ".join(f"{kind} {run.factor(kind):g}" for kind in FACTORS)
        print(f"{name}, times the recipe's learning rates: {chosen}")


def main() -> None:
    """Pretrain, search, fine-tune, and print one table per family."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="folder for encoders and runs; default: a new one, then removed")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="from 1; 0 is that of the search")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning, 32 images each")
    parser.add_argument("--pretraining-steps", type=int, help="default: 1400 for the ViT, 1200 for the ConvNeXt")
    parser.add_argument("--factor", type=float, help="of the recipe's learning rates; default: the best")
    parser.add_argument("--rounds", type=int, default=9, help="of timed steps")
    parser.add_argument("--quick", action="store_true", help="single steps on few images: does it run at all?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.factor = [1], 1.0
        arguments.steps = arguments.pretraining_steps = arguments.rounds = 1
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        arguments.cache = arguments.cache or Path(folder)
        arguments.cache.mkdir(parents=True, exist_ok=True)
        for family in arguments.families:
            if not (arguments.cache / family).is_dir():
                config = EupeConfig(**SHARED, **FAMILIES[family])
                accuracy = pretrain(config, arguments.cache / family, arguments.pretraining_steps)
                print(f"{family}: {accuracy:.1%} of new drawn images recognised", flush=True)
            report(family, arguments)


if __name__ == "__main__":
    main()
