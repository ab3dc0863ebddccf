# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The recipes' parts: options, rows, tasks, Trainer, report.

What goes here: what several training scripts share. Each task has one file in `tasks`.
"""

from .options import MODES, ModelArguments, RecipeArguments, check_output, one_sentence, parse_recipe
from .trainer import RecipeTrainer, StreamingMetrics, adapt, parameter_groups


__all__ = [
    "MODES",
    "ModelArguments",
    "RecipeArguments",
    "RecipeTrainer",
    "StreamingMetrics",
    "adapt",
    "check_output",
    "one_sentence",
    "parameter_groups",
    "parse_recipe",
]
