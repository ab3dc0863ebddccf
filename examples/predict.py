# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Run a task model on photographs and draw what it says: label map, depth map, boxes or classes.

    python examples/predict.py --model my-segmenter --image examples/images/coffee.jpg --output predictions

`--model` is a model that you trained and saved: a single-task model, or a multi-task one, of which every head is
drawn. With an encoder alone (`--model eupe-s --task segmentation`) the head is new: the picture shows the machinery,
and "random weights" stands in it.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor
from transformers import logging as transformers_logging
from transformers.utils import ModelOutput

from eupe_hf import EupeConfig, EupeForMultiTask, EupeMultiTaskConfig, EupePreTrainedModel
from eupe_hf.modeling_eupe_multitask import TASK_MODELS
from eupe_hf.visualization import prediction_picture, rgb_picture, side_by_side


HERE = Path(__file__).resolve().parent


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/predict.py --model eupe-s --task depth --image photo.jpg",
    )
    parser.add_argument("--model", default="eupe-s", help="a saved task model, or an encoder (default: eupe-s)")
    parser.add_argument("--task", choices=list(TASK_MODELS), help="with an encoder alone: which new head to put on it")
    parser.add_argument("--image", type=Path, nargs="+", default=[HERE / "images" / "coffee.jpg"], help="photographs")
    parser.add_argument("--size", type=int, help="squash to this side in pixels (default: as the model was saved)")
    parser.add_argument("--threshold", type=float, default=0.5, help="detection: least score of a box (default: 0.5)")
    parser.add_argument("--output", type=Path, default=Path("predictions"), help="folder for the pictures")
    return parser.parse_args()


def load_model(name: str, task: str | None) -> tuple[EupePreTrainedModel, str]:
    """The model, and words that belong into the picture where a part of it is random."""
    if not Path(name).exists() and len(Path(name).parts) > 2:  # no name on the Hub, which is USER/NAME
        raise ValueError(f"There is no model at {name}.")
    config = AutoConfig.from_pretrained(name)
    if isinstance(config, EupeMultiTaskConfig):
        return EupeForMultiTask.from_pretrained(name), ""
    if not isinstance(config, EupeConfig):
        raise ValueError(f"{name} is a {config.model_type} model, not one of EUPE.")
    for task_class in TASK_MODELS.values():
        if task_class.__name__ in (config.architectures or []):
            return task_class.from_pretrained(name), ""
    if task is None:
        raise ValueError(f"{name} is an encoder without a head: say which to put on it, with --task.")
    torch.manual_seed(0)
    print(f"{name} has no head for {task}, and none is published: a NEW head with RANDOM weights is put on it.")
    return TASK_MODELS[task].from_pretrained(name), "random weights: "


def main() -> None:
    """Load, predict, draw, save."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # 1. Load the model and the image processor that goes with it.
        model, warning = load_model(arguments.model, arguments.task)
        model.eval()
        processor = AutoImageProcessor.from_pretrained(arguments.model)
        size = {} if arguments.size is None else {"size": {"height": arguments.size, "width": arguments.size}}
        arguments.output.mkdir(parents=True, exist_ok=True)

        for path in arguments.image:
            # 2. Predict.
            inputs = processor(path, **size, return_tensors="pt")
            with torch.inference_mode():
                outputs = model(**inputs)
            parts: dict[str, tuple[ModelOutput, EupeConfig]] = {"": (outputs, model.config)}
            if isinstance(model, EupeForMultiTask):
                parts = {name: (out, model.config.head_config(name)) for name, out in outputs.predictions.items()}

            # 3. Draw on the photograph as the processor reads it, in its own size: upright, also where it has 16 bits.
            raw = processor(path, do_resize=False, do_center_crop=False, do_normalize=False, return_tensors="pt")
            pixels = raw["pixel_values"][0].permute(1, 2, 0)
            photograph = rgb_picture(pixels, (pixels.shape[1], pixels.shape[0]))
            for name, (output, config) in parts.items():
                picture: Image.Image = prediction_picture(output, photograph, processor, config, arguments.threshold)
                caption = f"{warning}{Path(arguments.model).name} {name}".strip()
                target = arguments.output / f"{path.stem}{'-' if name else ''}{name}.png"
                side_by_side([photograph, picture], caption).save(target)
                print(f"Saved {target}")
    except (OSError, ValueError) as error:
        sys.exit(f"predict.py: {error}")


if __name__ == "__main__":
    main()
