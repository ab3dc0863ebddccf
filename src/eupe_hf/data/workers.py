# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Processes that read data, and batches on their way from them to the main process."""

import errno
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info


def hand_over(batch: torch.Tensor) -> torch.Tensor | np.ndarray:
    """Make a CPU batch ready to leave a loader's worker: in shared memory, or if that is full, as an array.

    An array goes through a pipe, which takes longer. torch alone would move the batch to shared memory only after the
    worker has let go of it. If that fails, the error is lost and the main process waits for ever; containers have
    64 MB by default, which the third batch fills. Outside a worker the batch stays as it is. `torch.as_tensor` makes a
    tensor of either. Give the loader a `collate_fn`: its default makes tensors of arrays inside the worker.
    """
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except RuntimeError:
        return batch.numpy()


def read_in_workers(loader: Any) -> Iterator[Any]:
    """The batches of a `DataLoader`.

    Raises:
        OSError: Too few file handles are left for the workers, or one of them was killed.
    """
    _check_handles(loader.num_workers)
    try:
        yield from loader
    except RuntimeError as error:
        message = " ".join(str(error).split())
        if "worker" not in message or message.startswith("Caught"):  # that one is a mistake in what a worker runs
            raise
        raise OSError(message) from error


def _check_handles(num_workers: int) -> None:
    # torch finds out halfway, and then prints a traceback when it ends what it started
    needed = 7 * num_workers  # the pipes of a worker, and two batches on their way
    handles: list[int] = []
    try:
        while len(handles) < needed:
            handles.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise OSError(
            f"{num_workers} workers need more open files than this process may have: raise the limit (ulimit -n), or "
            "use fewer workers"
        ) from error
    finally:
        for handle in handles:
            os.close(handle)
