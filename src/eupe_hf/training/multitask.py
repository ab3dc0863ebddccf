# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Several tasks in one run: their options, the order of their rows, their Trainer.

A batch holds images of one task, and each step of the optimizer takes as many batches of every task, one after the
other, with the Trainer's gradient accumulation. So a step follows the mean of the losses of all tasks: no head, and no
batch norm in it, sees images of another task, and no task waits while Adam's averages follow another. The images of a
step are the same however they are split into small batches and processes.

Needs `pip install 'eupe-hf[train]'`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import HfArgumentParser
from transformers.image_processing_utils import BaseImageProcessor

from eupe_hf.data.options import DataArguments, InputArguments

from .options import RecipeArguments
from .rows import TrainingRows
from .tasks import TASKS, RecipeTask, SegmentationTask
from .trainer import RecipeTrainer


_HEADS = {name: task for name, task in TASKS.items() if task.model_class() is not None}  # tasks that can be joined
_STREAM = ("streaming", "shuffle_buffer", "eval_rows")  # options that only a single task has


@dataclass(kw_only=True)
class _TasksData(InputArguments):
    """Options of the data: one data set per task, and what they share."""

    task_weights: list[str] | None = field(
        default=None, metadata={"help": "factors of the losses, as TASK=FACTOR; default: 1 each"}
    )
    epoch_of: str | None = field(
        default=None, metadata={"help": "the task whose images make an epoch; default: the task with the most"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            options = ", ".join(f"--{task}" for task in _HEADS)
            raise ValueError(f"No data set was given: name one, a folder or a Hub id, with one or more of {options}.")
        if self.streaming:
            raise ValueError("Several tasks cannot be streamed: their order depends on how many images each has.")
        if self.epoch_of is not None and self.epoch_of not in self.tasks:
            raise ValueError(f"--epoch_of must be a task with data, {', '.join(self.tasks)}, got {self.epoch_of!r}.")
        self.weights()

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that have data."""
        return [task for task in _HEADS if getattr(self, task)]

    def weights(self) -> dict[str, float]:
        """Factors of the losses by task."""
        weights = dict.fromkeys(self.tasks, 1.0)
        for entry in self.task_weights or ():
            task, _, factor = entry.partition("=")
            try:
                weights[task] = {name: float(factor) for name in weights}[task]
            except (KeyError, ValueError) as error:
                raise ValueError(
                    f"--task_weights takes TASK=FACTOR, with a task that has data, {', '.join(weights)}, and a "
                    f"number; got {entry!r}."
                ) from error
            if not 0 < weights[task] < math.inf:
                raise ValueError(f"--task_weights must be above 0, got {entry!r}: to leave a task out, give no data.")
        return weights

    def of_task(self, task: str) -> DataArguments:
        """Options of one task, as its own recipe has them: from the run, and its own from after the data set.

        Raises:
            ValueError: An option that the task does not have, or that must be one for all.
        """
        dataset, *own = getattr(self, task)
        data_class = _HEADS[task].data_class
        known = sorted({field.name for field in fields(data_class)} - {"dataset", "size", *_STREAM})
        if unknown := [option for option in own if option.partition("=")[0].replace("-", "_") not in known]:
            raise ValueError(
                f"there is no option {unknown[0]!r}; after the data set give NAME=VALUE of {', '.join(known)}."
            )
        parser = HfArgumentParser(data_class, prog=f"--{task}", usage="%(prog)s DATASET [NAME=VALUE ...]")
        parser.set_defaults(**{field.name: getattr(self, field.name) for field in fields(InputArguments)})
        return parser.parse_args_into_dataclasses([f"--{option}" for option in (f"dataset={dataset}", *own)])[0]

    def settings(self) -> dict[str, Any]:
        """How the tasks were put together."""
        scores = ", ".join(f"{task} {_HEADS[task].score.replace('_', ' ')}" for task in self.tasks)
        weights = ", ".join(f"{task} {weight:g}" for task, weight in self.weights().items())
        return {"task_weights": weights, "epoch_of": self.epoch_of, "score": f"mean of {scores}"}


MultiTaskDataArguments = make_dataclass(
    "MultiTaskDataArguments",
    [(name, list[str] | None, field(default=None, metadata={"help": task.help})) for name, task in _HEADS.items()],
    bases=(_TasksData,),
    kw_only=True,
)


class MultiTask(RecipeTask):
    """Several tasks in one run, each with its own data, rows, metrics and head. Errors in its data name the task."""

    name, data_class, usage = "multitask", MultiTaskDataArguments, "--TASK DATASET ..."
    # Nobody has published a recipe for these tasks together: the rates and the size of segmentation, the one in the
    # middle; its batch of 16 for two tasks.
    defaults = {
        **SegmentationTask.defaults,
        "all": {
            **SegmentationTask.defaults["all"],
            "metric_for_best_model": "score", "per_device_train_batch_size": 8, "num_train_epochs": 25,
        },
    }  # fmt: skip

    @property
    def parts(self) -> Mapping[str, RecipeTask]:
        """The tasks by name."""
        return self.data

    @property
    def shown(self) -> tuple[str, ...]:
        """The score of each task."""
        return tuple(f"{name}_{task.score}" for name, task in self.parts.items())

    def load(self) -> Any:
        """The tasks that have data, by name."""
        return {name: self._load_task(name) for name in self.arguments.tasks}

    def _load_task(self, name: str) -> RecipeTask:
        try:
            return _HEADS[name](self.arguments.of_task(name), self.seed, self.arguments.weights()[name])
        except (OSError, ValueError) as error:
            raise ValueError(f"--{name} {getattr(self.arguments, name)[0]}: {error}") from error

    def head(self, layers: Sequence[int] | None = None) -> dict[str, Any]:
        """All heads, as `EupeForMultiTask.from_pretrained` takes them."""
        parts = self.parts.items()
        return {"heads": {n: {"task": n, "loss_weight": task.weight, **task.head(layers)} for n, task in parts}}

    def rows(self, processor: BaseImageProcessor, patch_size: int) -> tuple[Any, Any]:
        """Rows of all tasks to train on, and rows by task to evaluate on."""
        rows = {name: task.rows(processor, patch_size) for name, task in self.parts.items()}
        train = MultiTaskRows({name: train for name, (train, _) in rows.items()})
        return train, {name: TaskRows(name, evaluation) for name, (_, evaluation) in rows.items()}

    def compare(self, output: Any, labels: Any, processor: BaseImageProcessor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the task of the batch compares."""
        ((name, prediction),) = output.predictions.items()
        return self.parts[name].compare(prediction, labels[name], processor)

    def loss(self, output: Any, loss: torch.Tensor) -> torch.Tensor:
        """The loss of the task of the batch, without its weight."""
        (prediction,) = output.predictions.values()
        return prediction.loss

    def summary(self) -> list[str]:
        """A line per task."""
        return [f"{name}: {line}" for name, task in self.parts.items() for line in task.summary()]

    def settings(self) -> dict[str, Any]:
        """The options of all tasks; an option of the run that a task changes begins with its name."""
        common = {field.name: getattr(self.arguments, field.name) for field in fields(InputArguments)}
        chosen: dict[str, Any] = {}
        for name, task in self.parts.items():
            chosen |= task.settings()
            own = {key: getattr(task.arguments, key) for key in common}
            chosen |= {f"{name}_{key}": own[key] for key, value in common.items() if own[key] != value}
        return chosen | {key: common[key] for key in ("size", "augment")} | self.arguments.settings()

    def use(self, folder: str) -> str:
        """How to use what was trained."""
        return f"EupeForMultiTask.from_pretrained({folder!r}) loads it."


class TaskRows(Dataset):
    """Rows of one task that name it, as `task`."""

    def __init__(self, task: str, rows: TrainingRows):
        self.task, self.rows = task, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"task": self.task, **self.rows[row]}


class MultiTaskRows(Dataset):
    """Rows of several tasks, each found by the name of its task and its number there."""

    def __init__(self, parts: Mapping[str, TrainingRows]):
        self.parts = {task: TaskRows(task, rows) for task, rows in parts.items()}
        self.epoch = 0

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, place: tuple[str, int]) -> dict[str, Any]:
        task, row = place
        return self.parts[task][row]

    def set_epoch(self, epoch: int) -> None:
        """From now on order and augment as in this epoch."""
        self.epoch = epoch
        for part in self.parts.values():
            part.rows.set_epoch(epoch)


