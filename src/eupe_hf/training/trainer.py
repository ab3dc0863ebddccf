# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The Trainer of the recipes: what learns, how fast, and how it ends."""

import gc
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils.operations import recursively_apply
from huggingface_hub import ModelCard
from torch import nn
from torch.utils.data import DataLoader, get_worker_info
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback
from transformers.modeling_utils import PreTrainedModel

from eupe_hf.data.streams import Stream
from eupe_hf.models.modeling_eupe import find_encoders

from .options import ModelArguments
from .rows import StreamedRows, TrainingRows
from .tasks.base import RecipeTask


class SetEpoch(TrainerCallback):
    """Tells data or a sampler, which know `set_epoch`, the epoch; accelerate does so in some of its loaders only."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Part of the Trainer."""
        self.dataset.set_epoch(math.floor((state.epoch or 0) + 1e-6))


class _InSharedMemory:
    """A collator whose batches lie in shared memory before a loader's worker lets go of them.

    torch would move them after that, where an error is lost, and training would wait for ever.
    """

    def __init__(self, collate: Callable[[Any], Any]):
        self.collate = collate

    def __call__(self, rows: Any) -> Any:
        batch = self.collate(rows)
        if get_worker_info() is not None:
            try:
                recursively_apply(torch.Tensor.share_memory_, batch)
            except RuntimeError as error:
                raise RuntimeError(
                    "The loader's workers have no shared memory left for a batch (/dev/shm; containers have 64 MB): "
                    "give the container more, for example docker run --shm-size 2g, or read the images without "
                    "workers: --dataloader_num_workers 0."
                ) from error
        return batch


class CardTrainer(Trainer):
    """The trainer of recipes and VLMs. Its task has the `parts`, `summary` and so on of `RecipeTask`."""

    model: Any

    def __init__(self, task: Any, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.task = task
        self.data_collator: Any = _InSharedMemory(self.data_collator)
        self.card: ModelCard | None = None
        if hasattr(self.train_dataset, "set_epoch"):
            self.add_callback(SetEpoch(self.train_dataset))

    def announce(self) -> None:
        """Say what the data holds and how much learns: once, however many processes there are."""
        trained, total = self.get_num_trainable_parameters(), sum(p.numel() for p in self.model.parameters())
        lines = [*self.task.summary(), f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})."]
        self.accelerator.print("\n".join(lines))

    def rate_of(self, model: nn.Module) -> Callable[[str, nn.Parameter], float]:
        """The learning rate of a parameter, from its name and itself."""
        return lambda name, parameter: self.args.learning_rate

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As the Trainer's, with the groups of `parameter_groups`."""
        if getattr(self, "optimizer", None) is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, self.rate_of(model), self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def settle(self) -> None:
        """Turn the model into what is evaluated and saved: an ordinary one with `--merge`."""
        if self.args.merge:
            self.model = self.model_wrapped = self.accelerator.unwrap_model(self.model).merge_and_unload()

    def scores(self) -> dict[str, float]:
        """Loss and metrics of the model as it is."""
        return scores_of(self.evaluate())

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card where the Trainer would write its own, which has neither licence nor loading code."""
        if self.card is not None and self.is_world_process_zero():
            self.card.save(Path(self.args.output_dir) / "README.md")

    def end(self) -> None:
        """Wait for the other processes, and leave their group: the last thing a script does with its trainer."""
        self.accelerator.wait_for_everyone()
        # First what DDP wrapped: were it the last to hold a gloo group, torch would wait for the group's threads with
        # the interpreter locked, and they for the interpreter, for ever (github.com/pytorch/pytorch/issues/56297).
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()


def adapt(model: PreTrainedModel, arguments: ModelArguments) -> nn.Module:
    """Choose what is trained: the model with adapters, with a frozen encoder, or as it is."""
    if arguments.drop_path_rate:
        model.eupe.config.drop_path_rate = arguments.drop_path_rate
    if arguments.mode == "probe":
        model.freeze_backbone()
    if arguments.mode != "lora":
        return model
    from eupe_hf.lora.config import lora_config  # says what to install where peft is missing, and only LoRA needs it

    targets: Any = arguments.targets
    if targets is not None and len(targets) == 1:
        (targets,) = targets
    options = {key: getattr(arguments, key) for key in ("alpha", "dropout", "use_dora", "use_rslora")}
    config = lora_config(model, r=arguments.rank, targets=targets, **options)
    import peft

    if arguments.quantize:  # after the configuration, which trains in full what is not frozen
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.get_peft_model(model, config)


def rate_by_depth(
    model: nn.Module, learning_rate: float, layer_decay: float = 1.0, head_learning_rate: float | None = None
) -> Callable[[str, nn.Parameter], float]:
    """A rule for `parameter_groups`: learning rates that fall from the head to the embeddings.

    With N blocks (ConvNeXt: stages) the embeddings (stem) learn at `learning_rate * layer_decay ** (N + 1)`, block i,
    from 0, at `learning_rate * layer_decay ** (N - i)`, and the final norm at `learning_rate`, as in BEiT and MAE.
    What is outside of EUPE encoders is head.

    Args:
        model: Any model with an EUPE encoder in it, also one with adapters.
        learning_rate: Of the encoder's final norm.
        layer_decay: Factor from each block to the one below.
        head_learning_rate: By default `learning_rate`.
    """
    rates: dict[int, float] = {}  # of each parameter of an encoder
    for encoder in find_encoders(model).values():
        for name, parameter in encoder.named_parameters():
            rates[id(parameter)] = learning_rate * layer_decay ** _decays(name, encoder.config.num_stages)
    head = learning_rate if head_learning_rate is None else head_learning_rate
    return lambda name, parameter: rates.get(id(parameter), head)


def parameter_groups(
    model: nn.Module, rate_of: Callable[[str, nn.Parameter], float], weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimizer groups of what a model trains: by learning rate, and with weight decay or without.

    Vectors (norms, biases, layer-scale) and learned tokens never decay.

    Args:
        model: The model.
        rate_of: The learning rate of a parameter, from its name and itself, such as `rate_by_depth` makes.
        weight_decay: Of matrices and kernels.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, in the order of the model.

    Raises:
        ValueError: Every parameter is frozen.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not re.search(r"_tokens?$", name)
            groups.setdefault((rate_of(name, parameter), weight_decay if decays else 0.0), []).append(parameter)
    if not groups:
        raise ValueError("Nothing is to be trained: every parameter is frozen.")
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def _decays(name: str, blocks: int) -> int:
    if block := re.match(r"encoder\.(?:layers|stages)\.(\d+)\.", name):
        return blocks - int(block[1])
    return blocks + 1 if name.startswith(("encoder.embeddings.", "encoder.stem.")) else 0


def scores_of(logged: Mapping[str, Any]) -> dict[str, float]:
    """The loss and the metrics of one evaluation that was logged, without its timings."""
    timings = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    names = {key: key.removeprefix("eval_") for key in logged if key.startswith("eval_")}
    return {name: float(logged[key]) for key, name in names.items() if name not in timings}


class StreamingMetrics:
    """`compute_metrics` of a Trainer with `batch_eval_metrics`: counts batch by batch, and starts again after each.

    Args:
        build: Makes metrics with `update(predicted, labels)` and `compute()`, for example `SegmentationMetrics`.

    Example:

    ```python
    >>> import torch
    >>> from transformers import EvalPrediction
    >>> from eupe_hf.evaluation import ClassificationMetrics
    >>> from eupe_hf.training import StreamingMetrics

    >>> compute = StreamingMetrics(lambda: ClassificationMetrics(num_labels=2))
    >>> compute(EvalPrediction(torch.tensor([0, 1]), torch.tensor([0, 0])), compute_result=False)
    {}
    >>> compute(EvalPrediction(torch.tensor([1]), torch.tensor([1])), compute_result=True)["mean_accuracy"]
    0.75

    ```
    """

    def __init__(self, build: Callable[[], Any]):
        self.build, self.metrics = build, build()

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count one batch of class ids; the metrics with the last one."""
        self.metrics.update(prediction.predictions, prediction.label_ids)
        if not compute_result:
            return {}
        result, self.metrics = self.metrics.compute(), self.build()
        return result


