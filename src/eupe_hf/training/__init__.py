# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Training: options, rows, tasks, Trainer, report.

Code that several training scripts share belongs here. Each task has one file in `tasks`.
"""

from .options import MODES, ModelArguments, RecipeArguments, one_sentence, parse_recipe
from .report import finish
from .trainer import RecipeTrainer, StreamingMetrics, adapt, parameter_groups, rate_by_depth
