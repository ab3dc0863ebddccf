# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the patch features of an encoder know of the objects in drawn scenes, read by linear probes.

    python examples/probes.py --model my-scenes

The feature of an object is the mean of the last layer's patch features, each weighted by the number of the object's
visible pixels in the patch. On 1,500 scenes of the split "train", the script fits one linear layer per fact: softmax
regression for shape and colour, ridge regression for the position. It measures on scenes that neither the encoder nor
the probes have seen:

- shape, colour: the share of objects that are classified correctly;
- position: the share of objects whose centre of mass, over the visible pixels, is predicted to within 5 % of the
  picture's side in both directions.

"seen" are combinations of colour and shape from training, "unseen" are held out. A plain softmax would learn the gaps:
where red discs are held out, red would count against discs. So `cross_entropy` compares only classes that occur
together with the object's other property in training.
"""

import argparse
from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from drawn_scenes import COLOURS, SHAPES, Scene, SceneGenerator
from torch.nn import functional

from eupe_hf import EupeBackbone, EupeForMultiTask, EupeImageProcessor


TOLERANCE = 0.05  # of the side
NAMES = [*COLOURS]


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


def object_features(
    feature_maps: torch.Tensor, scenes: Sequence[Scene]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean patch features of each object, over its visible pixels, and the facts about it.

    Args:
        feature_maps: (B, C, H, W), of a backbone.
        scenes: The B scenes.

    Returns:
        (N, C), and by name `shape` (N,), `colour` (N,) and `position` (N, 2): row and column in [0, 1].
    """
    features, kinds, places = [], [], []
    for scene, feature_map in zip(scenes, feature_maps, strict=True):
        for number, thing in enumerate(scene.objects, start=1):
            mask = torch.from_numpy(scene.instances == number).float()
            weights = functional.adaptive_avg_pool2d(mask[None], feature_map.shape[1:]).to(feature_map)
            features.append((feature_map * weights).sum(dim=(1, 2)) / weights.sum())  # (C,)
            kinds.append((thing.label, NAMES.index(thing.colour)))
            places.append(mask.nonzero().float().add(0.5).mean(dim=0) / len(mask))
    shape, colour = torch.tensor(kinds).unbind(dim=1)
    return torch.stack(features), {"shape": shape, "colour": colour, "position": torch.stack(places)}


def cross_entropy(logits: torch.Tensor, facts: dict[str, torch.Tensor], name: str, seen: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of shapes or colours, among those that occur together with the object's colour or shape.

    Args:
        logits: (N, classes).
        facts: From `object_features`.
        name: "shape" or "colour".
        seen: From `seen_together`.
    """
    possible = seen[:, facts["colour"]].T if name == "shape" else seen[facts["shape"]]  # (N, classes)
    return functional.cross_entropy(logits.masked_fill(~possible, -torch.inf), facts[name])


def seen_together(combinations: Iterable[tuple[str, str]]) -> torch.Tensor:
    """(shapes, colours) bool: which of them occur together."""
    seen = torch.zeros(len(SHAPES), len(COLOURS), dtype=torch.bool)
    for colour, shape in combinations:
        seen[SHAPES.index(shape), NAMES.index(colour)] = True
    return seen


def fit(features: torch.Tensor, facts: dict[str, torch.Tensor], name: str, seen: torch.Tensor) -> torch.nn.Linear:
    """The linear layer that predicts a fact best, with weight decay, from standardised features."""
    if name == "position":
        augmented = torch.cat((features, torch.ones(len(features), 1)), dim=1)
        ridge = torch.eye(augmented.shape[1])
        solution = torch.linalg.solve(augmented.T @ augmented + ridge, augmented.T @ facts[name])
        layer = torch.nn.Linear(features.shape[1], 2).requires_grad_(False)
        layer.weight.copy_(solution[:-1].T)
        layer.bias.copy_(solution[-1])
        return layer
    layer = torch.nn.Linear(features.shape[1], len(SHAPES) if name == "shape" else len(COLOURS))
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(layer(features), facts, name, seen) + layer.weight.square().sum() / (2 * len(features))
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer.requires_grad_(False)


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
        backbone: The encoder; its last feature map is read.
        processor: Its image processor.
        side: Side of the scenes in pixels.
        size: Side to which the pictures are resized; by default as the processor was saved.
        seed: Of the scenes to measure on. The probes learn from seed + 1, which the encoder has not seen either.
        counts: Scenes to learn from, and scenes of each split to measure on.
    """
    options = {} if size is None else {"size": {"height": size, "width": size}}

    @torch.no_grad()
    def read(generator: SceneGenerator, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scenes, parts = generator.scenes(count), []
        while batch := [*islice(scenes, 32)]:
            inputs = processor([scene.picture for scene in batch], **options, return_tensors="pt").to(backbone.device)
            parts.append(object_features(backbone(**inputs).feature_maps[-1].float().cpu(), batch))
        facts = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
        return torch.cat([part[0] for part in parts]), facts

    learned = SceneGenerator(side, seed + 1, "train")
    features, facts = read(learned, counts[0])
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    features, seen = (features - mean) / deviation, seen_together(learned.combinations)
    probes = {name: fit(features, facts, name, seen) for name in facts}
    shares: dict[str, dict[str, float]] = {name: {} for name in probes}
    for what, split in (("seen", "test"), ("unseen", "unseen")):
        features, facts = read(SceneGenerator(side, seed, split), counts[1])
        for name, layer in probes.items():
            predicted = layer((features - mean) / deviation)
            if name == "position":
                right = ((predicted - facts[name]).abs() <= TOLERANCE).all(dim=1)
            else:
                right = predicted.argmax(dim=1) == facts[name]
            shares[name][what] = float(right.float().mean())
    return shares


def report(shares: dict[str, dict[str, float]]) -> str:
    """Lines for the console."""
    rows = [f"{name:14}{value['seen']:6.3f}{value['unseen']:8.3f}" for name, value in shares.items()]
    return "\n".join(["linear probes   seen  unseen", *rows])


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