class RecipeTrainer(CardTrainer):
    """Trainer of a task: its rows, metrics and comparison, learning rates by depth, early stopping.

    Args:
        task: The task.
        processor: The image processor, with the size of the run.
        patch_size: Of the encoder.
        args: Options of the run.
        **kwargs: As for the Trainer.
    """

    def __init__(self, task: RecipeTask, processor: Any, patch_size: int, args: Any, **kwargs: Any):
        train, evaluation = task.rows(processor, patch_size)
        if isinstance(train, TrainingRows) and isinstance(train.rows, Stream):
            train = StreamedRows(train)
        errors = tuple(error for part in task.parts.values() for error in part.errors)
        if str(args.metric_for_best_model).endswith(errors):
            args.greater_is_better = False
        self.streams = {name: StreamingMetrics(part.metrics) for name, part in task.parts.items()}
        options = {"args": args, "processing_class": processor, "data_collator": task.collate, **kwargs}
        options |= {"train_dataset": train, "eval_dataset": evaluation, "compute_metrics": self.streams.get("")}
        super().__init__(task, **options)
        for encoder in find_encoders(self.model).values():  # a model that is saved elsewhere gets a processor from it
            encoder.config.image_size = task.arguments.size
        if args.early_stopping is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping))

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's; of a stream each process reads its own part.

        accelerate would have one process read for all, which cuts lists of boxes wrongly, or have each decode all.
        """
        rows, args, workers = self.train_dataset, self.args, self.args.dataloader_num_workers
        if not isinstance(rows, StreamedRows):
            return super().get_train_dataloader()
        rows.stream.divide(args.process_index, args.world_size, max(1, workers))
        options = {"num_workers": workers, "prefetch_factor": args.dataloader_prefetch_factor}
        options |= {"collate_fn": self.data_collator, "pin_memory": args.dataloader_pin_memory}
        loader = DataLoader(rows, args.train_batch_size, **options)
        # one process: the rows are divided already
        options = {"num_processes": 1, "process_index": 0, "put_on_device": True, "dispatch_batches": False}
        return prepare_data_loader(loader, args.device, **options)

    def rate_of(self, model: nn.Module) -> Callable[[str, nn.Parameter], float]:
        """By depth in the encoder."""
        args = self.args
        return rate_by_depth(model, args.learning_rate, args.layer_decay, args.head_learning_rate)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """The loss of a batch, and what the metrics of its task take."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]  # which label smoothing takes out
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        loss = self.task.loss(output, loss).detach().mean()
        if prediction_loss_only:
            return loss, None, None
        return loss, *self.task.compare(output, labels, self.processing_class)