class TaskOrder(Sampler[tuple[str, int]]):
    """The order of training: for each step as many rows of every task, one task after the other.

    Each task takes its rows at random, again and again if it has fewer than others; the numbers of later rounds
    continue, so that a row is augmented differently each time. The order depends on the seed and the epoch alone.

    Args:
        rows: The rows.
        images: How many of each task a step takes, in all processes and with gradient accumulation.
        seed: Of the order.
        epoch_of: The task whose rows an epoch takes once; by default the one with the most. Its last step is filled up
            with rows from the beginning.
    """

    def __init__(self, rows: MultiTaskRows, images: int, seed: int = 0, epoch_of: str | None = None):
        self.rows, self.images, self.seed = rows, images, seed
        sizes = {task: len(part) for task, part in rows.parts.items()}
        self.steps = math.ceil((max(sizes.values()) if epoch_of is None else sizes[epoch_of]) / images)

    def __len__(self) -> int:
        return self.steps * self.images * len(self.rows.parts)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        orders = {}
        for place, (task, part) in enumerate(self.rows.parts.items()):
            random = np.random.default_rng((self.seed, self.rows.epoch, place))
            rounds = math.ceil(self.steps * self.images / len(part))
            orders[task] = np.concatenate([i * len(part) + random.permutation(len(part)) for i in range(rounds)])
        for start in range(0, self.steps * self.images, self.images):
            for task, order in orders.items():
                yield from ((task, int(row)) for row in order[start : start + self.images])


