# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Five tasks from one tiny encoder, from nothing to pictures in some minutes on a CPU, without any download.

    python examples/learn_drawn_scenes.py --output my-scenes

Scenes are drawn (`drawn_scenes.py`), so every answer is known. One encoder with a head per task learns from scratch
how many objects there are, which shape and which colour each pixel shows, how far away it is, and where the objects
are. The script shows how to put a model together, train it on all losses at once, measure it, probe it (`probes.py`)
and save it. It does not replace the published weights. The folder works like any other:
`eupe predict my-scenes my-scenes/scene-1.png`. The script needs `pip install '.[eval]'`.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch
from drawn_scenes import COLOURS, PARTS, SHAPES, Scene, SceneGenerator
from PIL import Image

from eupe_hf import EupeConfig, EupeForMultiTask, EupeImageProcessor, EupeMultiTaskConfig
from eupe_hf.visualization import prediction_picture, side_by_side


SIDE = 96  # pixels, in training
SHOWN = 384  # pixels, in the pictures that are saved
COUNTS = {0: "one", 1: "two", 2: "three"}
PAINTS = {0: "background", **dict(enumerate(COLOURS, start=1))}
IGNORED = 255  # the label of pixels that do not count
GREY = 0.25  # share of the pictures without colours in training, so that shapes are learned without their colours
CELLS = 8  # per side, of the grid that teaches the encoder where a patch is


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/learn_drawn_scenes.py --output my-scenes --steps 200",
    )
    parser.add_argument("--output", type=Path, default=Path("my-scenes"), help="folder for the model and pictures")
    parser.add_argument("--steps", type=int, default=1500, help="batches of 16 scenes (default: 1500)")
    parser.add_argument("--backbone", choices=("convnext", "vit"), default="convnext", help="(default: convnext)")
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error(f"--steps must be at least 1, got {arguments.steps}")
    return arguments


def make_model(backbone: str) -> EupeForMultiTask:
    """A tiny encoder of either family with a head per task, all with random weights."""
    family = {"backbone_type": "convnext", "hidden_sizes": [32, 64, 96], "depths": [1, 2, 3]}
    if backbone == "vit":
        # the scale of rotary positions stays fixed in training: the features must say where a patch is
        family = {"backbone_type": "vit", "patch_size": 8, "hidden_size": 96, "pos_embed_rescale": None}
        family |= {"num_hidden_layers": 4, "num_attention_heads": 4}
    encoder = EupeConfig(**family, image_size=SIDE, layerscale_value=0.5)
    last = encoder.num_stages
    stages = [1, 2, 3] if backbone == "convnext" else [2, last]
    kinds = dict(enumerate(SHAPES))
    cells = {i: f"row {i // CELLS}, column {i % CELLS}" for i in range(CELLS**2)}
    heads = {
        "count": {"task": "classification", "id2label": COUNTS, "classify_patch_mean": True},
        "parts": {"task": "segmentation", "id2label": PARTS, "out_indices": stages, "loss_weight": 2.0},
        "colours": {"task": "segmentation", "id2label": PAINTS, "out_indices": [last]},
        "depth": {"task": "depth", "out_indices": stages, "min_depth": 1.0, "max_depth": 9.0, "num_depth_bins": 64},
        "objects": {"task": "detection", "id2label": kinds, "detection_hidden_size": 48, "loss_weight": 0.5},
        "cells": {"task": "segmentation", "id2label": cells, "out_indices": [last]},
        "shapes": {"task": "segmentation", "id2label": kinds, "out_indices": [last]},
    }
    heads["objects"]["detection_strides"] = [8, 16]
    return EupeForMultiTask(EupeMultiTaskConfig(encoder_config=encoder, heads=heads))


def make_labels(scenes: list[Scene], is_grey: np.ndarray, noise: np.random.Generator) -> dict[str, object]:
    """Labels by head, as `EupeForMultiTask` takes them; 255 marks pixels without a label.

    Grey pictures have no colours. "shapes" are labels of four pixels of each object, so that small objects count as
    much as large ones.
    """
    boxes, shapes = [], np.full((len(scenes), SIDE, SIDE), IGNORED)
    for scene in scenes:
        corners = torch.tensor([thing.box for thing in scene.objects], dtype=torch.float32) / SIDE
        centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        kinds = torch.tensor([thing.label for thing in scene.objects])
        boxes.append({"class_labels": kinds, "boxes": torch.cat((centre, size), dim=1)})
        for number, thing in enumerate(scene.objects, start=1):
            pixels = noise.permutation(np.argwhere(scene.instances == number))[:4]
            shapes[len(boxes) - 1, pixels[:, 0], pixels[:, 1]] = thing.label
    colours = np.stack([scene.colours[2::4, 2::4] for scene in scenes]).astype(int)
    colours[is_grey] = IGNORED
    row = torch.arange(3 * CELLS) // 3
    return {
        "count": torch.tensor([len(scene.objects) - 1 for scene in scenes]),
        "parts": torch.from_numpy(np.stack([scene.parts for scene in scenes])).long(),
        "colours": torch.from_numpy(colours),
        "depth": torch.from_numpy(np.stack([scene.depth for scene in scenes])),
        "objects": boxes,
        "cells": (row[:, None] * CELLS + row).expand(len(scenes), -1, -1),
        "shapes": torch.from_numpy(shapes),
    }


def train(model: EupeForMultiTask, processor: EupeImageProcessor, steps: int) -> None:
    """AdamW on the sum of the losses, each step on 16 new scenes; one cycle of the learning rate."""
    generator, noise, start = SceneGenerator(SIDE), np.random.default_rng(0), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for step in range(1, steps + 1):
        scenes = [*generator.scenes(16, start=16 * step)]
        is_grey = noise.random(16) < GREY
        pictures = [scene.picture for scene in scenes]
        for i in np.flatnonzero(is_grey):
            pictures[i] = pictures[i].convert("L").convert("RGB")
        inputs = processor(pictures, return_tensors="pt")
        loss = model(**inputs, labels=make_labels(scenes, is_grey, noise)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)


@torch.inference_mode()
def draw_results(model: EupeForMultiTask, processor: EupeImageProcessor, folder: Path, count: int = 3) -> None:
    """Pictures of new scenes: the scene, its count and boxes; below them parts, colours and depth; from one pass."""
    paints = np.array([(128, 128, 128), *COLOURS.values()], np.uint8)
    for i, scene in enumerate(SceneGenerator(SHOWN, split="test", objects=(2, 3)).scenes(count), start=1):
        predictions = model(**processor(scene.picture, return_tensors="pt")).predictions
        drawn = {
            name: prediction_picture(predictions[name], scene.picture, processor, model.config.head_config(name))
            for name in ("count", "objects", "parts", "depth")
        }
        (ids,) = processor.post_process_semantic_segmentation(predictions["colours"], target_sizes=[(SHOWN, SHOWN)])
        upper = side_by_side([scene.picture, drawn["count"], drawn["objects"]])
        lower = side_by_side([drawn["parts"], Image.fromarray(paints[ids.numpy()]), drawn["depth"]])
        scene.picture.save(folder / f"scene-{i}.png")
        Image.fromarray(np.concatenate((upper, lower))).save(folder / f"results-{i}.png")
        print(f"Saved {folder / f'results-{i}.png'}")


def main() -> None:
    """Make, train, save, measure, probe, draw."""
    arguments = parse_arguments()
    needed = ("pycocotools", "sklearn", "torchmetrics")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        sys.exit(f"learn_drawn_scenes.py: this needs {' and '.join(missing)}: pip install 'eupe-hf[eval]'.")
    from probes import measure, probe, report  # needs scikit-learn

    # 1. Make
    torch.manual_seed(0)
    processor = EupeImageProcessor(size={"height": SIDE, "width": SIDE})
    model = make_model(arguments.backbone)

    # 2. Train, and drop the heads that only taught the encoder
    train(model, processor, arguments.steps)
    for name in ("cells", "shapes"):
        model.remove_head(name)
    model.eval()

    # 3. Save
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)

    # 4. Measure the tasks, and what the patch features know
    for name, value in measure(model, processor).items():
        print(f"{name}: {value:.3f}")
    print(report(probe(model.eupe, processor)))

    # 5. Draw
    draw_results(model, processor, arguments.output)


if __name__ == "__main__":
    main()
