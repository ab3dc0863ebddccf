# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Global features of many images in one file, in a run that may be killed at any point and run again.

Features go in parts of some thousand images into a hidden folder beside the output, each written at once; a run takes
up what it finds there. The whole file is made of the parts at the end. `eupe features` is this on the command line.
"""

import hashlib
import json
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
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from eupe_hf.data.workers import hand_over
from eupe_hf.extras import require
from eupe_hf.staging import staged_file

from .files import (
    FORMATS,
    fits_safetensors,
    join_features,
    read_metadata,
    write_safetensors,
)


_PART_BATCHES = 64  # batches of images to a part: what a killed run loses at most


_LOCK_SECONDS = 10.0  # processes that read images outlive a killed run by some seconds, and may hold its lock


@dataclass(frozen=True)
class FeatureSummary:
    """What `save_features` did.

    Args:
        count: Images with features in the file.
        skipped: Why, by path, for images that could not be read.
        resumed: Images whose features an earlier run had computed.
    """

    count: int
    skipped: dict[str, str]
    resumed: int


class ImageBatch(NamedTuple):
    """Images as a model takes them.

    Attributes:
        paths: The images that could be read.
        pixel_values: Those, (N, 3, H, W), as `hand_over` gives them; a list of arrays (3, H, W) where they differ in
            size, or there are none.
        skipped: Why, by path, for the others.
    """

    paths: list[str]
    pixel_values: torch.Tensor | np.ndarray | list[np.ndarray]
    skipped: dict[str, str]


def find_images(sources: Sequence[str | os.PathLike]) -> list[Path]:
    """Image files, in a stable order: files as given, folders with all below them, sorted; each once.

    Args:
        sources: Files and folders. In a folder, files whose extension Pillow knows count as images.

    Raises:
        FileNotFoundError: One of them is not there.
        ValueError: A folder without images, or nothing given.
    """
    Image.init()
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            inside = (path for path in sorted(source.rglob("*")) if path.suffix.lower() in Image.EXTENSION)
            images = [path for path in inside if path.is_file()]
            if not images:
                raise ValueError(f"There are no images in {source}.")
            found.update(dict.fromkeys(images))
        elif source.is_file():
            found[source] = None
        else:
            raise FileNotFoundError(f"There is no file or folder {source}.")
    if not found:
        raise ValueError("No images: name files or folders.")
    return list(found)


class ImageReader(Dataset):
    """Image files as a model takes them, a batch at a time; what engines for large jobs call in their processes.

    It holds no list of files: each process that reads would in time have a copy of it.

    Args:
        processor: The model's image processor.
    """

    def __init__(self, processor: BaseImageProcessor):
        self.processor = processor

    def __getitem__(self, paths: Sequence[str]) -> ImageBatch:
        """Read the files at these paths; those that can't be read are told in `skipped`."""
        pictures: dict[str, torch.Tensor] = {}
        skipped: dict[str, str] = {}
        for path in paths:
            picture = self._read(path)
            if isinstance(picture, str):
                skipped[path] = picture
            else:
                pictures[path] = picture
        images = list(pictures.values())
        if len({image.shape for image in images}) == 1:
            return ImageBatch(list(pictures), hand_over(torch.stack(images)), skipped)
        return ImageBatch(list(pictures), [image.numpy() for image in images], skipped)

    def _read(self, path: str) -> torch.Tensor | str:
        try:
            return self.processor(Path(path), return_tensors="pt")["pixel_values"][0]
        except (OSError, ValueError) as error:
            return " ".join(str(error).split())


