# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Feature files: parquet, one row per image, with the columns `path` and `features`.

Why parquet only: pandas, DuckDB, datasets and Ray read and write it, a file holds any number of paths, and parts join
into one in a few lines. A second format in safetensors would spare pyarrow (`pip install 'eupe-hf[eval]'`), but need a
header of our own and hold about a million paths. Searching a folder of images needs neither a file nor pyarrow.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eupe_hf.extras import require


@dataclass(frozen=True)
class FeatureFile:
    """Features of images, as `read_features` returns them.

    Args:
        paths: The images, by the paths they had when their features were computed.
        features: (N, C), float32, not normalised, in the order of `paths`.
        model: What computed them: a short name, a Hub id or a folder; empty if unknown.
        skipped: Paths of images that could not be read, each with the reason; not of files that were read again.
    """

    paths: list[str]
    features: torch.Tensor
    model: str
    skipped: dict[str, str] = field(default_factory=dict)


def feature_table(paths: Sequence[str], features: torch.Tensor, metadata: dict[str, str] | None = None) -> Any:
    """A pyarrow table with the columns `path` and `features`: a row of a feature file for each image.

    Args:
        paths: The images. Where a file name is not UTF-8, the column holds bytes instead of strings.
        features: (N, C), float32.
        metadata: Stored with the schema; `read_features` reads `model`, the name of what computed the features.

    Raises:
        ImportError: pyarrow is not installed.
    """
    pyarrow = require("pyarrow")
    names = pyarrow.array([path.encode("utf-8", "surrogateescape") for path in paths], pyarrow.binary())
    with suppress(pyarrow.ArrowInvalid):  # parquet's strings are UTF-8, which file names need not be
        names = names.cast(pyarrow.string())
    rows, width = features.shape
    offsets = pyarrow.array(np.arange(rows + 1, dtype=np.int32) * np.int32(width))
    values = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(features.numpy().ravel(), pyarrow.float32()))
    schema = pyarrow.schema([("path", names.type), ("features", values.type)], metadata)
    return pyarrow.table([names, values], schema=schema)


def write_features(file: Path, tables: Iterable[Any], schema: Any) -> None:
    """Write tables of a schema, see `feature_table`, to a feature file, holding one of them at a time."""
    writer = require("pyarrow.parquet").ParquetWriter
    # Python opens the file, so that a full disk raises OSError; a dictionary of floats would cost time and memory
    with file.open("wb") as out, writer(out, schema, use_dictionary=False) as rows:
        for table in tables:
            rows.write_table(table)


def join_features(parts: Sequence[Path], file: Path, metadata: dict[str, str]) -> None:
    """Join feature files, at least one, into one with this metadata, holding one of them at a time."""
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    schemas = []
    for part in parts:
        with part.open("rb") as opened:
            schemas.append(parquet.read_schema(opened))
    # bytes if one of the parts has them, which strings can be made into
    schema = next((found for found in schemas if found.field("path").type == pyarrow.binary()), schemas[0])
    schema = schema.with_metadata(metadata)
    write_features(file, (_read_part(part).cast(schema) for part in parts), schema)


def _read_part(part: Path) -> Any:
    # read_table would load pyarrow's datasets and start threads, which takes a dozen megabytes more
    with part.open("rb") as file, require("pyarrow.parquet").ParquetFile(file) as opened:
        return opened.read(use_threads=False)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a feature file.

    Raises:
        ValueError: The file is damaged, or not parquet.
    """
    pyarrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        with path.open("rb") as file:  # Python opens it: pyarrow takes no name that is not UTF-8
            found = parquet.read_schema(file).metadata or {}
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as a .parquet file: {error}") from error
    return {key.decode(): value.decode() for key, value in found.items()}


def read_features(path: str | os.PathLike) -> FeatureFile:
    """Read a feature file, or all `.parquet` files of a folder, as Ray and `examples/features_datasets.py` write them.

    Raises:
        FileNotFoundError: The file does not exist, or the folder holds no `.parquet` file.
        ImportError: pyarrow is not installed.
        ValueError: A file does not hold features, or the files of a folder come from several models.
    """
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"There are no .parquet files in {path}.")
    read = [_read_file(file) for file in files]
    filled = [found for found in read if found.paths] or read[:1]
    kinds = sorted({(found.model, found.features.shape[1]) for found in filled})
    if len(kinds) > 1:
        models = ", ".join(f"{model or 'unknown'} (width {width})" for model, width in kinds)
        raise ValueError(f"The files in {path} hold features of several models, {models}: compute all with one.")
    paths = [name for found in filled for name in found.paths]
    return FeatureFile(paths, torch.cat([found.features for found in filled]), filled[0].model)


def _read_file(path: Path) -> FeatureFile:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    model = read_metadata(path).get("model", "")
    pyarrow, parquet, compute = (require(f"pyarrow{name}") for name in ("", ".parquet", ".compute"))
    try:
        with path.open("rb") as file:
            schema = parquet.read_schema(file)
        if not {"path", "features"} <= set(schema.names) or not hasattr(schema.field("features").type, "value_type"):
            raise ValueError(f"{path} lacks the columns of a feature file: path, and features with lists of numbers.")
        with path.open("rb") as file:
            table = parquet.read_table(file, columns=["path", "features"])
    except (pyarrow.ArrowInvalid, OSError) as error:  # pyarrow's OSErrors of damaged pages do not name the file
        raise ValueError(f"{path} cannot be read as a .parquet file: {error}") from error
    if not table.num_rows:
        return FeatureFile([], torch.empty(0, 0), model)
    widths = compute.unique(compute.list_value_length(table["features"])).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise ValueError(f"The features in {path} have several widths, {widths}: compute all with one model.")
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["features"].chunks]
    features = torch.from_numpy(np.concatenate(values, dtype=np.float32)).view(table.num_rows, -1)
    names = table["path"].cast(pyarrow.binary()).to_pylist()
    return FeatureFile([name.decode("utf-8", "surrogateescape") for name in names], features, model)
