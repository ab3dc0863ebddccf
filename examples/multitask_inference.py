# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Run several tasks in one pass over a photograph, timed against one model per task.

    python examples/multitask_inference.py --model my-multitask --image examples/images/coffee.jpg
    python examples/multitask_inference.py --join depth=my-depth parts=my-segmenter --save my-multitask

`--model` is a saved `EupeForMultiTask`. `--join` makes one from single-task models that were trained on the same
frozen encoder. An encoder alone (`--model eupe-s`) gets a new head of each kind: the times are right, but the
predictions are meaningless, and the picture says "random weights".
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import logging as transformers_logging

from eupe_hf import EupeForMultiTask
from eupe_hf.loading import load_processor, load_task_model, pick_device
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.visualization import prediction_picture, read_photograph, side_by_side


HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/multitask_inference.py --model eupe-convnext-t --image photo.jpg",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="eupe-s", help="a multi-task model, or an encoder (default: eupe-s)")
    source.add_argument("--join", nargs="+", metavar="NAME=MODEL", help="single-task models that share an encoder")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="heads to run (default: all)")
    parser.add_argument("--image", type=Path, default=HERE / "images" / "coffee.jpg", help="the photograph")
    parser.add_argument("--size", type=int, default=512, help="resize the photograph to this side (default: 512)")
    parser.add_argument("--runs", type=int, default=5, help="forward passes to time (default: 5)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="save the multi-task model")
    parser.add_argument("--output", type=Path, default=Path("multitask.png"), help="the picture")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser.parse_args()


def load_model(arguments: argparse.Namespace) -> tuple[EupeForMultiTask, str, str]:
    """Load the model. Returns also the source of its image processor, and a warning for the picture."""
    if arguments.join:
        pairs = [entry.partition("=") for entry in arguments.join]
        if not all(equals and name and folder for name, equals, folder in pairs):
            raise ValueError("--join takes NAME=MODEL, for example depth=my-depth.")
        models = {name: folder for name, _, folder in pairs}
        return EupeForMultiTask.from_task_models(models), pairs[0][2], ""
    model = load_task_model(arguments.model, arguments.device)
    if isinstance(model, EupeForMultiTask):
        return model, arguments.model, ""
    if model is not None:
        raise ValueError(f"{arguments.model} has a single task: name an EupeForMultiTask, or an encoder.")
    print(f"{arguments.model} is an encoder: it gets NEW heads with RANDOM weights, for the times only.")
    torch.manual_seed(0)
    heads = {task: {"task": task} for task in TASK_MODELS}
    return EupeForMultiTask.from_pretrained(arguments.model, heads=heads), arguments.model, "random weights: "


def seconds(call, runs: int) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Load, predict, time, draw."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # 1. Load one model with several heads.
        model, source, warning = load_model(arguments)
        model.eval().to(pick_device(arguments.device))
        names = arguments.tasks or list(model.heads)
        processor = load_processor(source, arguments.size)
        inputs = processor(arguments.image, return_tensors="pt").to(model.device)

        # 2. Predict all tasks in one pass.
        with torch.inference_mode():
            predictions = model(**inputs, tasks=names).predictions
    except (OSError, ValueError) as error:
        sys.exit(f"multitask_inference.py: {error}")

    # 3. Time it against one model per task.
    with torch.inference_mode():
        together = seconds(lambda: model(**inputs, tasks=names), arguments.runs)
        alone = {}
        for name in names:
            single = model.task_model(name)
            alone[name] = seconds(lambda single=single: single(**inputs), arguments.runs)
            print(f"{name:>16} alone {alone[name] * 1000:8.1f} ms")
    print(f"{'all in one pass':>22} {together * 1000:8.1f} ms")
    of_dearest, of_all = together / max(alone.values()), together / sum(alone.values())
    print(f"One pass takes {of_dearest:.2f} of the time of the slowest, {of_all:.2f} of all.")

    # 4. Draw all predictions.
    photograph = read_photograph(arguments.image, processor, resize=False)
    panels = [photograph]
    for name in names:
        picture = prediction_picture(predictions[name], photograph, processor, model.config.head_config(name))
        panels.append(side_by_side([picture], name))
    side_by_side(panels, f"{warning}{', '.join(names)} in {together * 1000:.0f} ms").save(arguments.output)
    print(f"Saved {arguments.output}")
    if arguments.save:
        model.save_pretrained(arguments.save)
        processor.save_pretrained(arguments.save)
        print(f"Saved {arguments.save}: AutoModel.from_pretrained({str(arguments.save)!r}) loads it.")


if __name__ == "__main__":
    main()
