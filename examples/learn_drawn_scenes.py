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
from probes import cross_entropy, object_features, probe, report, seen_together
from torch.nn import functional

from eupe_hf import EupeConfig, EupeForMultiTask, EupeImageProcessor, EupeMultiTaskConfig
from eupe_hf.evaluation import ClassificationMetrics, DepthMetrics, SegmentationMetrics, average_precision
from eupe_hf.visualization import prediction_picture, side_by_side


SIDE = 96  # pixels, in training
SHOWN = 384  # pixels, in the pictures that are saved
COUNTS = {0: "one", 1: "two", 2: "three"}
PAINTS = {0: "background", **dict(enumerate(COLOURS, start=1))}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/learn_drawn_scenes.py --output my-scenes --steps 200",
    )
    parser.add_argument("--output", type=Path, default=Path("my-scenes"), help="folder for the model and pictures")
    parser.add_argument("--steps", type=int, default=3000, help="batches of 16 scenes (default: 3000)")
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
    stages = [1, 2, 3] if backbone == "convnext" else [2, 4]
    kinds = dict(enumerate(SHAPES))
    heads = {
        "count": {"task": "classification", "id2label": COUNTS, "classify_patch_mean": True},
        "parts": {"task": "segmentation", "id2label": PARTS, "out_indices": stages, "loss_weight": 2.0},
        "colours": {"task": "segmentation", "id2label": PAINTS, "out_indices": stages},
        "depth": {"task": "depth", "out_indices": stages, "min_depth": 1.0, "max_depth": 9.0, "num_depth_bins": 64},
        "objects": {"task": "detection", "id2label": kinds, "detection_hidden_size": 48, "loss_weight": 0.5},
    }
    heads["objects"]["detection_strides"] = [8, 16]
    return EupeForMultiTask(EupeMultiTaskConfig(encoder_config=encoder, heads=heads))


def make_labels(scenes: list[Scene]) -> dict[str, object]:
    """Labels by head, as `EupeForMultiTask` takes them; colours at half the size, to save time."""
    boxes = []
    for scene in scenes:
        corners = torch.tensor([thing.box for thing in scene.objects], dtype=torch.float32) / SIDE
        centre, size = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
        kinds = torch.tensor([thing.label for thing in scene.objects])
        boxes.append({"class_labels": kinds, "boxes": torch.cat((centre, size), dim=1)})
    return {
        "count": torch.tensor([len(scene.objects) - 1 for scene in scenes]),
        "parts": torch.from_numpy(np.stack([scene.parts for scene in scenes])).long(),
        "colours": torch.from_numpy(np.stack([scene.colours[::2, ::2] for scene in scenes])).long(),
        "depth": torch.from_numpy(np.stack([scene.depth for scene in scenes])),
        "objects": boxes,
    }


def train(model: EupeForMultiTask, processor: EupeImageProcessor, steps: int) -> None:
    """AdamW on the sum of the losses, each step on 16 new scenes; one cycle of the learning rate.

    A linear layer beside the heads reads shape, colour and position of each object from its patch features in the last
    layer: with its loss, the features say linearly what an object is. Textures grow stronger over the first half of
    the steps: shapes are learned sooner on a plain background.
    """
    readout, kept = torch.nn.Linear(model.config.encoder.hidden_size, len(SHAPES) + len(COLOURS) + 2), []
    hook = model.eupe.register_forward_hook(lambda module, inputs, output: kept.append(output.feature_maps[-1]))
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    seen, start = seen_together(SceneGenerator().combinations), time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        generator = SceneGenerator(SIDE, texture=min(1.0, 2 * step / steps), noise=step % 17)
        scenes = [*generator.scenes(16, start=16 * step)]
        inputs = processor([scene.picture for scene in scenes], return_tensors="pt")
        loss = model(**inputs, labels=make_labels(scenes)).loss
        features, facts = object_features(kept.pop(), scenes)
        shape, colour, position = readout(features).split((len(SHAPES), len(COLOURS), 2), dim=1)
        loss += 4 * cross_entropy(shape, facts, "shape", seen) + cross_entropy(colour, facts, "colour", seen)
        loss += functional.smooth_l1_loss(10 * position, 10 * facts["position"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    hook.remove()


@torch.inference_mode()
def measure(model: EupeForMultiTask, processor: EupeImageProcessor, count: int = 200) -> dict[str, float]:
    """Scores on scenes of the split "test"."""
    counts, depth = ClassificationMetrics(len(COUNTS)), DepthMetrics()
    maps = {"parts": SegmentationMetrics(len(PARTS)), "colours": SegmentationMetrics(len(PAINTS))}
    found, true, size = [], [], [(SIDE, SIDE)]
    for scene in SceneGenerator(SIDE, split="test").scenes(count):
        predictions = model(**processor(scene.picture, return_tensors="pt")).predictions
        counts.update(predictions["count"].logits.argmax(dim=1), torch.tensor([len(scene.objects) - 1]))
        for name, metrics in maps.items():
            (predicted,) = processor.post_process_semantic_segmentation(predictions[name], target_sizes=size)
            metrics.update(predicted, torch.from_numpy(getattr(scene, name)).long())
        (metres,) = processor.post_process_depth_estimation(predictions["depth"], target_sizes=size)
        depth.update(metres["predicted_depth"], torch.from_numpy(scene.depth))
        found += processor.post_process_object_detection(predictions["objects"], threshold=0.01, target_sizes=size)
        boxes = torch.tensor([thing.box for thing in scene.objects], dtype=torch.float32)
        true.append({"boxes": boxes, "labels": torch.tensor([thing.label for thing in scene.objects])})
    return {
        "accuracy of the count": counts.compute()["accuracy"],
        "mean IoU of the parts": maps["parts"].compute()["mean_iou"],
        "mean IoU of the colours": maps["colours"].compute()["mean_iou"],
        "RMSE of the depth in metres": depth.compute()["rmse"],
        "AP50 of the objects": average_precision(found, true)["ap50"],
    }


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
    needed = ("pycocotools", "torchmetrics")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        sys.exit(f"learn_drawn_scenes.py: this needs {' and '.join(missing)}: pip install 'eupe-hf[eval]'.")
    # 1. Make
    torch.manual_seed(0)
    processor = EupeImageProcessor(size={"height": SIDE, "width": SIDE})
    model = make_model(arguments.backbone)

    # 2. Train
    train(model, processor, arguments.steps)
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