class MultiTaskTrainer(RecipeTrainer):
    """`RecipeTrainer` for an `EupeForMultiTask`: each step takes batches of every task, each evaluation all of them.

    The loss is the mean over the tasks of their losses, each times its weight. Metrics, and losses without the weight,
    are named TASK_METRIC; "score" is the mean over the tasks of one share between 0 and 1: accuracy, mean IoU, delta1,
    average precision. `per_device_train_batch_size` and `gradient_accumulation_steps` are for each task.
    """

    def __init__(self, task: MultiTask, processor: Any, patch_size: int, args: RecipeArguments, **kwargs: Any):
        names = tuple(task.parts)
        args.gradient_accumulation_steps *= len(names)
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = True  # a batch leaves the other heads out
        metric = str(args.metric_for_best_model).removeprefix("eval_")
        if metric not in ("loss", "score") and not metric.startswith(tuple(f"{name}_" for name in names)):
            raise ValueError(
                f"--metric_for_best_model must be score, loss, or a metric of {', '.join(names)}, such as "
                f"{task.shown[0]}; got {metric!r}."
            )
        super().__init__(task, processor, patch_size, args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> TaskOrder:
        batches = self.args.gradient_accumulation_steps // len(self.task.parts) * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        images = self._train_batch_size * batches
        return TaskOrder(self.train_dataset, images, seed, self.task.arguments.epoch_of)

    def evaluate(
        self,
        eval_dataset: Mapping[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As the Trainer's, for all tasks together."""
        scores: dict[str, float] = {}
        for name, rows in (eval_dataset or self.eval_dataset).items():
            self.compute_metrics = self.streams[name]
            loader = self.get_eval_dataloader(name if eval_dataset is None else rows)
            prefix = f"{metric_key_prefix}_{name}"
            scores |= self.evaluation_loop(loader, "Evaluation", metric_key_prefix=prefix).metrics
        parts = self.task.parts.items()
        losses = [task.weight * scores[f"{metric_key_prefix}_{name}_loss"] for name, task in parts]
        shares = [scores[f"{metric_key_prefix}_{name}"] for name in self.task.shown]
        scores[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        scores[f"{metric_key_prefix}_score"] = sum(shares) / len(shares)
        self.log(scores)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores
