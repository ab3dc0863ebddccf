# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Batches on their way from a loader's workers to the main process."""

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers.utils import logging


logger = logging.get_logger(__name__)


def hand_over(batch: torch.Tensor) -> torch.Tensor | np.ndarray:
    """A batch as a loader's worker should return it: in shared memory, or where that is full, as an array.

    An array goes through a pipe, which takes longer. torch itself would try shared memory only after the worker has
    let go of the batch, where the error is lost and the main process waits for ever: in a container, which has 64 MB
    unless somebody says otherwise, with the third batch.

    Args:
        batch: On the CPU. Outside of a worker it is returned as it is.

    Returns:
        The same values; `torch.as_tensor` makes a tensor of either. The loader needs a `collate_fn`: its default makes
        tensors of arrays, in the worker.
    """
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory_()
    except RuntimeError:
        return batch.numpy()
