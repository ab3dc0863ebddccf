# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Compute global features of a large folder of images with Ray Data, on one machine or a cluster.

    python examples/features_ray.py photos --output features
    python examples/features_ray.py /shared/photos --output /shared/features --address auto --encoders 16 --gpus 1

Actors load the encoder once and compute features. Tasks on other cores read images for an actor with a GPU or several
cores; an actor with one core reads its own, which saves copies. The output is a folder of parquet files, which
`eupe search photo.jpg --index features` reads. Images that can't be read are left out and counted. All machines of a
cluster must see both folders. Needs `pip install 'ray[data]'`.
"""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import logging as transformers_logging

from eupe_hf.features import ImageBatch, ImageReader, encode_images, feature_table, find_images, read_features
from eupe_hf.loading import load_encoder, load_processor


os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported
try:
    import ray
except ImportError:
    sys.exit("features_ray.py: this needs Ray: pip install 'ray[data]'.")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/features_ray.py photos --output features --model eupe-t",
    )
    parser.add_argument("images", nargs="+", type=Path, help="images, and folders of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the parquet files")
    parser.add_argument("--model", default="eupe-s", help="a short name, a Hub id or a folder (default: eupe-s)")
    parser.add_argument("--size", type=int, help="resize images to this side in pixels (default: the model's)")
    size = "images per forward pass (default: 32)"
    parser.add_argument("--batch_size", "--batch-size", type=int, default=32, help=size)
    parser.add_argument("--encoders", type=int, default=1, help="actors that compute (default: 1)")
    parser.add_argument("--cpus", type=float, default=1, help="cores per actor (default: 1)")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs per actor (default: 0)")
    parser.add_argument("--address", help="a running cluster, for example auto (default: this machine alone)")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    return parser.parse_args()


def read(batch: dict[str, np.ndarray], reader: ImageReader) -> dict[str, np.ndarray]:
    """Read images for the model, without those that can't be read."""
    found = reader[list(map(str, batch["path"]))]
    if found.paths and isinstance(found.pixel_values, list):
        raise ValueError("The processor makes images of several sizes: give --size.")
    pixel_values = np.asarray(found.pixel_values) if found.paths else np.empty((0, 3, 1, 1), dtype=np.float32)
    return {"path": np.array(found.paths, dtype=object), "pixel_values": pixel_values}


class Encode:
    """An actor with an encoder."""

    def __init__(self, model: str, device: str | None):
        self.name, self.model = model, load_encoder(model, device)

    def __call__(self, batch: dict[str, np.ndarray]):
        """A pyarrow table of paths and features."""
        images = ImageBatch(list(batch["path"]), torch.tensor(batch["pixel_values"]), {})
        return feature_table(images.paths, encode_images(self.model, images), {"model": self.name})


def start(arguments: argparse.Namespace) -> None:
    """Join the cluster, or start Ray here. Ray would wait forever for cores or GPUs that are not there."""
    # driver, tasks and actors of a run on this machine alone talk over 127.0.0.1
    local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    where = {"address": arguments.address} if arguments.address else {"address": "local", **local}
    ray.init(logging_level=logging.WARNING, log_to_driver=False, **where)
    there = ray.cluster_resources()
    cpus, gpus = arguments.encoders * arguments.cpus, arguments.encoders * arguments.gpus
    if cpus + 1 > there["CPU"] or gpus > there.get("GPU", 0):
        raise ValueError(
            f"{arguments.encoders} encoders need {cpus:g} cores, one more to read and write, and {gpus:g} GPUs: "
            f"there are {there['CPU']:g} cores and {there.get('GPU', 0):g} GPUs."
        )


def compute(paths: list[str], folder: Path, arguments: argparse.Namespace) -> None:
    """Read, encode and write, streamed."""
    reader = ImageReader(load_processor(arguments.model, arguments.size))
    start(arguments)
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    blocks = max(arguments.encoders, len(paths) // (8 * arguments.batch_size))
    images = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=min(blocks, len(paths)))
    images = images.map_batches(read, fn_kwargs={"reader": reader}, batch_size=arguments.batch_size)
    encoded = images.map_batches(
        Encode, fn_constructor_args=[arguments.model, arguments.device], batch_size=arguments.batch_size,
        compute=ray.data.ActorPoolStrategy(size=arguments.encoders),
        num_cpus=arguments.cpus, num_gpus=arguments.gpus,
    )  # fmt: skip
    encoded.write_parquet(str(folder.absolute()), min_rows_per_file=10_000)


def main() -> None:
    """List, compute, count."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    output, unfinished = arguments.output, arguments.output.with_name(f".{arguments.output.name}.part")
    try:
        if output.exists():
            raise ValueError(f"{output} already exists: remove it, or name another folder.")
        paths = list(map(str, find_images(arguments.images)))
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        compute(paths, unfinished, arguments)
        unfinished.replace(output)
        count = len(read_features(output).paths)
    except (OSError, ValueError, ray.exceptions.RayError) as error:
        sys.exit(f"features_ray.py: {error}")
    print(f"Saved {output}: {count} images, {len(paths) - count} unreadable ones left out.")


if __name__ == "__main__":
    main()