def encode_images(model: PreTrainedModel, batch: ImageBatch) -> torch.Tensor:
    """The global features of the images of a batch: (N, C), float32, on the CPU, not normalised.

    Args:
        model: A model with `pooler_output`, for example `EupeModel`, in eval mode.
        batch: From `ImageReader`.

    Raises:
        ValueError: The images differ in size.
    """
    if not batch.paths:
        return torch.empty(0, model.config.hidden_size)
    if isinstance(batch.pixel_values, list):
        shapes = sorted({tuple(image.shape) for image in batch.pixel_values})
        raise ValueError(f"The processor makes images of several sizes, {shapes}: give a height and width.")
    with torch.inference_mode():
        pixel_values = torch.as_tensor(batch.pixel_values).to(model.device, model.dtype)
        return model(pixel_values).pooler_output.float().cpu()


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
    """Compute the global feature of each image and write one file; see the top of this module.

    A run that is repeated with the same arguments goes on where the last one was stopped, and gives the same file as
    one that was not. Memory grows with the number of images by their paths alone.

    Args:
        model: A model with `pooler_output`, for example `EupeModel`, in eval mode and on the device to use.
        processor: Its image processor, which must make images of one size.
        paths: The images; one that is named again counts once.
        output: A `.safetensors` file (tensor `features`, paths in the metadata, of which a file takes about a million)
            or a `.parquet` one (columns `path` and `features`; needs pyarrow, which comes with datasets).
        batch_size: Images per forward pass.
        num_workers: Processes that read images.
        strict: An image that can't be read is an error, instead of being left out and counted.
        overwrite: Begin anew, and replace a file that is there.

    Returns:
        How many features there are, and which images were left out.

    Raises:
        ImportError: `.parquet` without pyarrow.
        OSError: Something can't be written, for example because the disk is full: mend it and repeat the run.
        ValueError: Another extension, an output of other images or another model or of a run that is going on, paths
            that the format can't hold, or images of several sizes; with `strict` an unreadable image.
    """
    output, files = Path(output), list(dict.fromkeys(os.fspath(Path(path)) for path in paths))
    _check_output(output, files)
    job = _describe(model, processor, files, batch_size)
    size = batch_size * _PART_BATCHES
    with _working_folder(output) as parts:
        if overwrite:
            output.unlink(missing_ok=True)
            _discard(parts)
        if output.exists():
            metadata = read_metadata(output)
            if metadata.get("job") != job["digest"]:
                raise ValueError(
                    f"{output} holds features of other images or another model: choose another, or overwrite."
                )
            resumed, skipped = len(files), json.loads(metadata["skipped"])
        else:
            resumed = _open_parts(parts, job, output) * size
            batches = BatchSampler(files[resumed:], batch_size, drop_last=False)
            reader = ImageReader(processor)
            options: Any = {"batch_size": None, "collate_fn": _as_it_is, "num_workers": num_workers}
            loader: Any = DataLoader(reader, sampler=batches, **options)
            total, done = -(-len(files) // batch_size), resumed // batch_size
            # the iterator: a silenced tqdm makes one of its own when it is built, and with it a second set of workers
            progress = logging.tqdm(iter(loader), initial=done, total=total, desc="features")
            _compute_parts(model, progress, parts, range(done, total), strict)
            skipped = _join(parts, output, job)
        _discard(parts)
    return FeatureSummary(len(files) - len(skipped), skipped, min(resumed, len(files)))


def _as_it_is(batch: ImageBatch) -> ImageBatch:
    return batch


def _check_output(output: Path, files: Sequence[str]) -> None:
    if not files:
        raise ValueError("There are no images to compute features of: give some paths.")
    if output.suffix not in FORMATS:
        raise ValueError(f"The output must end in {' or '.join(FORMATS)}, got {output.name}.")
    if output.is_dir():
        raise ValueError(f"The output {output} is a folder: give a file name, for example {output}/features.parquet.")
    if output.suffix == ".parquet":
        require("pyarrow")
        foreign = [file for file in files if not _is_utf8(file)]
        if foreign:
            raise ValueError(f"{foreign[0]!r} is not UTF-8, as .parquet needs: rename it, or choose .safetensors.")
    elif not fits_safetensors(files):
        raise ValueError(f"A .safetensors file can't hold the paths of {len(files)} images: choose .parquet.")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a file name that are no UTF-8, as Python keeps them
        return False
    return True


def _describe(
    model: PreTrainedModel, processor: BaseImageProcessor, files: Sequence[str], batch_size: int
) -> dict[str, str]:
    """What a run computes; two runs with the same digest give the same file."""
    name = str(model.name_or_path or type(model).__name__)
    digest = hashlib.sha256(json.dumps([name, str(model.dtype), processor.to_json_string(), batch_size]).encode())
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy())
    for file in files:
        digest.update(json.dumps([file, Path(file).stat().st_size]).encode())
    return {"digest": digest.hexdigest(), "model": name}


