# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Run a recipe with FSDP2 in processes on the CPU: `accelerate launch ... fsdp_on_cpu.py RECIPE OPTIONS`.

accelerate shards weights over accelerators alone, though torch does it on CPUs as well, with gloo. Here the CPUs
pass for accelerators; all else is as on GPUs.
"""

import runpy
import sys
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def prepare_backend(self: PartialState, *args: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def set_device(self: PartialState) -> None:
    self.device = torch.device("cpu")


PartialState._prepare_backend, PartialState.set_device = prepare_backend, set_device
runpy.run_path(sys.argv[1])["main"](sys.argv[2:])
