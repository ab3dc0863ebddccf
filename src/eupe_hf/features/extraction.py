# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Global features of many images in one file, by a run that you can kill at any point and repeat.

A run writes parts of some thousand images into a hidden folder beside the output, each moved into place when it is
whole, and joins them at the end. A repeated run continues after the parts it finds. A part is a feature file like the
output, and says in its metadata what computed it. `eupe features` is this on the command line.
"""

import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import Timeout
from huggingface_hub.utils import WeakFileLock
from torch.utils.data import BatchSampler, DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import ImageInput
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from eupe_hf.data.rows import UnreadableError
from eupe_hf.data.workers import hand_over, read_in_workers
from eupe_hf.extras import require
from eupe_hf.staging import full_disk, staged_file

from .files import FeatureFile, feature_table, join_features, read_metadata, write_features


_PART_BATCHES = 64  # batches of images in a part: what a killed run loses at most
_LOCK_SECONDS = 10.0  # processes that read images outlive a killed run by some seconds, and may hold its lock


@dataclass(frozen=True)
class FeatureSummary:
    """What `save_features` did."""

    count: int  # images with features in the file
    skipped: dict[str, str]  # paths of images that could not be read, each with the reason
    resumed: int  # images that an earlier run had processed


class ImageBatch(NamedTuple):
    """A batch of images, ready for a model.

    Attributes:
        paths: The images that could be read.
        pixel_values: (N, 3, H, W), as `hand_over` returns them; a list of arrays (3, H, W) where the images differ in
            size, or there are none.
        skipped: Paths of the other images, each with the reason.
    """

    paths: list[str]
    pixel_values: torch.Tensor | np.ndarray | list[np.ndarray]
    skipped: dict[str, str]


class ImageReader(Dataset):
    """Reads batches of image files with a model's image processor. Engines for large jobs call it in their processes.

    It holds no list of files, of which every process would in time have a copy.

    Raises:
        ValueError: The processor takes no image at all, for example because of its size.
    """

    def __init__(self, processor: BaseImageProcessor):
        self.processor: Any = processor
        # from here on, what the processor refuses is a matter of the image
        self.processor(np.zeros((64, 64, 3), dtype=np.uint8), return_tensors="pt")

    def __getitem__(self, paths: Sequence[str]) -> ImageBatch:
        """Read the files at these paths; `skipped` lists those that can't be read."""
        pictures: dict[str, torch.Tensor] = {}
        skipped: dict[str, str] = {}
        for path in paths:
            picture = self.read_or_reason(Path(path))
            if isinstance(picture, UnreadableError):
                skipped[path] = str(picture)
            else:
                pictures[path] = picture[0]
        images = list(pictures.values())
        if len({image.shape for image in images}) == 1:
            return ImageBatch(list(pictures), hand_over(torch.stack(images)), skipped)
        return ImageBatch(list(pictures), [image.numpy() for image in images], skipped)

    def read_or_reason(self, image: ImageInput) -> torch.Tensor | UnreadableError:
        """As `read`, but returns the error, so that work on many images can go on."""
        try:
            return self.read(image)
        except UnreadableError as error:
            return error

    def read(self, image: ImageInput) -> torch.Tensor:
        """Read one image: `pixel_values` (1, 3, H, W). Raises `UnreadableError`, in one line, if it can't be read."""
        try:
            return self.processor(image, return_tensors="pt")["pixel_values"]
        except (OSError, ValueError) as error:
            message = " ".join(str(error).split())
            is_unnamed = isinstance(image, (str, os.PathLike)) and os.fspath(image) not in message
            raise UnreadableError(f"{image}: {message}" if is_unnamed else message) from error


def encode_images(model: PreTrainedModel, batch: ImageBatch) -> torch.Tensor:
    """Compute the global features of a batch, for example with `EupeModel`: (N, C), float32, on the CPU.

    Raises:
        ValueError: The images differ in size.
    """
    if not batch.paths:
        return torch.empty(0, model.config.hidden_size)
    if isinstance(batch.pixel_values, list):
        shapes = sorted({tuple(image.shape) for image in batch.pixel_values})
        raise ValueError(f"The processor makes images of several sizes, {shapes}: set its size to a height and width.")
    with torch.inference_mode():
        pixel_values = torch.as_tensor(batch.pixel_values).to(model.device, model.dtype)
        return model(pixel_values).pooler_output.float().cpu()


