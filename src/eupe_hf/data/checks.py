# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Every row is read once before the first step, so that unreadable ones are named and left out."""

import os
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import PIL.Image
from transformers.utils import logging

from .options import _FIRST
from .rows import UnreadableError, image_size
from .streams import Stream


logger = logging.get_logger(__name__)

_NAMED = 10  # unreadable files that a message names; it counts the others


def readable(rows: Any, strict: bool, check: Callable[[str, Any], Any] | None = None) -> tuple[Any, list[Any]]:
    """Read every row once, and leave out the unreadable ones; of a stream read the first rows, the others later.

    Args:
        rows: `Rows`, a `Stream`, or other rows with `select` and `name`.
        strict: Raise a ValueError for unreadable rows instead.
        check: Takes the name and the cells of a row. What it raises is not skipped.

    Returns:
        The readable rows, and the result of `check` for each.
    """
    if isinstance(rows, Stream):
        rows.check = check
        return rows, readable(rows.first(_FIRST), strict, check)[1]

    def read(row: int) -> tuple[str | None, Any]:
        try:
            cells = rows[row]
        except UnreadableError as error:
            return str(error), None
        return None, None if check is None else check(rows.name(row), cells)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes without Python's lock
        found = list(logging.tqdm(pool.imap(read, range(len(rows))), total=len(rows), desc="checking files"))
    kept = skip([problem for problem, _ in found], strict)
    if len(kept) < len(found):
        rows = rows.select(kept)
    return rows, [found[row][1] for row in kept]


def skip(problems: Sequence[str | None], strict: bool, use: str = "read") -> list[int]:
    """Numbers of the rows without a problem; warns of the others.

    Args:
        problems: For each row a sentence, or `None`.
        strict: Raise a ValueError if a row has a problem, not only if all have.
        use: What a row with a problem cannot be.
    """
    sentences = [_shortened(problem) for problem in problems if problem is not None]
    if sentences and strict:
        raise ValueError(f"{len(sentences)} of {len(problems)} rows cannot be {use}. {' '.join(sentences[:_NAMED])}")
    if len(sentences) == len(problems):
        raise ValueError(f"None of {len(problems)} rows can be {use}. {sentences[0]}")
    if sentences:
        more = f" And {len(sentences) - _NAMED} more." if len(sentences) > _NAMED else ""
        logger.warning(f"Skipped {len(sentences)} of {len(problems)} rows. {' '.join(sentences[:_NAMED])}{more}")
    return [row for row, problem in enumerate(problems) if problem is None]


def _shortened(sentence: str) -> str:
    # a file may name a path of any length
    return sentence if len(sentence) <= 600 else f"{sentence[:300]} ... {sentence[-200:]}"


def check_map_size(name: str, what: str, image: PIL.Image.Image, values: Any) -> None:
    """Refuse a map (H, W) that has not the size of its image with EXIF rotation undone."""
    height, width = image_size(image)
    if tuple(values.shape) != (height, width):
        raise ValueError(
            f"{name}: the {what} is {values.shape[1]} x {values.shape[0]} pixels and its image {width} x {height}: "
            "they must have one size."
        )
