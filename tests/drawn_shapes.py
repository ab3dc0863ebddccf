# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures with drawn shapes for detectors, and the average precision of the boxes found in them.

They are not the scenes of `examples/drawn_scenes.py`: the figures of the detectors, in the tests and in
tests/benchmarks, were measured on these pictures.
"""

import torch
from transformers.image_transforms import center_to_corners_format

from eupe_hf.models.modeling_eupe_detection_loss import overlap


NAMES = ("square", "disc", "triangle")


def draw_shapes(
    count: int, side: int, seed: int, smallest: float = 0.15
) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Noise with one to three coloured shapes of `smallest` to 0.5 of the side, and labels as detectors take them.

    Returns:
        (count, 3, side, side), and per picture `class_labels` (n,) and `boxes` (n, 4), normalised.
    """
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(side) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images, labels = 0.3 * torch.randn(count, 3, side, side, generator=generator), []
    for image in images:
        kinds, boxes = [], []
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            for _ in range(20):  # tries until it does not overlap the others
                size = side * smallest * (0.5 / smallest) ** float(torch.rand((), generator=generator))
                place = size / 2 + torch.rand(2, generator=generator) * (side - size)
                if all((place - other[:2]).abs().max() > 0.4 * (size + other[2]) for other in boxes):
                    kinds.append(int(torch.randint(0, len(NAMES), (), generator=generator)))
                    boxes.append(torch.tensor([*place, size, size]))
                    dx, dy = (x - place[0]).abs(), y - place[1]
                    inside = (dx <= size / 2) & (dy.abs() <= size / 2)
                    if NAMES[kinds[-1]] == "disc":
                        inside = dx**2 + dy**2 <= (size / 2) ** 2
                    elif NAMES[kinds[-1]] == "triangle":
                        inside &= dx <= (dy + size / 2) / 2
                    colour = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
                    noise = 0.2 * torch.randn(3, int(inside.sum()), generator=generator)
                    image[:, inside] = 2 * colour[:, None] + noise
                    break
        labels.append({"class_labels": torch.tensor(kinds), "boxes": torch.stack(boxes) / side})
    return images, labels


def average_precision(
    results: list[dict[str, torch.Tensor]], labels: list[dict[str, torch.Tensor]], threshold: float = 0.5
) -> float:
    """COCO's AP at one overlap: the mean over the classes of the precision at 101 recalls.

    Args:
        results: From `post_process_object_detection` without target sizes, low scores included.
        labels: The true classes and boxes.
        threshold: The overlap from which a box counts as found.
    """
    precisions = []
    for kind in range(len(NAMES)):
        hits, total = [], 0
        for found, label in zip(results, labels, strict=True):
            truth = center_to_corners_format(label["boxes"][label["class_labels"] == kind])
            chosen = found["labels"] == kind
            overlaps = overlap(found["boxes"][chosen], truth)
            total += len(truth)
            for score, row in zip(found["scores"][chosen].tolist(), overlaps, strict=True):
                best = int(row.argmax()) if len(truth) else -1
                hit = best >= 0 and float(row[best]) >= threshold
                hits.append((score, hit))
                if hit:
                    overlaps[:, best] = -1  # an object is found once
        found_so_far = torch.tensor([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], dtype=float).cumsum(0)
        precision = found_so_far / torch.arange(1, len(hits) + 1)
        recalls = torch.linspace(0, 1, 101, dtype=float)
        at = [precision[found_so_far >= recall * total - 1e-9] for recall in recalls]
        precisions.append(sum(float(part.max()) if len(part) else 0.0 for part in at) / len(recalls))
    return sum(precisions) / len(precisions)
