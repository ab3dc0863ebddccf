# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Rows that are read while they are trained on."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers.utils import logging

from eupe_hf.extras import require

from .options import DataArguments
from .rows import Rows, UnreadableError, accept


logger = logging.get_logger(__name__)


_NAMED = 10  # rows that are named as unreadable; others are only counted


class Stream(Rows):
    """Rows that are read while they are trained on: over and over, each time in another order, for ever.

    There is one row at a time: `stream[position]` is the one whose position `positions` gave last. Unreadable rows are
    left out and counted.

    Args:
        data: A `datasets.IterableDataset`.
        columns: The columns, by what they are.
        classes: Class ids by label.
        seed: Of the order.
        buffer: Rows among which the next one is chosen at random. Files are shuffled as well.
        strict: Refuse unreadable rows instead.
    """

    def __init__(
        self,
        data: Any,
        columns: Mapping[str, str],
        classes: Mapping[Any, int] | None = None,
        seed: int = 0,
        buffer: int = 1000,
        strict: bool = False,
    ):
        super().__init__(data, columns, classes)
        self.seed, self.buffer, self.strict = seed, buffer, strict
        self.check: Callable[[str, tuple[Any, ...]], Any] = accept
        self.position, self.cells = -1, ()
        self.divide(0, 1, 1)

    def divide(self, process: int, processes: int, workers: int) -> None:
        """From now on give the rows of one of so many processes, each with so many workers."""
        self.process, self.processes, self.workers = process, processes, workers
        self.skipped = torch.zeros(workers, dtype=torch.int64).share_memory_()  # counted by each worker for itself

    def shuffled(self, turn: int) -> Any:
        """The data set in its order of one of its turns, the same in all processes."""
        (seed,) = np.random.SeedSequence((self.seed, turn)).generate_state(1)
        return self.data.shuffle(seed=int(seed), buffer_size=self.buffer)

    def first(self, count: int, shuffled: bool = False) -> Rows:
        """So many rows of the data set, kept in memory, not yet decoded."""
        rows = list((self.shuffled(0) if shuffled else self.data).take(count))
        if not rows:
            raise ValueError("The stream is empty.")
        data = require("datasets").Dataset.from_list(rows, features=self.data.features)
        return Rows(data, self.columns, self.classes)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if row != self.position:
            raise IndexError(f"A stream has one row at a time, now {self.position}, not {row}.")
        return self.cells

    def positions(self) -> Iterator[int]:
        """The positions of all readable rows of this worker, for ever; no two workers or processes share one."""
        split = require("datasets.distributed").split_dataset_by_node
        worker = get_worker_info()
        index = worker.id if worker is not None else 0
        step = self.processes * self.workers
        position = self.process * self.workers + index - step
        for turn in itertools.count():
            seen = kept = 0
            for values in split(self.shuffled(turn), self.process, self.processes):
                seen, position = seen + 1, position + step
                paths = [value["path"] for value in values.values() if isinstance(value, dict) and value.get("path")]
                name = paths[-1] if paths else f"row {seen} of the stream"
                try:
                    self.cells = self.read(values, name)
                except UnreadableError as error:
                    self._skip(error, index)
                    continue
                self.check(name, self.cells)
                self.position, kept = position, kept + 1
                yield position
            if not seen:
                return  # there are fewer files than workers
            if not kept:
                raise ValueError(f"None of {seen} rows can be read, nor any other of this turn.")

    def _skip(self, error: UnreadableError, worker: int) -> None:
        if self.strict:
            raise error
        self.skipped[worker] += 1
        if self.skipped[worker] <= _NAMED:
            logger.warning(f"Skipped a row. {error}")


def as_rows(
    part: Any,
    columns: Mapping[str, str],
    arguments: "DataArguments",
    seed: int,
    classes: Mapping[Any, int] | None = None,
) -> Any:
    """The rows of a part: `Rows`, or a `Stream` where it is read while it is trained on."""
    if hasattr(part, "select"):
        return Rows(part, columns, classes)
    return Stream(part, columns, classes, seed, arguments.shuffle_buffer, arguments.strict)