@contextmanager
def _working_folder(output: Path) -> Iterator[Path]:
    """The hidden folder beside the output, for this run alone; it stays where there is something to go on with."""
    parts, lock = (output.with_name(f".{output.name}.{kind}") for kind in ("parts", "lock"))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock, timeout=_LOCK_SECONDS):
            try:
                parts.mkdir(exist_ok=True)
                yield parts
            finally:
                if not (parts / "job.json").is_file():
                    shutil.rmtree(parts, ignore_errors=True)
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ValueError(f"Another run is writing {output}: wait for its end, or choose another output.") from error
    except OSError as error:
        raise OSError(f"{output} is not finished: {error}. Mend that and repeat the run, it will go on.") from error


def _discard(parts: Path) -> None:
    """Give up the parts. Without the note they count for nothing, also if this is the last thing that a run does."""
    (parts / "job.json").unlink(missing_ok=True)


def _open_parts(parts: Path, job: dict[str, str], output: Path) -> int:
    """The number of parts that an earlier run of the same job has written; whatever else it left is removed."""
    note = parts / "job.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != job:
        raise ValueError(
            f"A run for {output} was stopped that had other images, another model or another batch size: repeat it as "
            "it was, or overwrite what it left."
        )
    count = 0
    while note.is_file() and _is_whole(_part_file(parts, count)):
        count += 1
    whole = {_part_file(parts, number).name for number in range(count)}
    for stray in parts.iterdir():
        if stray.name not in {*whole, note.name}:
            stray.unlink()
    with staged_file(note) as file:
        file.write_text(json.dumps(job), encoding="utf-8")
    return count


def _part_file(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.safetensors"


def _is_whole(part: Path) -> bool:
    try:
        return "skipped" in read_metadata(part)
    except (FileNotFoundError, ValueError):  # not there, or damaged, as after a power failure
        return False


def _compute_parts(
    model: PreTrainedModel, loader: Iterator[ImageBatch], parts: Path, numbers: range, strict: bool
) -> None:
    """Compute features batch by batch, and write a part when there are enough, or no more."""
    paths: list[str] = []
    features: list[torch.Tensor] = []
    skipped: dict[str, str] = {}
    for number, batch in zip(numbers, loader, strict=True):
        if batch.skipped and strict:
            raise ValueError(next(iter(batch.skipped.values())))
        features.append(encode_images(model, batch))
        paths += batch.paths
        skipped |= batch.skipped
        if (number + 1) % _PART_BATCHES == 0 or number == numbers[-1]:
            with staged_file(_part_file(parts, number // _PART_BATCHES)) as file:
                metadata = {"skipped": json.dumps(skipped)}
                write_safetensors(file, paths, features[0].shape[1], features, metadata)
            paths, features, skipped = [], [], {}


def _join(parts: Path, output: Path, job: dict[str, str]) -> dict[str, str]:
    """Make the file of its parts; gives the images that were left out."""
    files, joined = sorted(parts.glob("*.safetensors")), parts / "joined"
    skipped = {path: why for part in files for path, why in json.loads(read_metadata(part)["skipped"]).items()}
    metadata = {"job": job["digest"], "model": job["model"], "skipped": json.dumps(skipped)}
    join_features(files, joined, output.suffix, metadata)
    joined.replace(output)
    return skipped
