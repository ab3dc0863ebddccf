# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Splits of `datasets` data sets: from the Hub, from folders and from files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from eupe_hf.extras import require


logger = logging.get_logger(__name__)


def load_split(
    dataset: str,
    split: str,
    columns: Mapping[str, str],
    config: str | None = None,
    limit: int | None = None,
    streaming: bool = False,
    image_folder: str | None = None,
) -> Any:
    """Load a split of a data set.

    Args:
        dataset: A Hub id; a folder: of images, of parquet files, or written by `save_to_disk`; or one JSON or parquet
            file, which is the split.
        split: Name of the split.
        columns: The columns that are needed, by what they are: "image", "label", ... Those whose key holds "image" may
            also be paths.
        config: Configuration of the data set, if it has several.
        limit: Take this many rows, evenly spaced, so that a data set sorted by class is not cut to its first classes;
            of a stream the first.
        streaming: Read rows only when they are asked for, one after another.
        image_folder: Where the images are whose column holds paths.

    Returns:
        A `datasets.Dataset`, or with `streaming` a `datasets.IterableDataset`, its images not yet decoded, so that
        `Rows` can name an unreadable one.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: No such data set, split or column, or no row.
    """
    datasets = require("datasets")
    try:
        data = _load(dataset, split, config, streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"The data set {dataset} cannot be loaded: {' '.join(str(error).split())}") from error
    for key, column in columns.items():
        if column not in data.column_names:
            hint = " A folder of images has labels where it has one folder per class, at least two." * (key == "label")
            raise ValueError(
                f"The data set {dataset} has no column {column!r} for the {key.replace('_', ' ')}; it has "
                f"{', '.join(data.column_names)}.{hint}"
            )
        feature = data.features[column]
        if image_folder is not None and "image" in key and feature == datasets.Value("string"):
            data = data.map(lambda row, name=column: {name: row[name] and str(Path(image_folder) / row[name])})
        if isinstance(feature, datasets.Image) or ("image" in key and feature == datasets.Value("string")):
            data = data.cast_column(column, datasets.Image(decode=False))
    if streaming:
        return data if limit is None else data.take(limit)
    if not len(data):
        raise ValueError(f"The split {split!r} of {dataset} is empty.")
    count = min(limit or len(data), len(data))
    return data.select([i * len(data) // count for i in range(count)])


def _load(dataset: str, split: str, config: str | None, streaming: bool) -> Any:
    datasets = require("datasets")
    path = Path(dataset)
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        if streaming:
            raise ValueError("what save_to_disk wrote is read from the disk anyway, and is not streamed.")
        saved = datasets.load_from_disk(dataset)
        saved = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        if split not in saved:
            raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
        return saved[split]
    kind = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(path.suffix) if path.is_file() else None
    files = {} if kind is None else {"data_files": {split: dataset}}
    data = datasets.load_dataset(kind or dataset, config, split=split, streaming=streaming, **files)
    return data._resolve_features() if streaming else data  # reads a row where nothing else tells the columns


def evenly(items: list[Any], limit: int | None) -> list[Any]:
    """So many of the items, evenly spaced; all of them without a limit."""
    count = min(limit or len(items), len(items))
    return [items[i * len(items) // count] for i in range(count)]