def compute_features(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    paths: Sequence[str | os.PathLike],
    batch_size: int = 32,
    num_workers: int = 2,
) -> FeatureFile:
    """Compute global features in memory; arguments as in `save_features`. Images that can't be read are `skipped`."""
    names: list[str] = []
    features: list[torch.Tensor] = []
    skipped: dict[str, str] = {}
    for batch in _read(processor, [os.fspath(path) for path in paths], batch_size, num_workers):
        names += batch.paths
        features.append(encode_images(model, batch))
        skipped |= batch.skipped
    return FeatureFile(names, torch.cat(features), str(model.name_or_path), skipped)


def save_features(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    paths: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    batch_size: int = 32,
    num_workers: int = 2,
    strict: bool = False,
    overwrite: bool = False,
) -> FeatureSummary:
    """Compute the global feature of each image and write them to one file.

    Repeat a run that was stopped, with the same arguments, and it continues: the file is the same, bit for bit, as one
    written without a stop. Memory grows with the number of images by their paths only.

    Args:
        model: A model with `pooler_output`, for example `EupeModel`, in eval mode and on the device to use.
        processor: Its image processor, which must make images of one size.
        paths: The images; an image named twice counts once.
        output: The `.parquet` file to write; needs pyarrow.
        batch_size: Images per forward pass.
        num_workers: Processes that read images.
        strict: Raise an error for an image that can't be read, instead of leaving it out.
        overwrite: Start again from the first image, and replace an existing file.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: A file can't be written, for example because the disk is full: free space and repeat the run.
        ValueError: The output does not end in .parquet, holds features of other images or another model, or another
            run is writing it; the images differ in size; or, with `strict`, an image can't be read.
    """
    output, files = Path(output), list(dict.fromkeys(os.fspath(Path(path)) for path in paths))
    _check_output(output, files)
    job = _describe(model, processor, files, batch_size)
    size = 8 * len(files) * model.config.hidden_size  # float32, in parts and in the file that they are joined into
    with _working_folder(output, size) as parts:
        if overwrite:
            output.unlink(missing_ok=True)
            _discard(parts)
        if output.exists():
            resumed, skipped = len(files), _read_skipped(output, job)
        else:
            count = _open_parts(parts, job, output)
            resumed = min(count * _PART_BATCHES * batch_size, len(files))
            _compute_parts(model, _read(processor, files, batch_size, num_workers, resumed), parts, job, count, strict)
            skipped = _join(parts, output, job)
        _discard(parts)
    return FeatureSummary(len(files) - len(skipped), skipped, resumed)


def _read(
    processor: BaseImageProcessor, files: Sequence[str], batch_size: int, num_workers: int, start: int = 0
) -> Iterator[ImageBatch]:
    """The batches of the files from `start` on, with a progress bar over all of them."""
    sampler = BatchSampler(files[start:], batch_size, drop_last=False)
    options: Any = {"batch_size": None, "collate_fn": ImageBatch._make, "num_workers": num_workers}
    loader: Any = DataLoader(ImageReader(processor), sampler=sampler, **options)
    done, total = (math.ceil(count / batch_size) for count in (start, len(files)))
    return logging.tqdm(read_in_workers(loader), initial=done, total=total, desc="features")


def _read_skipped(output: Path, job: dict[str, str]) -> dict[str, str]:
    metadata = read_metadata(output)
    if metadata.get("job") != job["job"]:
        raise ValueError(
            f"{output} holds features of other images or another model, or images have changed since: choose another "
            "file, or overwrite it."
        )
    return json.loads(metadata["skipped"])


def _check_output(output: Path, files: Sequence[str]) -> None:
    if not files:
        raise ValueError("There are no images to compute features of: name some.")
    if output.suffix != ".parquet":
        raise ValueError(f"The output must be a .parquet file, got {output.name}.")
    if output.is_dir():
        raise ValueError(f"The output {output} is a folder: give a file name, for example {output}/features.parquet.")
    require("pyarrow")


