# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Run a recipe in processes on the CPU, and say how many DDP wrappers outlive it: `ddp_on_cpu.py RECIPE OPTIONS`.

One that is alive when the group of processes is left can, though seldom, stop the program for ever.
"""

import gc
import runpy
import sys
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel


made: list[int] = []
initialise, leave = DistributedDataParallel.__init__, torch.distributed.destroy_process_group


def counted(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> None:
    made.append(1)
    initialise(self, *args, **kwargs)


def watched(*args: Any) -> None:
    alive = sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())
    print(f"DDP wrappers: {len(made)} made, {alive} left")
    leave(*args)


DistributedDataParallel.__init__, torch.distributed.destroy_process_group = counted, watched
runpy.run_path(sys.argv[1])["main"](sys.argv[2:])
