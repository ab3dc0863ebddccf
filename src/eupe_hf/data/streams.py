# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows that are read during training."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers.utils import logging

from eupe_hf.extras import require

from .rows import Rows, UnreadableError, read_row, row_name


logger = logging.get_logger(__name__)

_NAMED = 10  # unreadable rows that are named; further ones are only counted


class Stream:
    """Rows that are read during training: again and again, each time in another order, without end.

    Iterating gives the number of a row and its cells. No two workers or processes share a number. Unreadable rows are
    left out and counted in `skipped`, by worker. `classes` are class ids by label, as for `Rows`.

    Args:
        data: A `datasets.IterableDataset`.
        columns: The columns by what they hold.
        seed: Seed of the order.
        buffer: Rows from which the next one is drawn. Files are shuffled as well.
        strict: Refuse unreadable rows instead.
    """

    def __init__(self, data: Any, columns: Mapping[str, str], seed: int = 0, buffer: int = 1000, strict: bool = False):
        self.data, self.columns, self.seed, self.buffer, self.strict = data, columns, seed, buffer, strict
        self.classes: Mapping[Any, int] | None = None
        self.check: Callable[[str, tuple[Any, ...]], Any] | None = None
        self.divide(0, 1, 1)

    def divide(self, process: int, processes: int, workers: int) -> None:
        """From now on give the rows of one of so many processes, each with so many workers."""
        self.process, self.processes, self.workers = process, processes, workers
        self.skipped = torch.zeros(workers, dtype=torch.int64).share_memory_()  # each worker counts its own

    def shuffled(self, turn: int) -> Any:
        """The data set in its order of one turn, which is the same in all processes."""
        (seed,) = np.random.SeedSequence((self.seed, turn)).generate_state(1)
        return self.data.shuffle(seed=int(seed), buffer_size=self.buffer)

    def first(self, count: int, shuffled: bool = False) -> Rows:
        """So many rows of the data set, kept in memory, not decoded."""
        rows = list((self.shuffled(0) if shuffled else self.data).take(count))
        if not rows:
            raise ValueError("The stream is empty.")
        data = require("datasets").Dataset.from_list(rows, features=self.data.features)
        return Rows(data, self.columns, self.classes)

    def __iter__(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        split = require("datasets.distributed").split_dataset_by_node
        index = getattr(get_worker_info(), "id", 0)
        step = self.processes * self.workers
        number = self.process * self.workers + index - step
        for turn in itertools.count():
            seen = kept = 0
            for values in split(self.shuffled(turn), self.process, self.processes):
                seen, number = seen + 1, number + step
                name = row_name(values, f"row {seen} of the stream")
                try:
                    cells = read_row(values, self.columns, self.classes, name)
                except UnreadableError as error:
                    if self.strict:
                        raise
                    self.skipped[index] += 1
                    if self.skipped[index] <= _NAMED:
                        logger.warning(f"Skipped a row. {error}")
                    continue
                if self.check is not None:
                    self.check(name, cells)
                kept += 1
                yield number, cells
            if not seen:
                return  # there are fewer files than workers
            if not kept:
                raise ValueError(f"None of {seen} rows can be read, nor any other of this turn.")
