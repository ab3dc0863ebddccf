# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The tasks of the recipes, one file each, and the table of them.

What goes here: the declaration of a task, from its options to its metrics. A new task is a file and a line in `TASKS`.
"""

from .base import RecipeTask
from .classification import ClassificationTask
from .depth import DepthTask
from .detection import DetectionTask
from .segmentation import SegmentationTask


TASKS: dict[str, type[RecipeTask]] = {
    "classification": ClassificationTask,
    "segmentation": SegmentationTask,
    "depth": DepthTask,
    "detection": DetectionTask,
}
