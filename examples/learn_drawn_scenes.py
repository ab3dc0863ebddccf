# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Four tasks from one tiny encoder, from nothing to pictures in some minutes on a CPU, without any download.

    python examples/learn_drawn_scenes.py --output my-scenes

Scenes are drawn, so that every answer is known: discs, squares and triangles stand on a floor before a wall, smaller
where they are farther away. One encoder with four heads learns how many there are, which pixels are which, how far
each pixel is, and where the objects are, from scratch: it shows how such a model is put together, trained on all
losses at once, measured and saved, and is no substitute for the published weights. The folder then works as any
other: `eupe predict my-scenes my-scenes/scene-1.png`. Its measures need `pip install '.[eval]'`.
"""

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from eupe_hf import EupeConfig, EupeForMultiTask, EupeImageProcessor, EupeMultiTaskConfig
from eupe_hf.evaluation import ClassificationMetrics, DepthMetrics, SegmentationMetrics, average_precision
from eupe_hf.visualization import prediction_picture, side_by_side


SIDE = 96  # pixels
WALL, FLOOR, DISC, SQUARE, TRIANGLE = range(5)
PARTS = {WALL: "wall", FLOOR: "floor", DISC: "disc", SQUARE: "square", TRIANGLE: "triangle"}
COUNTS = {0: "one", 1: "two", 2: "three"}
NEAR, FAR = 2.0, 8.0  # metres: the lower edge of the picture, and the wall
HORIZON = 0.4  # of the picture's height


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


def draw_scene(noise: np.random.Generator) -> tuple[Image.Image, np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """A picture, its parts (H, W), its depth (H, W) in metres, and rows of class and box in pixels."""
    fine = 4  # the picture is drawn larger, for smooth edges
    tint = noise.integers(60, 200, (2, 3))
    picture = Image.new("RGB", (SIDE * fine, SIDE * fine), tuple(tint[0]))
    parts, depth = Image.new("L", (SIDE, SIDE), WALL), np.full((SIDE, SIDE), FAR, np.float32)
    horizon = round(HORIZON * SIDE)
    ImageDraw.Draw(picture).rectangle((0, horizon * fine, SIDE * fine, SIDE * fine), fill=tuple(tint[1]))
    ImageDraw.Draw(parts).rectangle((0, horizon, SIDE, SIDE), fill=FLOOR)
    depth[horizon:] = np.linspace(FAR, NEAR, SIDE - horizon)[:, None]
    objects: list[tuple[int, ...]] = []
    feet = np.sort(noise.uniform(0.15, 0.95, noise.integers(1, 4)))  # far to near: the near ones hide the far ones
    for foot, left in zip(feet, noise.permutation(3)[: len(feet)], strict=True):
        distance = FAR + foot * (NEAR - FAR)
        size = round(SIDE * 1.1 / distance * noise.uniform(0.8, 1.2))
        x = round(SIDE * (left + noise.uniform(0.3, 0.7)) / 3 - size / 2)
        x, bottom = min(max(x, 0), SIDE - size), round(horizon + foot * (SIDE - horizon))
        kind, box = int(noise.integers(DISC, TRIANGLE + 1)), (x, bottom - size, x + size, bottom)
        colour = tuple(noise.integers(0, 256, 3))
        _draw_shape(ImageDraw.Draw(picture), kind, tuple(side * fine for side in box), colour)
        mask = Image.new("1", (SIDE, SIDE))
        _draw_shape(ImageDraw.Draw(mask), kind, box, 1)
        parts.paste(kind, mask=mask)
        depth[np.asarray(mask)] = distance
        objects.append((kind - DISC, *box))
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float32)
    pixels = (pixels + noise.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels), np.array(parts), depth, objects


def _draw_shape(draw: ImageDraw.ImageDraw, kind: int, box: tuple[int, ...], fill: object) -> None:
    left, top, right, bottom = box
    right, bottom = right - 1, bottom - 1  # Pillow counts the last pixel in
    if kind == DISC:
        draw.ellipse((left, top, right, bottom), fill=fill)
    elif kind == SQUARE:
        draw.rectangle((left, top, right, bottom), fill=fill)
    else:
        draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=fill)


def draw_batch(noise: np.random.Generator, count: int) -> tuple[list[Image.Image], dict[str, object]]:
    """Pictures, and labels by head, as `EupeForMultiTask` takes them."""
    scenes = [draw_scene(noise) for _ in range(count)]
    boxes = []
    for *_, objects in scenes:
        corners = torch.tensor([box for _, *box in objects], dtype=torch.float32) / SIDE
        centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        boxes.append(
            {"class_labels": torch.tensor([kind for kind, *_ in objects]), "boxes": torch.cat((centre, size), 1)}
        )
    labels = {
        "count": torch.tensor([len(objects) - 1 for *_, objects in scenes]),
        "parts": torch.from_numpy(np.stack([parts for _, parts, _, _ in scenes])).long(),
        "depth": torch.from_numpy(np.stack([depth for _, _, depth, _ in scenes])),
        "objects": boxes,
    }
    return [picture for picture, *_ in scenes], labels


def make_model(backbone: str) -> EupeForMultiTask:
    """A tiny encoder of either family with a head per task, all with random weights."""
    family = {
        "backbone_type": "vit",
        "patch_size": 8,
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    if backbone == "convnext":
        family = {"backbone_type": "convnext", "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]}
    encoder = EupeConfig(**family, image_size=SIDE, layerscale_value=0.5)
    last = encoder.num_stages
    stages = [1, 2, 3, 4] if backbone == "convnext" else [last // 2, last]
    objects = {index - DISC: PARTS[index] for index in (DISC, SQUARE, TRIANGLE)}
    heads = {
        "count": {"task": "classification", "id2label": COUNTS, "classify_patch_mean": True},
        "parts": {"task": "segmentation", "id2label": PARTS, "out_indices": stages, "loss_weight": 2.0},
        "depth": {"task": "depth", "out_indices": stages, "min_depth": 1.0, "max_depth": 9.0},
        "objects": {"task": "detection", "id2label": objects, "detection_hidden_size": 48},
    }
    return EupeForMultiTask(EupeMultiTaskConfig(encoder_config=encoder, heads=heads))


def train(model: EupeForMultiTask, processor: EupeImageProcessor, steps: int) -> None:
    """AdamW on the sum of the four losses, each step on 16 new scenes; one cycle of the learning rate."""
    noise, start = np.random.default_rng(0), time.perf_counter()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    model.train()
    for step in range(1, steps + 1):
        pictures, labels = draw_batch(noise, 16)
        loss = model(**processor(pictures, return_tensors="pt"), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s")


@torch.inference_mode()
def measure(model: EupeForMultiTask, processor: EupeImageProcessor, count: int = 200) -> dict[str, float]:
    """Scores on scenes that were not trained on."""
    pictures, labels = draw_batch(np.random.default_rng(1), count)
    counts, parts, depth = ClassificationMetrics(len(COUNTS)), SegmentationMetrics(len(PARTS)), DepthMetrics()
    found, true, size = [], [], [(SIDE, SIDE)]
    for i, picture in enumerate(pictures):
        predictions = model(**processor(picture, return_tensors="pt")).predictions
        counts.update(predictions["count"].logits.argmax(dim=1), labels["count"][i : i + 1])
        (label_map,) = processor.post_process_semantic_segmentation(predictions["parts"], target_sizes=size)
        parts.update(label_map, labels["parts"][i])
        (depth_map,) = processor.post_process_depth_estimation(predictions["depth"], target_sizes=size)
        depth.update(depth_map["predicted_depth"], labels["depth"][i])
        found += processor.post_process_object_detection(predictions["objects"], threshold=0.01, target_sizes=size)
        centre, sides = labels["objects"][i]["boxes"].mul(SIDE).split(2, dim=1)
        boxes = torch.cat((centre - sides / 2, centre + sides / 2), dim=1)
        true.append({"boxes": boxes, "labels": labels["objects"][i]["class_labels"]})
    return {
        "accuracy of the count": counts.compute()["accuracy"],
        "mean IoU of the parts": parts.compute()["mean_iou"],
        "RMSE of the depth in metres": depth.compute()["rmse"],
        "AP50 of the objects": average_precision(found, true)["ap50"],
    }


@torch.inference_mode()
def draw_results(model: EupeForMultiTask, processor: EupeImageProcessor, folder: Path, count: int = 3) -> None:
    """Pictures of new scenes: the scene, then count, parts, depth and boxes, from one pass."""
    pictures, _ = draw_batch(np.random.default_rng(2), count)
    for i, picture in enumerate(pictures, start=1):
        predictions = model(**processor(picture, return_tensors="pt")).predictions
        large = picture.resize((256, 256), Image.Resampling.NEAREST)
        drawn = [
            prediction_picture(predictions[name], large, processor, model.config.head_config(name))
            for name in ("count", "parts", "depth", "objects")
        ]
        picture.save(folder / f"scene-{i}.png")
        side_by_side([large, *drawn]).save(folder / f"results-{i}.png")
        print(f"Saved {folder / f'results-{i}.png'}")


def main() -> None:
    """Make, train, save, measure, draw."""
    arguments = parse_arguments()
    if missing := [name for name in ("pycocotools", "torchmetrics") if importlib.util.find_spec(name) is None]:
        sys.exit(f"learn_drawn_scenes.py: this needs {' and '.join(missing)}: pip install 'eupe-hf[eval]'.")
    torch.manual_seed(0)
    processor = EupeImageProcessor(size={"height": SIDE, "width": SIDE})
    model = make_model(arguments.backbone)
    train(model, processor, arguments.steps)
    model.eval()
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)
    for name, value in measure(model, processor).items():
        print(f"{name}: {value:.3f}")
    draw_results(model, processor, arguments.output)


if __name__ == "__main__":
    main()
