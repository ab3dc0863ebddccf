# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Compute global features of a large folder of images with `datasets.map`, in several processes or on many machines.

    python examples/features_datasets.py photos --output features --num_proc 4
    python examples/features_datasets.py photos --output features --num_shards 8 --index 3

The second line runs on the fourth of eight machines that share the folders: each writes one parquet file, and
`eupe search photo.jpg --index features` reads them all. Images that can't be read are left out and counted. On one
machine with one GPU, `eupe features` is simpler, and continues a stopped run.
"""

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path

import torch
from transformers import logging as transformers_logging

from eupe_hf import EupeModel
from eupe_hf.features import ImageReader, encode_images, feature_table, find_images, write_features
from eupe_hf.loading import load_encoder, load_processor
from eupe_hf.staging import staged_file


try:
    from datasets import Dataset, Features, List, Value
except ImportError:
    sys.exit("features_datasets.py: this needs datasets: pip install 'eupe-hf[train]'.")

COLUMNS = Features({"path": Value("string"), "features": List(Value("float32"))})


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/features_datasets.py photos --output features --model eupe-t --num_proc 4",
    )
    parser.add_argument("images", nargs="+", type=Path, help="images, and folders of images")
    parser.add_argument("--output", type=Path, required=True, help="folder for the parquet files")
    parser.add_argument("--model", default="eupe-s", help="a short name, a Hub id or a folder (default: eupe-s)")
    parser.add_argument("--size", type=int, help="resize images to this side in pixels (default: the model's)")
    add = parser.add_argument
    add("--batch_size", "--batch-size", type=int, default=32, help="images per forward pass (default: 32)")
    add("--num_proc", "--num-proc", type=int, default=os.cpu_count(), help="processes (default: one per core)")
    add("--num_shards", "--num-shards", type=int, default=1, help="machines that share the work (default: 1)")
    parser.add_argument("--index", type=int, default=0, help="number of this machine, from 0 (default: 0)")
    parser.add_argument("--device", help="where to run: cpu, cuda, ... (default: the accelerator, else cpu)")
    arguments = parser.parse_args()
    if not 0 <= arguments.index < arguments.num_shards:
        parser.error(f"--index must lie between 0 and --num_shards - 1, which is {arguments.num_shards - 1}")
    return arguments


@functools.cache
def encoder_of_this_process(model: str, device: str | None, threads: int) -> EupeModel:
    """Load once in each process, after the fork, which torch's threads do not survive."""
    torch.set_num_threads(threads)
    return load_encoder(model, device)


def compute(paths: list[str], model: str, device: str | None, reader: ImageReader, threads: int) -> dict[str, list]:
    """Features of a batch, without the images that can't be read."""
    batch = reader[paths]
    features = encode_images(encoder_of_this_process(model, device, threads), batch)
    return {"path": batch.paths, "features": features.numpy()}


def main() -> None:
    """List, take a shard, compute, write."""
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of loading, in each process
    shards, index = arguments.num_shards, arguments.index
    output = arguments.output / f"features-{index:05d}-of-{shards:05d}.parquet"
    try:
        if output.exists():
            raise ValueError(f"{output} already exists: remove it to compute it again.")
        # 1. Every machine lists the same images and takes its own.
        images = Dataset.from_dict({"path": list(map(str, find_images(arguments.images)))})
        if shards > len(images):
            raise ValueError(f"There are {len(images)} images: --num_shards can't be {shards}.")
        images = images.shard(shards, index, contiguous=True)
        processes = min(arguments.num_proc, len(images))

        # 2. Each process loads the encoder once and takes a share of the images; results are kept on disk.
        options = {
            "model": arguments.model,
            "device": arguments.device,  # looked up in each process: a GPU in use does not survive the fork
            "reader": ImageReader(load_processor(arguments.model, arguments.size)),
            "threads": max(1, os.cpu_count() // processes),
        }
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".map-", dir=arguments.output) as scratch:
            encoded = images.map(
                compute, batched=True, batch_size=arguments.batch_size, input_columns="path", fn_kwargs=options,
                features=COLUMNS, num_proc=processes, new_fingerprint="features", load_from_cache_file=False,
                cache_file_name=str(Path(scratch) / "features.arrow"), desc="features",
            )  # fmt: skip

            # 3. Write one parquet file, which names the model.
            schema = feature_table([], torch.empty(0, 0), {"model": arguments.model}).schema
            rows = encoded.with_format("torch").iter(batch_size=2048)
            with staged_file(output) as file:
                write_features(file, (feature_table(row["path"], row["features"]) for row in rows), schema)
    except (OSError, ValueError) as error:
        sys.exit(f"features_datasets.py: {error}")
    print(f"Saved {output}: {len(encoded)} images, {len(images) - len(encoded)} unreadable ones left out.")


if __name__ == "__main__":
    main()
