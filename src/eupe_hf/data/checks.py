# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Every row read once before the first step: what cannot be read is named."""

import os
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import PIL.Image
import PIL.ImageOps
from transformers.utils import logging

from .options import _FIRST
from .rows import UnreadableError, accept
from .streams import Stream


logger = logging.get_logger(__name__)


_NAMED = 10  # unreadable files that a message names; it counts the others


def readable(rows: Any, strict: bool, check: Callable[[str, Any], Any] = accept) -> tuple[Any, list[Any]]:
    """Read every row once, and leave out those that cannot be read; of a stream the first, the others when they come.

    Args:
        rows: `Rows`, or others that know `select` and `name`.
        strict: Refuse them instead.
        check: Looks at the name and the cells of a row; what it raises is not skipped.

    Returns:
        The readable rows, and what `check` gave for each.

    Raises:
        ValueError: With `strict` an unreadable file; no readable one; what `check` raises.
    """
    if isinstance(rows, Stream):
        rows.check = check
        return rows, readable(rows.first(_FIRST), strict, check)[1]

    def read(row: int) -> tuple[str | None, Any]:
        try:
            cells = rows[row]
        except UnreadableError as error:
            return str(error), None
        return None, check(rows.name(row), cells)

    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:  # Pillow decodes outside Python's lock
        found = list(logging.tqdm(pool.imap(read, range(len(rows))), total=len(rows), desc="checking files"))
    kept = skip([problem for problem, _ in found], strict)
    if len(kept) == len(found):
        return rows, [fact for _, fact in found]
    return rows.select(kept), [found[row][1] for row in kept]


def skip(problems: Sequence[str | None], strict: bool, use: str = "read") -> list[int]:
    """Leave out the rows that have a problem, and say which.

    Args:
        problems: A sentence for each row that has one, else `None`.
        strict: Refuse them instead.
        use: What cannot be done with such a row.

    Returns:
        The other rows.

    Raises:
        ValueError: With `strict` any problem, else no row without one.
    """
    sentences = [problem for problem in problems if problem is not None]
    if sentences and strict:
        raise ValueError(f"{len(sentences)} of {len(problems)} rows cannot be {use}. {' '.join(sentences[:_NAMED])}")
    if len(sentences) == len(problems):
        raise ValueError(f"None of {len(problems)} rows can be {use}. {sentences[0]}")
    if sentences:
        more = f" And {len(sentences) - _NAMED} more." if len(sentences) > _NAMED else ""
        logger.warning(f"Skipped {len(sentences)} of {len(problems)} rows. {' '.join(sentences[:_NAMED])}{more}")
    return [row for row, problem in enumerate(problems) if problem is None]


def check_map_size(name: str, what: str, image: PIL.Image.Image, values: Any) -> None:
    """Refuse a map (H, W) of another size than its image, which may be turned by EXIF."""
    width, height = PIL.ImageOps.exif_transpose(image).size
    if tuple(values.shape) != (height, width):
        raise ValueError(
            f"{name}: the {what} is {values.shape[1]} x {values.shape[0]} pixels and its image {width} x {height}: "
            "they must have one size."
        )
