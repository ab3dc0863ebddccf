# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The table of tasks: everything that needs the tasks by name reads it, and each class says the rest about its own."""

from .configuration_eupe import EupeConfig
from .modeling_eupe_depth import EupeForDepthEstimation
from .modeling_eupe_detection import EupeForObjectDetection
from .modeling_eupe_head import EupeTaskModel
from .modeling_eupe_image_classification import EupeForImageClassification
from .modeling_eupe_segmentation import EupeForSegmentation


TASK_MODELS: dict[str, type[EupeTaskModel]] = {
    task_class.task: task_class
    for task_class in (EupeForImageClassification, EupeForSegmentation, EupeForDepthEstimation, EupeForObjectDetection)
}


def saved_task_class(config: EupeConfig) -> type[EupeTaskModel] | None:
    """The single-task class that a configuration was saved from; `None` if it was another class."""
    saved = config.architectures or []
    return next((task_class for task_class in TASK_MODELS.values() if task_class.__name__ in saved), None)
