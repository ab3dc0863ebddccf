# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the training recipes share: options, optimizer groups, streaming metrics, the Trainer.

Needs `pip install 'eupe-hf[train]'`.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, EvalPrediction, HfArgumentParser
from transformers.modeling_utils import PreTrainedModel

from .augmentation import StreamedRows, TrainingRows
from .data import Stream
from .modeling_eupe import EupeBackbone, EupeModel
from .modeling_eupe_head import resize
from .training_base import CardTrainer, OptionsHelp, OutputArguments, check_output, one_sentence
from .training_data import DataArguments, InputArguments
from .training_scale import check_processes, prepare_streaming, quantization, stream_loader


MODES = ("lora", "probe", "full")

# Of every recipe; a task and a mode add theirs.
_COMMON = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "logging_steps": 10,
    "lr_scheduler_type": "cosine",  # the paper's evaluation protocols
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "batch_eval_metrics": True,  # metrics count batch by batch: memory does not grow with the evaluation set
    "dataloader_num_workers": 4,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "hub_strategy": "end",
}
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "classification": {
        "all": {"metric_for_best_model": "accuracy", "per_device_train_batch_size": 32, "num_train_epochs": 5},
        # peft's published recipe for image classification: rank 16, alpha 16, dropout 0.1, 5 epochs, learning rate
        # 5e-3 at batch 512 (128, accumulated four times); at batch 32 a quarter of it, by the square root of the
        # ratio, as Adam wants
        "lora": {"learning_rate": 1.25e-3, "rank": 16, "dropout": 0.1, "warmup_steps": 0.05},
        # as the paper's protocol trains its linear head for segmentation, with AdamW; the linear evaluation of DINOv2
        # (arXiv 2304.07193) has no one rate: it tries thirteen from 1e-5 to 0.1, for SGD
        "probe": {"learning_rate": 1e-3},
        # MAE's fine-tuning of a ViT-B (arXiv 2111.06377): 5e-4 for each 256 images, weight decay 0.05, warm-up, decay
        # by layers (0.65 there, for 100 epochs; 0.75 as MAE and BEiT have it for the 50 epochs of a ViT-L); the head
        # is new and learns faster
        "full": {
            "learning_rate": 6e-5, "weight_decay": 0.05, "layer_decay": 0.75, "head_learning_rate": 1e-3,
            "warmup_steps": 0.05,
        },
    },
    "segmentation": {
        # batch, warm-up (1,500 of 40,000 steps), weight decay and the head's learning rate: the paper's protocol
        "all": {
            "metric_for_best_model": "mean_iou", "per_device_train_batch_size": 16, "num_train_epochs": 50,
            "head_learning_rate": 1e-3, "weight_decay": 1e-3, "warmup_steps": 0.0375, "size": 512,
        },
        # peft's published recipe for semantic segmentation: rank 32, alpha 32, dropout 0.1, 50 epochs, and its 5e-4 as
        # it stands, though at batch 4
        "lora": {"learning_rate": 5e-4, "rank": 32, "dropout": 0.1},
        "probe": {"learning_rate": 1e-3},
        # 6e-5: SegFormer (arXiv 2105.15203), batch 16 too; decay by layers as for classification (BEiT, arXiv
        # 2106.08254, has 0.65 or 0.9 for ADE20K, by how it was pretrained)
        "full": {"learning_rate": 6e-5, "layer_decay": 0.75},
    },
}  # fmt: skip


# ---- options ----


@dataclass
class ModelArguments:
    """The encoder, and which part of it is trained."""

    encoder: str = field(default="eupe-s", metadata={"help": "a short name, a Hub id or a folder"})
    mode: str = field(
        default="lora",
        metadata={"help": "adapters and head (lora), the head alone (probe), or everything (full)", "choices": MODES},
    )
    layers: list[int] | None = field(
        default=None, metadata={"help": "blocks or stages that the head reads, from 0; default: the last"}
    )
    rank: int = field(default=16, metadata={"help": "LoRA: rank of the updates"})
    alpha: float | None = field(
        default=None, metadata={"help": "LoRA: scale of the updates, times 1 / rank; default: --rank"}
    )
    targets: list[str] | None = field(
        default=None,
        metadata={"help": "LoRA: attention, mlp, all, or names of layers; default: attention, for a ConvNeXt mlp"},
    )
    dropout: float = field(default=0.0, metadata={"help": "LoRA: dropout before the updates"})
    use_dora: bool = field(default=False, metadata={"help": "LoRA: weight-decomposed updates (DoRA)"})
    use_rslora: bool = field(default=False, metadata={"help": "LoRA: scale by 1 / sqrt(rank) (rsLoRA)"})
    quantize: str | None = field(
        default=None, metadata={"help": "LoRA: bits of the encoder's weights", "choices": ("8bit", "4bit")}
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"--rank must be at least 1, got {self.rank}.")
        if self.alpha is None:
            self.alpha = float(self.rank)  # as in both of peft's recipes, whatever the rank
        self.loading: dict[str, Any] = {}  # how to load quantized weights

    def head_fields(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained` that these options set."""
        return self.loading | ({} if self.layers is None else {"out_indices": [layer + 1 for layer in self.layers]})


@dataclass
class RecipeArguments(OutputArguments):
    """The Trainer's own arguments, and what the recipes add to them."""

    layer_decay: float = field(
        default=1.0, metadata={"help": "learning rate of a block (ConvNeXt: stage) over that of the one above it"}
    )
    head_learning_rate: float | None = field(default=None, metadata={"help": "default: --learning_rate"})
    early_stopping: int | None = field(
        default=None, metadata={"help": "stop after this many evaluations without a better metric"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay must be above 0 and at most 1, got {self.layer_decay}.")
        if self.early_stopping is not None and self.early_stopping < 1:
            raise ValueError(f"--early_stopping must be at least 1, got {self.early_stopping}.")


def parse_recipe(
    task: str,
    description: str,
    arguments: Sequence[str] | None = None,
    data_class: type[InputArguments] = DataArguments,
    defaults: Mapping[str, Mapping[str, Any]] | None = None,
    usage: str = "--dataset DATASET",
) -> tuple[ModelArguments, Any, RecipeArguments]:
    """Read the command line of a recipe, and check the output folder.

    Args:
        task: "classification" or "segmentation", or the name of a task that comes with `defaults`.
        description: Shown by `--help`.
        arguments: The command line; by default the program's own.
        data_class: `DataArguments` or a subclass with more options.
        defaults: Options of "all" modes, "lora", "probe" and "full", by default those of the task.
        usage: The options that are needed.

    Returns:
        The three groups of options. `resume_from_checkpoint` is a folder, also where "last" was given.

    Raises:
        ValueError: Options that do not go together, or an output folder in use.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--mode", choices=MODES, default="lora")
    mode = finder.parse_known_args(arguments)[0].mode
    table = defaults or _DEFAULTS[task]
    parser = HfArgumentParser(
        (ModelArguments, data_class, RecipeArguments),
        description=description,
        formatter_class=OptionsHelp,
        usage=f"%(prog)s {usage} [options]",  # all of them would hide the message of an error
    )
    parser.set_defaults(**_COMMON, output_dir=f"eupe-{task}-{mode}")
    parser.set_defaults(**{**table.get("all", {}), **table.get(mode, {})})
    model, data, training = parser.parse_args_into_dataclasses(args=arguments)
    if training.merge and mode != "lora":
        raise ValueError(f"--merge goes with --mode lora; --mode {mode} saves an ordinary model anyway.")
    check_processes(training)
    model.loading = quantization(model, training)
    if data.streaming:
        prepare_streaming(training)
    check_output(training)
    return model, data, training


# ---- model and optimizer ----


def adapt(model: PreTrainedModel, arguments: ModelArguments) -> nn.Module:
    """Choose what is trained: the model with adapters, with a frozen encoder, or as it is."""
    if arguments.mode == "probe":
        model.freeze_backbone()
    if arguments.mode != "lora":
        return model
    from .lora import lora_config  # says what to install where peft is missing, and only LoRA needs it

    targets: Any = arguments.targets
    if targets is not None and len(targets) == 1:
        (targets,) = targets
    options = {key: getattr(arguments, key) for key in ("alpha", "dropout", "use_dora", "use_rslora")}
    config = lora_config(model, r=arguments.rank, targets=targets, **options)
    import peft

    if arguments.quantize:  # after the configuration, which takes for new what is trained
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return peft.get_peft_model(model, config)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    layer_decay: float = 1.0,
    head_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Optimizer groups of what a model trains: by depth in the encoder, and with weight decay or without.

    With N blocks (ConvNeXt: stages) the embeddings (stem) learn at `learning_rate * layer_decay ** (N + 1)`, block i,
    from 0, at `learning_rate * layer_decay ** (N - i)`, and the final norm at `learning_rate`, as in BEiT and MAE.
    Whatever is not in an EUPE encoder is head. Vectors (norms, biases, layer-scale) and learned tokens never decay.

    Args:
        model: Any model with an EUPE encoder in it, also one with adapters.
        learning_rate: Of the encoder's final norm.
        weight_decay: Of matrices and kernels.
        layer_decay: Factor from each block to the one below.
        head_learning_rate: By default `learning_rate`.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, in the order of the model.

    Raises:
        ValueError: Nothing is to be trained.
    """
    depths: dict[int, float] = {}  # of each parameter of an encoder: how often its rate is decayed
    for module in model.modules():
        if isinstance(module, (EupeBackbone, EupeModel)):
            blocks = len(module.encoder.layers if module.config.backbone_type == "vit" else module.encoder.stages)
            for name, parameter in module.named_parameters():
                depths[id(parameter)] = _decays(name, blocks)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = learning_rate if head_learning_rate is None else head_learning_rate
        if id(parameter) in depths:
            rate = learning_rate * layer_decay ** depths[id(parameter)]
        decays = parameter.ndim > 1 and not re.search(r"_tokens?$", name)
        groups.setdefault((rate, weight_decay if decays else 0.0), []).append(parameter)
    if not groups:
        raise ValueError("Nothing is to be trained: every parameter is frozen.")
    return [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]


def _decays(name: str, blocks: int) -> int:
    if block := re.match(r"encoder\.(?:layers|stages)\.(\d+)\.", name):
        return blocks - int(block[1])
    return blocks + 1 if name.startswith(("encoder.embeddings.", "encoder.stem.")) else 0


# ---- metrics ----


class StreamingMetrics:
    """`compute_metrics` of a Trainer with `batch_eval_metrics`: counts batch by batch, and starts anew after each run.

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


def predicted_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Class ids (B,) from (B, classes), or label maps (B, H, W), of the size of the labels, from (B, classes, h, w).

    The Trainer's `preprocess_logits_for_metrics`, so that no logits are kept.
    """
    if logits.ndim == 4:
        logits = resize(logits.float(), labels.shape[1:])
    return logits.argmax(dim=1)


# ---- trainer ----


class RecipeTrainer(CardTrainer):
    """Trainer with the optimizer groups of `parameter_groups`, early stopping, and a card that says how it learned."""

    def __init__(self, *args: Any, **kwargs: Any):
        rows = kwargs.get("train_dataset")
        if isinstance(rows, TrainingRows) and isinstance(rows.rows, Stream):
            kwargs["train_dataset"] = StreamedRows(rows)
        super().__init__(*args, **kwargs)
        if self.args.early_stopping is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping))

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's; of a stream each process reads its own part."""
        if isinstance(self.train_dataset, StreamedRows):
            return stream_loader(self.train_dataset, self.data_collator, self.args)
        return super().get_train_dataloader()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As the Trainer's, with our groups."""
        if getattr(self, "optimizer", None) is None:
            model, args = self.model if model is None else model, self.args
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, model)
            rates = (args.learning_rate, args.weight_decay, args.layer_decay, args.head_learning_rate)
            self.optimizer = optimizer_class(parameter_groups(model, *rates), **options)
        return self.optimizer


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
    "predicted_classes",
]
