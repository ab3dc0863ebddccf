# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What an evaluation found, and the settings that its scores depend on."""

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


# The kind of task of each protocol, by the names of the Hub.
_TASKS = {
    "knn": "image-classification",
    **{task: task_class._pipeline_tag for task, task_class in TASK_MODELS.items()},
    "correspondence": "keypoint-matching",
    "yes_no": "visual-question-answering",
    "multiple_choice": "visual-question-answering",
    "vqa": "visual-question-answering",
    "conversation": "image-text-to-text",
}


# ---- results ----


@dataclass(frozen=True)
class EvaluationResult:
    """Scores, and what is needed to know what they mean.

    Args:
        protocol: "knn", "classification", "segmentation", "depth", "correspondence", "detection", "conversation"; or a
            task of `evaluation_vlm.py`.
        model: Name of the model, as it was loaded.
        dataset: Hub id of the data set, or the path it was read from.
        split: The split that was evaluated.
        num_examples: Images, or pairs of images, that were evaluated.
        metrics: Scores by name; finite numbers.
        settings: Every choice of the protocol that the scores depend on; values that JSON has.
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
        if self.protocol not in _TASKS:
            raise ValueError(f"protocol must be one of {', '.join(_TASKS)}, got {self.protocol!r}.")
        for name, value in self.metrics.items():
            if not math.isfinite(value):
                raise ValueError(f"The metric {name!r} is {value}: report finite numbers only.")

    def eval_results(self) -> list[EvalResult]:
        """The scores as huggingface_hub has them, one entry each: `card.data.eval_results = result.eval_results()`."""
        return [
            EvalResult(
                task_type=_TASKS[self.protocol],
                task_name=f"{_TASKS[self.protocol].replace('-', ' ')} ({self.protocol} protocol)",
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
        """All fields, and under "model-index" the block of that name in a model card's metadata."""
        name = Path(self.model).name
        return {**asdict(self), "model-index": eval_results_to_model_index(name, self.eval_results())}

    def save(self, path: str | os.PathLike) -> None:
        """Write `to_dict` as JSON; its folder is made if need be."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
