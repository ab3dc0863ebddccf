# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Files of global features: one row for each image. They are written part by part, read whole, and searched.

`.safetensors`: the tensor `features`, and in the metadata `paths` as JSON. `.parquet`: the columns `path` and
`features`; a folder of such files, as engines like Ray and datasets write them, is read as one.
"""

import json
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from eupe_hf.extras import require


FORMATS = (".safetensors", ".parquet")


_LARGEST_HEADER = 100_000_000  # bytes; no reader of safetensors takes more


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


def feature_table(paths: Sequence[str], features: torch.Tensor, metadata: dict[str, str] | None = None) -> Any:
    """A pyarrow table with the columns `path` and `features`, which `read_features` reads from a `.parquet` file.

    Args:
        paths: The images.
        features: (N, C), float32.
        metadata: What the file says beside them; `model` names what computed the features.

    Raises:
        ImportError: pyarrow is not installed.
    """
    pyarrow = require("pyarrow")
    rows, width = features.shape
    offsets = pyarrow.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))
    columns = [
        pyarrow.array(paths, pyarrow.string()),
        pyarrow.ListArray.from_arrays(offsets, features.numpy().ravel()),
    ]
    fields = [("path", pyarrow.string()), ("features", pyarrow.list_(pyarrow.float32()))]
    return pyarrow.table(columns, schema=pyarrow.schema(fields, metadata))


def write_parquet(
    file: Path, chunks: Iterable[tuple[Sequence[str], torch.Tensor]], metadata: dict[str, str] | None = None
) -> None:
    """Write paths and features, of which the chunks are read one after the other; see `feature_table`."""
    schema = feature_table([], torch.empty(0, 0), metadata).schema
    # a dictionary of numbers that hardly ever repeat would cost time and memory
    with require("pyarrow.parquet").ParquetWriter(file, schema, use_dictionary=False) as writer:
        for paths, features in chunks:
            writer.write_table(feature_table(paths, features, metadata))


def write_safetensors(
    file: Path, paths: Sequence[str], width: int, chunks: Iterable[torch.Tensor], metadata: dict[str, str]
) -> None:
    """Write features (N, width), float32, of which the chunks are read one after the other.

    The library's own function wants all of them in memory, and copies them.

    Raises:
        ValueError: Paths and metadata are larger than what a reader takes.
    """
    header = _header(paths, width, metadata)
    if len(header) > _LARGEST_HEADER:
        raise ValueError(
            f"The paths of {len(paths)} images don't fit into a .safetensors file, which takes "
            f"{_LARGEST_HEADER // 1_000_000} MB of them: choose .parquet."
        )
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for chunk in chunks:
            out.write(chunk.numpy().astype("<f4", copy=False).tobytes())


def fits_safetensors(paths: Sequence[str]) -> bool:
    """Whether one file can name so many images, with some room for what was left out."""
    return len(_header(paths, 0, {})) < 0.9 * _LARGEST_HEADER


def _header(paths: Sequence[str], width: int, metadata: dict[str, str]) -> bytes:
    shape = [len(paths), width]
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * len(paths) * width]}
    described = {"__metadata__": {**metadata, "paths": json.dumps(list(paths))}, "features": tensor}
    header = json.dumps(described).encode()
    return header + b" " * (-len(header) % 8)  # readers map the numbers, which must lie at multiples of eight


def join_features(parts: Sequence[Path], file: Path, suffix: str, metadata: dict[str, str]) -> None:
    """Make one file of several `.safetensors` ones, holding the features of one of them at a time.

    Args:
        parts: Files of features, at least one.
        file: What to write, whatever its name.
        suffix: One of `FORMATS`.
        metadata: What the file says beside paths and features.

    Raises:
        ValueError: See `write_safetensors`.
    """
    if suffix == ".parquet":
        write_parquet(file, ((part.paths, part.features) for part in map(read_features, parts)), metadata)
        return
    paths = [path for part in parts for path in json.loads(read_metadata(part)["paths"])]
    width = read_features(parts[0]).features.shape[1]
    write_safetensors(file, paths, width, (read_features(part).features for part in parts), metadata)


def read_metadata(path: Path) -> dict[str, str]:
    """What a file of features says beside them.

    Raises:
        ValueError: The file is damaged, or of another format.
    """
    if path.suffix == ".parquet":
        pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        try:
            found = parquet.read_schema(path).metadata or {}
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} cannot be read as a .parquet file: {error}") from error
        return {key.decode(): value.decode() for key, value in found.items()}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as a .safetensors file: {error}") from error


def read_features(path: str | os.PathLike) -> FeatureFile:
    """Read what `save_features` wrote, or a folder of `.parquet` files with the columns `path` and `features`.

    Raises:
        FileNotFoundError: There is no such file, or a folder without any.
        ImportError: `.parquet` without pyarrow.
        ValueError: It is no file of features, or the files of a folder are of several models.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"There are no .parquet files in {path}.")
    read = [_read_file(file) for file in files]
    filled = [found for found in read if found.paths] or read[:1]
    kinds = {(found.model, found.features.shape[1]) for found in filled}
    if len(kinds) > 1:
        told = ", ".join(f"{model or 'unknown'} (width {width})" for model, width in sorted(kinds))
        raise ValueError(f"The files in {path} hold features of several models, {told}: compute all with one.")
    paths = [name for found in filled for name in found.paths]
    return FeatureFile(paths, torch.cat([found.features for found in filled]), filled[0].model)


def _read_file(path: Path) -> FeatureFile:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    metadata = read_metadata(path)
    if path.suffix == ".parquet":
        return _read_parquet(path, metadata.get("model", ""))
    with safe_open(path, framework="pt") as file:
        if "paths" not in metadata or "features" not in set(file.keys()):
            raise ValueError(f"{path} holds no features with paths: eupe features writes such files.")
        return FeatureFile(json.loads(metadata["paths"]), file.get_tensor("features"), metadata.get("model", ""))


def _read_parquet(path: Path, model: str) -> FeatureFile:
    pyarrow, parquet, compute = (require(f"pyarrow{name}") for name in ("", ".parquet", ".compute"))
    try:
        schema = parquet.read_schema(path)
        is_ours = {"path", "features"} <= set(schema.names) and hasattr(schema.field("features").type, "value_type")
        if not is_ours:
            raise ValueError(f"{path} has no columns path and features, lists of numbers: eupe features writes such.")
        table = parquet.read_table(path, columns=["path", "features"])
    except (pyarrow.ArrowInvalid, OSError) as error:  # pyarrow's OSErrors of damaged pages do not name the file
        raise ValueError(f"{path} cannot be read as a .parquet file: {error}") from error
    if not table.num_rows:
        return FeatureFile([], torch.empty(0, 0), model)
    widths = compute.unique(compute.list_value_length(table["features"])).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise ValueError(f"The features in {path} have several widths, {widths}: compute all with one model.")
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["features"].chunks]
    features = torch.from_numpy(np.concatenate(values, dtype=np.float32)).view(table.num_rows, -1)
    return FeatureFile(table["path"].to_pylist(), features, model)
