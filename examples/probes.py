# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the patch features of an encoder know of the objects in drawn scenes, read by linear probes.

    python examples/probes.py --model my-scenes

The feature of an object is the mean of the last layer's patch features, each weighted by the share of the object's
visible pixels that lie in the patch. On 1,500 scenes of the split "train" the script fits, for each fact, one linear
layer on standardised features: logistic regression for shape and colour, ridge regression for the position. It then
measures on scenes that neither the encoder nor the probes have seen:

- shape, colour: share of the objects that are classified right;
- position: share of the objects whose centre of mass, over the visible pixels, is predicted with an error of at most
  5 % of the picture's side in both directions.

"seen" are combinations of colour and shape that training shows, "unseen" are those that it holds out.
Needs `pip install '.[eval]'`.
"""

import argparse
from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from drawn_scenes import COLOURS, Scene, SceneGenerator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from eupe_hf import EupeBackbone, EupeForMultiTask, EupeImageProcessor
from eupe_hf.evaluation import ClassificationMetrics, DepthMetrics, SegmentationMetrics, average_precision


TOLERANCE = 0.05  # of the side


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/probes.py --model my-scenes --size 192",
    )
    parser.add_argument("--model", required=True, help="folder of an encoder, or of a model with several heads")
    parser.add_argument("--side", type=int, default=96, help="side of the scenes in pixels (default: 96)")
    parser.add_argument("--size", type=int, help="side to which the processor resizes them; default: as saved")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes to measure on (default: 0)")
    return parser.parse_args()


@torch.inference_mode()
def object_features(
    backbone: EupeBackbone, processor: EupeImageProcessor, scenes: Iterable[Scene], size: int | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features of all visible objects (N, C), and their `shape` (N,), `colour` (N,) and `position` (N, 2) in [0, 1].

    Args:
        backbone: Its last feature map is read.
        processor: Of the encoder.
        scenes: The scenes, of one side.
        size: Side in pixels to which the pictures are resized; by default as the processor was saved.
    """
    features, facts, scenes = [], [], iter(scenes)
    options = {} if size is None else {"size": {"height": size, "width": size}}
    while batch := [*islice(scenes, 32)]:
        inputs = processor([scene.picture for scene in batch], **options, return_tensors="pt").to(backbone.device)
        for scene, feature_map in zip(batch, backbone(**inputs).feature_maps[-1].cpu(), strict=True):
            for number, thing in enumerate(scene.objects, start=1):
                mask = torch.from_numpy(scene.instances == number).float()
                weights = functional.adaptive_avg_pool2d(mask[None], feature_map.shape[1:])
                features.append((feature_map * weights).sum(dim=(1, 2)) / weights.sum())  # (C,)
                centre = mask.nonzero().float().add(0.5).mean(dim=0) / len(mask)  # row, column
                facts.append((thing.label, [*COLOURS].index(thing.colour), *centre.tolist()))
    table = np.array(facts)
    names = {"shape": table[:, 0].astype(int), "colour": table[:, 1].astype(int), "position": table[:, 2:]}
    return torch.stack(features).numpy(), names


def probe(
    backbone: EupeBackbone,
    processor: EupeImageProcessor,
    side: int = 96,
    size: int | None = None,
    seed: int = 0,
    counts: tuple[int, int] = (1500, 500),
) -> dict[str, dict[str, float]]:
    """Shares of objects that linear probes get right: `{"shape": {"seen": 0.98, "unseen": 0.97}, ...}`.

    Args:
        backbone: The encoder.
        processor: Its image processor.
        side: Side of the scenes in pixels.
        size: Side to which they are resized.
        seed: Of the scenes to measure on; the probes learn from seed + 1, which the encoder has not seen either.
        counts: Scenes to learn from, and of each split to measure on.
    """
    learned = SceneGenerator(side, seed + 1, "train").scenes(counts[0])
    features, facts = object_features(backbone, processor, learned, size)
    probes = {}
    for name, values in facts.items():
        linear = Ridge(1.0) if name == "position" else LogisticRegression(max_iter=1000)
        probes[name] = make_pipeline(StandardScaler(), linear).fit(features, values)
    shares: dict[str, dict[str, float]] = {name: {} for name in probes}
    for what, split in (("seen", "test"), ("unseen", "unseen")):
        features, facts = object_features(
            backbone, processor, SceneGenerator(side, seed, split).scenes(counts[1]), size
        )
        for name, fitted in probes.items():
            predicted = fitted.predict(features)
            right = predicted == facts[name]
            if name == "position":
                right = (np.abs(predicted - facts[name]) <= TOLERANCE).all(axis=1)
            shares[name][what] = float(right.mean())
    return shares


def report(shares: dict[str, dict[str, float]]) -> str:
    """Lines for the console."""
    rows = [f"{name:14}{value['seen']:6.3f}{value['unseen']:8.3f}" for name, value in shares.items()]
    return "\n".join(["linear probes   seen  unseen", *rows])


@torch.inference_mode()
def measure(
    model: EupeForMultiTask, processor: EupeImageProcessor, side: int = 96, count: int = 200
) -> dict[str, float]:
    """Scores of the heads of `learn_drawn_scenes.py` on scenes of the split "test"."""
    labels = {name: model.config.head_config(name).num_labels for name in ("count", "parts", "colours")}
    counts, depth = ClassificationMetrics(labels["count"]), DepthMetrics()
    maps = {name: SegmentationMetrics(labels[name]) for name in ("parts", "colours")}
    found, true, size = [], [], [(side, side)]
    for scene in SceneGenerator(side, split="test").scenes(count):
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


def main() -> None:
    """Load, probe, print."""
    arguments = parse_arguments()
    try:
        backbone = EupeForMultiTask.from_pretrained(arguments.model).eupe
    except ValueError:  # not a model with several heads
        backbone = EupeBackbone.from_pretrained(arguments.model)
    processor = EupeImageProcessor.from_pretrained(arguments.model)
    print(report(probe(backbone.eval(), processor, arguments.side, arguments.size, arguments.seed)))


if __name__ == "__main__":
    main()
