# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Scores of an evaluation, and the settings that they depend on."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from eupe_hf.models.modeling_eupe_tasks import TASK_MODELS

from . import correspondence, knn, vlm


# The Hub's pipeline tag of every protocol: of the tasks, and of what is evaluated without being one.
_PIPELINE_TAGS = {
    **{task: task_class._pipeline_tag for task, task_class in TASK_MODELS.items()},
    **knn.PIPELINE_TAGS,
    **correspondence.PIPELINE_TAGS,
    **vlm.PIPELINE_TAGS,
}


@dataclass(frozen=True)
class EvaluationResult:
    """Scores of a model on a data set.

    Args:
        protocol: A task ("classification", "segmentation", "depth", "detection"), "knn", "correspondence",
            "conversation", or a kind of question ("yes_no", "multiple_choice", "vqa").
        model: Name of the model, as it was loaded.
        dataset: Hub id or path of the data set.
        split: The evaluated split.
        num_examples: Number of evaluated images, or pairs of images.
        metrics: Scores by name; finite numbers.
        settings: Every choice that the scores depend on, as JSON values.
        dataset_config: Configuration of the data set, if it has several.

    Example:

    ```python
    >>> from eupe_hf.evaluation import EvaluationResult

    >>> result = EvaluationResult("knn", "eupe-s", "imagenet-1k", "validation", 50000, {"accuracy@10": 0.5})
    >>> result.eval_results()[0].metric_value
    0.5

    ```
    """

    protocol: str
    model: str
    dataset: str
    split: str
    num_examples: int
    metrics: Mapping[str, float]
    settings: Mapping[str, Any] | None = None
    dataset_config: str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in _PIPELINE_TAGS:
            raise ValueError(f"protocol must be one of {', '.join(_PIPELINE_TAGS)}, got {self.protocol!r}.")
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"The metric {name!r} is {value}: report finite numbers.")

    def eval_results(self) -> list[EvalResult]:
        """The scores for a model card, one entry each: `card.data.eval_results = result.eval_results()`."""
        tag = _PIPELINE_TAGS[self.protocol]
        return [
            EvalResult(
                task_type=tag,
                task_name=f"{tag.replace('-', ' ')} ({self.protocol} protocol)",
                dataset_type=self.dataset,
                dataset_name=Path(self.dataset).name,
                dataset_config=self.dataset_config,
                dataset_split=self.split,
                metric_type=name,
                metric_value=value,
                metric_args={**(self.settings or {}), "num_examples": self.num_examples},
            )
            for name, value in self.metrics.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """All fields, and "model-index", the block of that name in a model card's metadata."""
        name = Path(self.model).name
        return {**asdict(self), "model-index": eval_results_to_model_index(name, self.eval_results())}

    def save(self, path: str | os.PathLike) -> None:
        """Write `to_dict` as JSON, and create the folder if necessary."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
