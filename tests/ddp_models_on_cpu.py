# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Train every task model, several heads and the bare encoder in the processes of a launcher, with plain DDP and gloo.

DDP is not told to look for unused parameters: a parameter that trains without a gradient ends it at the second step.
The weights must be the same in all processes after three steps.
"""

import sys
from typing import Any

import torch
from conftest import tiny_config
from models.test_unused_parameters import FAMILIES, MODELS, TASK_MODELS, joined, labels_of, pixels, task_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from eupe_hf import EupeModel


def steps(model: Any, labels: Any, checkpointing: bool) -> None:
    """Three steps on other images in each process."""
    if checkpointing:
        model.activation_checkpointing_enable()
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(3):
        images = pixels() + step + distributed.get_rank()
        outputs = parallel(images) if labels is None else parallel(images, labels=labels)
        loss = outputs.last_hidden_state.square().mean() if labels is None else outputs.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    total = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()])
    highest, lowest = total.clone(), total.clone()
    distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    distributed.all_reduce(lowest, distributed.ReduceOp.MIN)
    assert torch.equal(highest, lowest)


def main() -> None:
    """All of them, with and without activation checkpointing."""
    distributed.init_process_group("gloo")
    count = 0
    for checkpointing in (False, True):
        for task, family, stages in MODELS:
            steps(task_model(task, family, stages), labels_of(task, 2), checkpointing)
            count += 1
        for family in FAMILIES:
            steps(joined(family, *TASK_MODELS), {task: labels_of(task, 2) for task in TASK_MODELS}, checkpointing)
            torch.manual_seed(0)
            steps(EupeModel(tiny_config(family)).train(), None, checkpointing)
            count += 2
    if distributed.get_rank() == 0:
        sys.stdout.write(f"trained {count}\n")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
