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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .checkpoints import staged_file
from .metrics import require


FORMATS = (".safetensors", ".parquet")
_PART_BATCHES = 64  # batches of images to a part: what a killed run loses at most


@dataclass(frozen=True)
class FeatureFile:
    """Features of images, as `read_features` gives them.

    Args:
        paths: The images, as they were named when the file was made.
        features: (N, C), float32, not normalised, in the order of `paths`.
        model: What computed them: a short name, a Hub id or a folder.
    """

    paths: list[str]
    features: torch.Tensor
    model: str


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


class _Images(Dataset):
    """Pictures as the model takes them, or the reason why one can't be read."""

    def __init__(self, paths: Sequence[Path], processor: BaseImageProcessor):
        self.paths, self.processor = paths, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor | str]:
        try:
            return index, self.processor(self.paths[index], return_tensors="pt")["pixel_values"][0]
        except (OSError, ValueError) as error:
            return index, " ".join(str(error).split())


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
    one that was not. Memory does not grow with the number of images, but for the last step with `.safetensors`, which
    holds all features once (1.5 GB for a million of eupe-s).

    Args:
        model: A model with `pooler_output`, for example `EupeModel`, in eval mode and on the device to use.
        processor: Its image processor, which must make images of one size.
        paths: The images.
        output: A `.safetensors` file (tensor `features`, paths in the metadata) or a `.parquet` one (columns `path`
            and `features`; needs pyarrow, which comes with datasets).
        batch_size: Images per forward pass.
        num_workers: Processes that read images.
        strict: An image that can't be read is an error, instead of being left out and counted.
        overwrite: Begin anew, and replace a file that is there.

    Returns:
        How many features there are, and which images were left out.

    Raises:
        ImportError: `.parquet` without pyarrow.
        ValueError: Another extension, an output of other images or another model, or images of several sizes; with
            `strict` an unreadable image.
    """
    output, files = Path(output), [Path(path) for path in paths]
    if output.suffix not in FORMATS:
        raise ValueError(f"The output must end in {' or '.join(FORMATS)}, got {output.name}.")
    if output.suffix == ".parquet":
        require("pyarrow")
    job = _describe(model, processor, files, batch_size)
    parts = output.with_name(f".{output.name}.parts")
    if overwrite:
        output.unlink(missing_ok=True)
        shutil.rmtree(parts, ignore_errors=True)
    if output.exists():
        if _metadata(output).get("job") != job["digest"]:
            raise ValueError(
                f"{output} holds features of other images or another model: choose another, or overwrite."
            )
        shutil.rmtree(parts, ignore_errors=True)
        skipped = json.loads(_metadata(output)["skipped"])
        return FeatureSummary(len(files) - len(skipped), skipped, len(files))
    resumed = _open_parts(parts, job, output)
    size = batch_size * _PART_BATCHES
    todo = files[resumed * size :]
    loader: Any = DataLoader(_Images(todo, processor), batch_size, num_workers=num_workers, collate_fn=list)
    progress = logging.tqdm(
        loader, initial=resumed * _PART_BATCHES, total=-(-len(files) // batch_size), desc="features"
    )
    part = _Part()
    for number, rows in enumerate(progress, start=1):
        part.add(model, rows, todo, strict)
        if number % _PART_BATCHES == 0 or number == len(loader):
            part.save(parts / f"{resumed + (number - 1) // _PART_BATCHES:06d}.safetensors", model)
            part = _Part()
    skipped = _join(parts, output, {"job": job["digest"], "model": job["model"]})
    shutil.rmtree(parts)
    return FeatureSummary(len(files) - len(skipped), skipped, min(resumed * size, len(files)))


def _describe(
    model: PreTrainedModel, processor: BaseImageProcessor, files: Sequence[Path], batch_size: int
) -> dict[str, str]:
    """What a run computes; two runs with the same digest give the same file."""
    what = {
        "model": model.name_or_path or type(model).__name__,
        "weights": hashlib.sha256(next(model.parameters()).detach().float().cpu().numpy().tobytes()).hexdigest(),
        "dtype": str(model.dtype),
        "processor": processor.to_json_string(),
        "batch_size": batch_size,
        "files": [[os.fspath(file), file.stat().st_size] for file in files],
    }
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return {"digest": digest, "model": str(what["model"])}


def _open_parts(parts: Path, job: dict[str, str], output: Path) -> int:
    """The number of parts that an earlier run of the same job has written."""
    note = parts / "job.json"
    if not note.is_file():
        shutil.rmtree(parts, ignore_errors=True)  # stopped before anything was computed
        parts.mkdir(parents=True)
        with staged_file(note) as file:
            file.write_text(json.dumps(job), encoding="utf-8")
    elif json.loads(note.read_text(encoding="utf-8")) != job:
        raise ValueError(
            f"A run for {output} was stopped that had other images, another model or another batch size: repeat it as "
            "it was, or overwrite what it left."
        )
    for stray in parts.glob(".*.part"):  # being written when the run was killed
        stray.unlink()
    return len(list(parts.glob("*.safetensors")))


class _Part:
    """Some thousand images' features."""

    def __init__(self) -> None:
        self.features: list[torch.Tensor] = []
        self.paths: list[str] = []
        self.skipped: dict[str, str] = {}

    def add(self, model: PreTrainedModel, rows: list[tuple[int, Any]], files: Sequence[Path], strict: bool) -> None:
        pictures = {os.fspath(files[i]): picture for i, picture in rows if isinstance(picture, torch.Tensor)}
        skipped = {os.fspath(files[i]): reason for i, reason in rows if isinstance(reason, str)}
        if skipped and strict:
            raise ValueError(next(iter(skipped.values())))
        self.skipped.update(skipped)
        if not pictures:
            return
        if len(shapes := {tuple(picture.shape) for picture in pictures.values()}) > 1:
            raise ValueError(
                f"The processor makes images of several sizes, {sorted(shapes)}: give a height and width."
            )
        pixel_values = torch.stack(list(pictures.values())).to(model.device, model.dtype)
        with torch.inference_mode():
            self.features.append(model(pixel_values).pooler_output.float().cpu())
        self.paths.extend(pictures)

    def save(self, path: Path, model: PreTrainedModel) -> None:
        features = torch.cat(self.features) if self.features else torch.empty(0, model.config.hidden_size)
        metadata = {"paths": json.dumps(self.paths), "skipped": json.dumps(self.skipped)}
        with staged_file(path) as file:
            save_file({"features": features}, file, metadata=metadata)


