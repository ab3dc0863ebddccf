# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Batches on their way from a loader's workers to the main process."""

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
