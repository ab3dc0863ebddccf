# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""All tasks by name."""

from .base import RecipeTask
from .classification import ClassificationTask
from .depth import DepthTask
from .detection import DetectionTask
from .segmentation import SegmentationTask


TASKS: dict[str, type[RecipeTask]] = {
    task.name: task for task in (ClassificationTask, SegmentationTask, DepthTask, DetectionTask)
}