def _read_parts(parts: Path) -> Iterator[tuple[list[str], torch.Tensor, dict[str, str]]]:
    for path in sorted(parts.glob("*.safetensors")):
        with safe_open(path, framework="pt") as part:
            metadata = part.metadata()
            yield json.loads(metadata["paths"]), part.get_tensor("features"), json.loads(metadata["skipped"])


def _join(parts: Path, output: Path, metadata: dict[str, str]) -> dict[str, str]:
    """Make the file of its parts; gives the images that were left out."""
    skipped = {path: reason for _, _, left_out in _read_parts(parts) for path, reason in left_out.items()}
    metadata = {**metadata, "skipped": json.dumps(skipped)}
    with staged_file(output) as file:
        if output.suffix == ".parquet":
            _write_parquet(parts, file, metadata)
        else:
            read = [(paths, features) for paths, features, _ in _read_parts(parts)]
            paths = json.dumps([path for part, _ in read for path in part])
            save_file({"features": torch.cat([part for _, part in read])}, file, metadata={**metadata, "paths": paths})
    return skipped


def _write_parquet(parts: Path, file: Path, metadata: dict[str, str]) -> None:
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    schema = pyarrow.schema([("path", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32()))], metadata)
    with parquet.ParquetWriter(file, schema) as writer:
        for paths, features, _ in _read_parts(parts):
            columns = [pyarrow.array(paths, pyarrow.string()), pyarrow.array(list(features.numpy()), schema.types[1])]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _metadata(path: Path) -> dict[str, str]:
    if path.suffix == ".parquet":
        found = require("pyarrow.parquet").read_schema(path).metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_features(path: str | os.PathLike) -> FeatureFile:
    """Read a file that `save_features` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: `.parquet` without pyarrow.
        ValueError: It is no file of features.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if path.suffix == ".parquet":
        parquet = require("pyarrow.parquet")
        table = parquet.read_table(path)
        if not {"path", "features"} <= set(table.column_names):
            raise ValueError(f"{path} has no columns path and features: eupe features writes such files.")
        metadata, paths = _metadata(path), table["path"].to_pylist()
        values = table["features"].combine_chunks()
        features = torch.from_numpy(values.flatten().to_numpy().copy()).view(len(paths), -1)
        return FeatureFile(paths, features, metadata.get("model", ""))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "paths" not in metadata or "features" not in set(file.keys()):
                raise ValueError(f"{path} holds no features with paths: eupe features writes such files.")
            return FeatureFile(json.loads(metadata["paths"]), file.get_tensor("features"), metadata.get("model", ""))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a .safetensors file: {error}") from error


def nearest_images(index: FeatureFile, query: torch.Tensor, count: int = 10) -> list[tuple[str, float]]:
    """Images whose global features are most similar to one.

    Args:
        index: Features of the images to look through.
        query: (C,), by the same model.
        count: How many at most.

    Returns:
        Paths with their cosine similarities, the most similar first.

    Raises:
        ValueError: The widths differ.
    """
    if query.shape != index.features.shape[1:]:
        raise ValueError(
            f"The query has the shape {tuple(query.shape)}, a feature of the index {tuple(index.features.shape[1:])}: "
            f"compute both with one model, {index.model or 'the same'}."
        )
    similarity = functional.cosine_similarity(index.features, query[None].float().cpu())
    best = similarity.topk(min(count, len(similarity)))
    return [(index.paths[i], value) for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


__all__ = ["FeatureFile", "FeatureSummary", "find_images", "nearest_images", "read_features", "save_features"]
