# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluate a model on a data set by one of the paper's protocols. Needs `pip install 'eupe-hf[eval]'`.

- knn: an encoder classifies the images of --split by their neighbours in --train-split; the label is a class.
- segmentation: for an `EupeForSegmentation`; the label is a map of classes.
- depth: for an `EupeForDepthEstimation`; the label is a depth map.
- correspondence: an encoder finds points of one image in another. Both images list the same points in pixels, as
  [[x, y], ...] with [null, null] where a point is not visible; the second has the box of its object, [left, top,
  right, bottom].
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from eupe_hf import EupeBackbone, EupeForDepthEstimation, EupeForSegmentation, EupeModel, evaluation
from eupe_hf.data.loading import load_split
from eupe_hf.data.rows import Rows
from eupe_hf.loading import load_encoder, load_processor, load_task_model


EXAMPLE = """examples:
  python examples/evaluate.py --protocol knn --model eupe-s --dataset imagenet-1k --output knn.json
  python examples/evaluate.py --protocol segmentation --model my-segmenter --dataset my-folder --reduce-labels
"""
COLUMNS = {  # what each protocol reads, and the usual names of those columns
    "knn": {"image": "image", "label": "label"},
    "segmentation": {"image": "image", "label": "annotation"},
    "depth": {"image": "image", "label": "depth_map"},
    "correspondence": {
        "image": "source_image", "points": "source_points",
        "target_image": "target_image", "target_points": "target_points", "target_box": "target_box",
    },
}  # fmt: skip
OPTIONS = {  # what each protocol's scores depend on, with its usual value
    "knn": {"size": 224, "k": list(evaluation.KNN_K), "train_split": "train"},
    "segmentation": {"size": 512, "reduce_labels": False, "whole_image": False},
    "depth": {"depth_scale": 1.0, "max_depth": 10.0, "eigen_crop": False, "no_flip": False},
    "correspondence": {"size": 512, "alpha": 0.1},
}


def parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Read the command line. Returns the parser too, which reports errors."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(flag: str, **options: Any) -> None:
        parser.add_argument(*dict.fromkeys((flag, f"--{flag[2:].replace('-', '_')}")), **options)

    add("--protocol", choices=list(COLUMNS), required=True)
    add("--model", required=True, help="a short name, a Hub id, or the folder of a model or adapter")
    add("--dataset", required=True, help="a Hub id, or a folder of images, of parquet files, or from save_to_disk")
    add("--config", help="configuration of the data set, if it has several")
    add("--split", default="validation", help="the split to evaluate (default: %(default)s)")
    for key in dict.fromkeys(key for columns in COLUMNS.values() for key in columns):
        usual = ", ".join(f"{columns[key]} for {name}" for name, columns in COLUMNS.items() if key in columns)
        add(f"--{key.replace('_', '-')}-column", metavar="NAME", help=f"default: {usual}")
    add("--size", type=int, metavar="PIXELS", help="side of the input (default: 224 for knn, else 512; not for depth)")
    add("--train-split", help="knn: the split with the neighbours (default: train)")
    add("--k", type=int, nargs="+", help="knn: numbers of neighbours (default: 10 20 100 200)")
    add("--reduce-labels", action="store_true", default=None, help="segmentation: 0 is ignored, 1 the first class")
    add("--whole-image", action="store_true", default=None, help="segmentation: no sliding window")
    add("--depth-scale", type=float, help="depth: the value of one metre in the maps; 1000 for mm (default: 1)")
    add("--max-depth", type=float, help="depth: largest depth to count, in metres (default: 10)")
    add("--eigen-crop", action="store_true", default=None, help="depth: the crop of NYUv2")
    add("--no-flip", action="store_true", default=None, help="depth: no average with the mirrored image")
    add("--alpha", type=float, help="correspondence: largest distance, in box sides (default: 0.1)")
    add("--limit", type=int, metavar="N", help="evaluate N rows only, evenly spaced over the split")
    add("--batch-size", type=int, default=32, help="images for knn, windows for segmentation (default: %(default)s)")
    add("--workers", type=int, default=0, help="knn: processes that read images (default: %(default)s)")
    add("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    add("--output", type=Path, metavar="FILE", help="write metrics, settings and model-index metadata as JSON")
    args = parser.parse_args(arguments)
    for name in sorted({name for options in OPTIONS.values() for name in options}):
        flag, value = f"--{name.replace('_', '-')}", getattr(args, name)
        if value is not None and name not in OPTIONS[args.protocol]:
            parser.error(f"{flag} is not an option of --protocol {args.protocol}")
    for name in ("size", "limit", "batch_size", "max_depth", "depth_scale"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, got {getattr(args, name)}")
    if args.output is not None and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        parser.error(f"--output {args.output} must be a file in a folder that exists")
    given = {name: getattr(args, name) for name in OPTIONS[args.protocol] if getattr(args, name) is not None}
    args.settings = {**OPTIONS[args.protocol], **given, **({"limit": args.limit} if args.limit else {})}
    args.columns = {key: getattr(args, f"{key}_column") or name for key, name in COLUMNS[args.protocol].items()}
    return parser, args


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model that the protocol needs, and its image processor."""
    heads = {"segmentation": EupeForSegmentation, "depth": EupeForDepthEstimation}
    model: Any
    if args.protocol in heads:
        model, needed = load_task_model(args.model, args.device), heads[args.protocol]
        if not isinstance(model, needed):
            raise ValueError(
                f"{args.model} is an {type(model).__name__ if model else 'EupeModel'} and has no head for "
                f"{args.protocol}: train an {needed.__name__} on its encoder, save it, and name that folder."
            )
    else:
        model = load_encoder(args.model, args.device, EupeModel if args.protocol == "knn" else EupeBackbone)
    return model, load_processor(args.model)


def evaluate(args: argparse.Namespace, data: Any) -> dict[str, float]:
    """Run the model on the data and compute the metrics."""
    model, processor = load_model(args)
    settings, size = args.settings, args.settings.get("size")
    if args.protocol == "knn":
        bank = load_split(args.dataset, settings["train_split"], args.columns, args.config, args.limit)
        if max(settings["k"]) > len(bank):
            raise ValueError(f"The split {settings['train_split']!r} has {len(bank)} images: choose a --k up to that.")
        label = args.columns["label"]
        classes = {name: i for i, name in enumerate(sorted({*bank[label], *data[label]}))}
        (known, known_ids), (new, ids) = (
            evaluation.extract_features(
                model, processor, Rows(part, args.columns, classes), size, args.batch_size, args.workers
            )
            for part in (bank, data)
        )
        return evaluation.knn_accuracy(known, known_ids, new.to(model.device), ids, k=settings["k"])
    metrics: Any
    if args.protocol == "segmentation":
        config = model.config
        metrics = evaluation.SegmentationMetrics(
            config.num_labels, config.semantic_loss_ignore_index, settings["reduce_labels"]
        )
    elif args.protocol == "depth":
        metrics = evaluation.DepthMetrics(model.config.min_depth, settings["max_depth"], settings["eigen_crop"])
    else:
        metrics = evaluation.CorrespondenceMetrics(settings["alpha"])
    for row, cells in enumerate(logging.tqdm(Rows(data, args.columns), desc=args.protocol)):
        score(args, model, processor, metrics, row, cells)
    return metrics.compute()


def score(args: argparse.Namespace, model: Any, processor: Any, metrics: Any, row: int, cells: Sequence[Any]) -> None:
    """Run the model on one row and update the metrics."""
    settings, size = args.settings, args.settings.get("size")
    try:
        if args.protocol == "segmentation":
            image, label_map = cells
            sliding = not settings["whole_image"]
            found = evaluation.predict_label_map(model, processor, image, size, sliding, args.batch_size)
            metrics.update(found, label_map)
        elif args.protocol == "depth":
            image, depth = cells
            found = evaluation.predict_depth(model, processor, image, not settings["no_flip"])
            metrics.update(found, depth.float() / settings["depth_scale"])
        else:
            image, points, target, target_points, box = cells
            if points.shape != target_points.shape or points.shape[1:] != (2,):
                raise ValueError("the two images must have the same number of points, [x, y] each.")
            seen = (points.isfinite() & target_points.isfinite()).all(dim=1)
            found = evaluation.predict_keypoints(model, processor, image, target, points[seen], size)
            metrics.update(found, target_points[seen], box.tolist())
    except ValueError as error:
        raise ValueError(f"Row {row}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script. Bad input exits with code 2 and a one-line message."""
    parser, args = parse(arguments)
    try:
        data = load_split(args.dataset, args.split, args.columns, args.config, args.limit)
        metrics = evaluate(args, data)
        result = evaluation.EvaluationResult(
            args.protocol, args.model, args.dataset, args.split, len(data), metrics, args.settings, args.config
        )
        if args.output is not None:
            result.save(args.output)
    except (ImportError, OSError, TypeError, ValueError) as error:
        message = re.split(r"\b\w+Error: ", str(error))[-1]  # without the traceback of a worker
        parser.exit(2, f"{parser.prog}: {' '.join(message.split())}\n")
    print(f"{args.protocol} of {args.model} on {len(data)} rows of {args.dataset} ({args.split})")
    print("\n".join(f"{name:<20}{value:>9.4f}" for name, value in metrics.items()))
    if args.output is not None:
        print(f"Wrote {args.output}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