def _describe(
    model: PreTrainedModel, processor: BaseImageProcessor, files: Sequence[str], batch_size: int
) -> dict[str, str]:
    """What a run computes, as the metadata of its files; runs with the same `job` write the same file."""
    name = str(model.name_or_path or type(model).__name__)
    digest = hashlib.sha256(json.dumps([name, str(model.dtype), processor.to_json_string(), batch_size]).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy())
    for file in files:
        digest.update(json.dumps([file, *_state(file)]).encode())
    return {"job": digest.hexdigest(), "model": name}


def _state(file: str) -> tuple[int, ...]:
    """Size and time of change: an image that was replaced is another one."""
    try:
        status = Path(file).stat()
    except OSError:  # a link that leads nowhere: reading it will say so
        return ()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _working_folder(output: Path, size: int) -> Iterator[Path]:
    """The hidden folder beside the output, for this run alone; it stays while a run can continue from it."""
    parts, lock = (output.with_name(f".{output.name}.{kind}") for kind in ("parts", "lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock, timeout=_LOCK_SECONDS):
            try:
                parts.mkdir(exist_ok=True)
                yield parts
            finally:
                if not _part_file(parts, 0).is_file():
                    shutil.rmtree(parts, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ValueError(f"Another run is writing {output}: wait until it ends, or choose another output.") from error
    except OSError as error:
        reason = full_disk(error, output.absolute().parent, size, output.name) or error
        raise OSError(f"{output} is not finished: {reason}. Solve that, then repeat the run to continue.") from error


def _discard(parts: Path) -> None:
    """Give up the parts. Without the first, the others count for nothing, even if the run is killed right here."""
    _part_file(parts, 0).unlink(missing_ok=True)


def _open_parts(parts: Path, job: dict[str, str], output: Path) -> int:
    """Count the parts that an earlier run of the same job has written, and remove everything else."""
    whole: set[Path] = set()
    while (metadata := _part_metadata(part := _part_file(parts, len(whole)))) is not None:
        if metadata["job"] != job["job"]:
            raise ValueError(
                f"An unfinished run for {output} used other images, another model or another batch size, or images "
                "have changed since: repeat it as it was, or overwrite what it left."
            )
        whole.add(part)
    for stray in set(parts.iterdir()) - whole:
        shutil.rmtree(stray) if stray.is_dir() else stray.unlink()
    return len(whole)


def _part_file(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.parquet"


def _part_metadata(part: Path) -> dict[str, str] | None:
    try:
        return read_metadata(part)
    except (FileNotFoundError, ValueError):  # not there, or damaged, as after a power failure
        return None


def _compute_parts(
    model: PreTrainedModel, batches: Iterator[ImageBatch], parts: Path, job: dict[str, str], number: int, strict: bool
) -> None:
    """Compute features batch by batch, and write a part, from this number on, whenever there are enough."""
    batches = iter(batches)
    while True:
        paths: list[str] = []
        features: list[torch.Tensor] = []
        skipped: dict[str, str] = {}
        for batch in itertools.islice(batches, _PART_BATCHES):
            if batch.skipped and strict:
                raise ValueError(next(iter(batch.skipped.values())))
            features.append(encode_images(model, batch))
            paths += batch.paths
            skipped |= batch.skipped
        if not features:
            return
        table = feature_table(paths, torch.cat(features), {**job, "skipped": json.dumps(skipped)})
        with staged_file(_part_file(parts, number)) as file:
            write_features(file, [table], table.schema)
        number += 1


def _join(parts: Path, output: Path, job: dict[str, str]) -> dict[str, str]:
    """Join the parts into the output; returns the images that were left out."""
    files, joined = sorted(parts.glob("*.parquet")), parts / "joined"
    skipped = {path: why for part in files for path, why in json.loads(read_metadata(part)["skipped"]).items()}
    join_features(files, joined, {**job, "skipped": json.dumps(skipped)})
    joined.replace(output)
    return skipped
