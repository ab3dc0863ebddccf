# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Draw what a task model predicts for photographs: label map, depth map, boxes or classes.

    python examples/predict.py --model my-segmenter --image examples/images/coffee.jpg --output predictions

`--model` is a single-task or multi-task model that you trained and saved, or an adapter; every head gets a picture.
With an encoder (`--model eupe-s --task segmentation`) the head is new: the picture shows how it works, and says
"random weights".
"""

import argparse
import sys
from pathlib import Path

from transformers import logging as transformers_logging

from eupe_hf.data.rows import UnreadableError
from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS
from eupe_hf.visualization.predictions import Predictor


HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/predict.py --model eupe-s --task depth --image photo.jpg",
    )
    parser.add_argument("--model", default="eupe-s", help="a saved task model, or an encoder (default: eupe-s)")
    parser.add_argument("--task", choices=list(TASK_MODELS), help="for an encoder: the new head to put on it")
    parser.add_argument("--image", type=Path, nargs="+", default=[HERE / "images" / "coffee.jpg"], help="photographs")
    parser.add_argument("--size", type=int, help="resize images to this side in pixels (default: the model's)")
    parser.add_argument("--threshold", type=float, default=0.5, help="detection: lowest score of a box (default: 0.5)")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that exist")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser.parse_args()


def main() -> None:
    """Load, predict, draw, save."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # 1. Load the model and its image processor.
        predict = Predictor(
            arguments.model, arguments.task, arguments.size, arguments.threshold, device=arguments.device
        )
        if predict.is_random:
            task = arguments.task
            print(f"{arguments.model} has no head for {task}, and none is published: a NEW head with RANDOM weights.")

        # 2. Predict and draw each photograph, with a picture for each head.
        for drawn in predict.save_pictures(arguments.image, arguments.output, overwrite=arguments.overwrite):
            if isinstance(drawn, UnreadableError):
                raise drawn
            for saved in drawn:
                print(f"Saved {saved}")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"predict.py: {error}")


if __name__ == "__main__":
    main()
