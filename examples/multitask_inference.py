# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Several tasks from one pass over a photograph, timed against one model per task.

    python examples/multitask_inference.py --model my-multitask --image examples/images/coffee.jpg
    python examples/multitask_inference.py --join depth=my-depth parts=my-segmenter --save my-multitask

`--model` is a saved `EupeForMultiTask`. `--join` makes one of single-task models that were trained on the same frozen
encoder. With an encoder alone (`--model eupe-s`) it gets one new head of each kind: the times are right, and what the
picture shows is not, which is why "random weights" stands in it.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoImageProcessor
from transformers import logging as transformers_logging

from eupe_hf import EupeForMultiTask, EupeMultiTaskConfig
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.visualization import prediction_picture, rgb_picture, side_by_side


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
    parser.add_argument("--size", type=int, default=512, help="squash to this side in pixels (default: 512)")
    parser.add_argument("--runs", type=int, default=5, help="forward passes per time (default: 5)")
    parser.add_argument("--save", type=Path, metavar="DIR", help="save the multi-task model")
    parser.add_argument("--output", type=Path, default=Path("multitask.png"), help="the picture")
    return parser.parse_args()


def load_model(arguments: argparse.Namespace) -> tuple[EupeForMultiTask, str, str]:
    """The model, where its image processor is, and words that belong into the picture where a part of it is random."""
    if arguments.join:
        pairs = [entry.partition("=") for entry in arguments.join]
        if not all(equals and name and folder for name, equals, folder in pairs):
            raise ValueError("--join takes NAME=MODEL, for example depth=my-depth.")
        models = {name: folder for name, _, folder in pairs}
        return EupeForMultiTask.from_task_models(models), pairs[0][2], ""
    if isinstance(AutoConfig.from_pretrained(arguments.model), EupeMultiTaskConfig):
        return EupeForMultiTask.from_pretrained(arguments.model), arguments.model, ""
    print(f"{arguments.model} is an encoder: it gets NEW heads with RANDOM weights, for the times alone.")
    torch.manual_seed(0)
    heads = {task: {"task": task} for task in TASK_MODELS}
    return EupeForMultiTask.from_pretrained(arguments.model, heads=heads), arguments.model, "random weights: "


def seconds(call, runs: int) -> float:
    """Median time of a call, after one to warm up."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    """Load, predict, time, draw."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # 1. One model with several heads.
        model, source, warning = load_model(arguments)
        model.eval()
        names = arguments.tasks or list(model.heads)
        processor = AutoImageProcessor.from_pretrained(source)
        side = {"height": arguments.size, "width": arguments.size}
        inputs = processor(arguments.image, size=side, return_tensors="pt")

        # 2. One pass for all tasks.
        with torch.inference_mode():
            predictions = model(**inputs, tasks=names).predictions
    except (OSError, ValueError) as error:
        sys.exit(f"multitask_inference.py: {error}")

    # 3. What that costs, against one model per task.
    with torch.inference_mode():
        together = seconds(lambda: model(**inputs, tasks=names), arguments.runs)
        alone = {}
        for name in names:
            single = model.task_model(name)
            alone[name] = seconds(lambda single=single: single(**inputs), arguments.runs)
            print(f"{name:>16} alone {alone[name] * 1000:8.1f} ms")
    print(f"{'all in one pass':>22} {together * 1000:8.1f} ms")
    of_dearest, of_all = together / max(alone.values()), together / sum(alone.values())
    print(f"One pass costs {of_dearest:.2f} of the dearest, {of_all:.2f} of all.")

    # 4. A picture of everything.
    raw = processor(arguments.image, do_resize=False, do_center_crop=False, do_normalize=False, return_tensors="pt")
    pixels = raw["pixel_values"][0].permute(1, 2, 0)
    photograph = rgb_picture(pixels, (pixels.shape[1], pixels.shape[0]))
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
