# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Both stages of LLaVA-1.5's training (arXiv 2310.03744, table 9): options, what learns, the Trainer, what it leaves.

Needs `pip install 'eupe-hf[train]'`.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers import HfArgumentParser
from transformers.trainer_pt_utils import LengthGroupedSampler

from eupe_hf.evaluation.results import EvaluationResult
from eupe_hf.models.modeling_eupe_llava import EupeLlavaForConditionalGeneration
from eupe_hf.models.modeling_eupe_llava_joining import cast
from eupe_hf.models.processing_eupe_llava import EupeLlavaProcessor

from .conversations import ConversationArguments, ConversationData
from .options import OptionsHelp, OutputArguments, check_output, check_processes
from .report import draw_curve
from .trainer import CardTrainer, SetEpoch


_PROJECTOR = "multi_modal_projector"


# Of both stages, as in the paper.
_COMMON = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # a share of all steps
    "weight_decay": 0.0,
    "per_device_train_batch_size": 8,
    "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    "activation_checkpointing": True,
    "train_sampling_strategy": "group_by_length",
    "logging_steps": 10,
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 1,
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "prediction_loss_only": True,
    "dataloader_num_workers": 4,
    "dataloader_pin_memory": torch.accelerator.is_available(),
    "hub_strategy": "end",
}


_STAGES = {1: {"learning_rate": 1e-3, "batch_size": 256}, 2: {"learning_rate": 2e-5, "batch_size": 128}}


# LLaVA-1.5's own script for LoRA, scripts/v1_5/finetune_lora.sh
_LORA = {"learning_rate": 2e-4, "projector_learning_rate": 2e-5}


# ---- options ----


@dataclass
class VlmModelArguments:
    """The models, and what of them is trained."""

    stage: int = field(
        default=1,
        metadata={"help": "1: the projector alone; 2: projector and language model", "choices": [1, 2]},
    )
    vision: str = field(default="eupe-b", metadata={"help": "the encoder: a short name, a Hub id or a folder"})
    text: str | None = field(default=None, metadata={"help": "a causal language model to join it with"})
    model: str | None = field(default=None, metadata={"help": "instead of both a VLM, such as stage 1 leaves"})
    image_size: int = field(default=384, metadata={"help": "side in pixels to which images are squashed"})
    scale_factor: int = field(default=1, metadata={"help": "2: a quarter of the image tokens"})
    vision_feature_layer: list[int] | None = field(
        default=None, metadata={"help": "hidden states of the encoder to project; default: the last"}
    )
    lora: str | None = field(
        default=None,
        metadata={"help": "stage 2: adapters on the language model, or on both", "choices": ["language", "both"]},
    )
    rank: int = field(default=128, metadata={"help": "LoRA: rank of the updates"})
    alpha: float | None = field(
        default=None, metadata={"help": "LoRA: scale of the updates, times 1 / rank; default: twice --rank"}
    )
    dropout: float = field(default=0.05, metadata={"help": "LoRA: dropout before the updates"})

    def __post_init__(self) -> None:
        if (self.text is None) == (self.model is None):
            raise ValueError("Give either --text, a language model to join with --vision, or --model, a VLM.")
        if self.lora is not None and self.stage == 1:
            raise ValueError("--lora goes with --stage 2: stage 1 trains the projector alone.")
        if self.rank < 1:
            raise ValueError(f"--rank must be at least 1, got {self.rank}.")
        self.alpha = 2.0 * self.rank if self.alpha is None else self.alpha


@dataclass
class VlmArguments(OutputArguments):
    """The Trainer's own arguments, and what training a VLM adds to them."""

    batch_size: int = field(
        default=256,
        metadata={"help": "examples per step, of all processes together: sets --gradient_accumulation_steps"},
    )
    projector_learning_rate: float | None = field(default=None, metadata={"help": "default: --learning_rate"})

    def __post_init__(self) -> None:
        super().__post_init__()
        at_once = self.train_batch_size * self.world_size
        if self.batch_size < 1 or self.batch_size % at_once:
            raise ValueError(
                f"--batch_size {self.batch_size} must be a multiple of the {at_once} examples that are processed at "
                f"once: --per_device_train_batch_size {self.per_device_train_batch_size} on each device."
            )
        self.gradient_accumulation_steps = self.batch_size // at_once


def parse_vlm(
    description: str, arguments: Sequence[str] | None = None
) -> tuple[VlmModelArguments, ConversationArguments, VlmArguments]:
    """Read the command line, and check the output folder.

    Args:
        description: Shown by `--help`.
        arguments: The command line; by default the program's own.

    Returns:
        The three groups of options. `resume_from_checkpoint` is a folder, also where "last" was given.

    Raises:
        ValueError: Options that do not go together, or an output folder in use.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--stage", type=int, choices=_STAGES, default=1)
    finder.add_argument("--lora")
    found = finder.parse_known_args(arguments)[0]
    parser = HfArgumentParser(
        (VlmModelArguments, ConversationArguments, VlmArguments),
        description=description,
        formatter_class=OptionsHelp,
        usage="%(prog)s --stage 1 --text MODEL --dataset DATASET [options]",
    )
    parser.set_defaults(**_COMMON, **_STAGES[found.stage], output_dir=f"eupe-vlm-stage{found.stage}")
    if found.lora:
        parser.set_defaults(**_LORA)
    model, data, training = parser.parse_args_into_dataclasses(args=arguments)
    if training.merge and model.lora is None:
        raise ValueError("--merge goes with --lora: without it an ordinary model is saved anyway.")
    if model.lora is not None and model.model is None and not training.merge:
        raise ValueError(
            "An adapter needs a base to be loaded on: give --model with what stage 1 left, or --merge to save all."
        )
    check_processes(training)
    check_output(training)
    return model, data, training


# ---- model ----


def load_vlm(arguments: VlmModelArguments) -> tuple[EupeLlavaForConditionalGeneration, EupeLlavaProcessor]:
    """The VLM of `--model`, or one of `--vision` and `--text` with a new projector, and its processor.

    Raises:
        OSError: A model is not to be had.
        ValueError: `--model` is an adapter, or what `from_vision_text` refuses.
    """
    if arguments.model is not None:
        model = EupeLlavaForConditionalGeneration.from_pretrained(arguments.model)
        if model._hf_peft_config_loaded:
            raise ValueError(
                f"--model {arguments.model} is an adapter: give a whole model, such as --merge saves where an adapter "
                "is trained."
            )
        return model, EupeLlavaProcessor.from_pretrained(arguments.model)
    return EupeLlavaForConditionalGeneration.from_vision_text(
        arguments.vision,
        arguments.text,
        image_size=arguments.image_size,
        scale_factor=arguments.scale_factor,
        vision_feature_layer=arguments.vision_feature_layer or -1,
    )


def adapt_vlm(model: EupeLlavaForConditionalGeneration, arguments: VlmModelArguments) -> nn.Module:
    """Choose what is trained: the projector, with the language model or adapters in stage 2.

    What is trained is held in float32, as mixed precision needs: in bfloat16 most updates of 2e-5 would be rounded
    away. What is frozen stays in the type that it was loaded in.

    Args:
        model: The VLM.
        arguments: `stage`, and `lora` with its options.

    Returns:
        The model, or peft's around it.
    """
    learns = [model.multi_modal_projector]
    if arguments.stage == 2 and arguments.lora is None:
        learns += [model.language_model, model.lm_head]
    model.requires_grad_(False)
    for module in learns:
        module.requires_grad_(True)
        cast(module, torch.float32)
    if arguments.lora is None:
        return model
    from eupe_hf.lora.config import lora_config  # says what to install where peft is missing, and only LoRA needs it

    config = lora_config(
        model, arguments.rank, arguments.alpha, dropout=arguments.dropout, modules_to_save=[_PROJECTOR]
    )
    names = sorted(set(_linear_layers(model.language_model)))
    language = rf"(?:.*\.)?language_model\..*\.(?:{'|'.join(map(re.escape, names))})"
    config.target_modules = language if arguments.lora == "language" else f"{language}|{config.target_modules}"
    import peft

    return peft.get_peft_model(model, config)


def _linear_layers(language_model: nn.Module) -> Iterator[str]:
    """Last parts of the names of its linear layers, to which LLaVA-1.5 adds its updates."""
    for name, module in language_model.named_modules():
        if isinstance(module, nn.Linear):
            yield name.rpartition(".")[2]


# ---- trainer ----


class _LengthSampler(LengthGroupedSampler):
    """transformers' sampler, in an order that depends on seed and epoch alone, as a resumed run needs."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """From now on give the order of this epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()


class VlmTrainer(CardTrainer):
    """Trainer that samples by lengths known beforehand, with a learning rate of its own for the projector.

    Args:
        lengths: Tokens of each example to train on.
        *args: The Trainer's.
        **kwargs: The Trainer's.
    """

    def __init__(self, *args: Any, lengths: list[int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        # by whole steps: the order does not depend on how they are split over devices
        self.sampler = _LengthSampler(self.args.batch_size, lengths, self.args.seed)
        self.add_callback(SetEpoch(self.sampler))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # the Trainer's own would open every image to learn its length
        by_length = self.args.train_sampling_strategy == "group_by_length"
        return self.sampler if by_length else super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return torch.utils.data.SequentialSampler(eval_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As the Trainer's, with the projector's learning rate, and no decay of vectors."""
        if getattr(self, "optimizer", None) is None:
            model, args = self.model if model is None else model, self.args
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(args, model)
            groups: dict[tuple[float, float], list[nn.Parameter]] = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    own = args.projector_learning_rate if _PROJECTOR in name else None
                    rate = args.learning_rate if own is None else own
                    decay = args.weight_decay if parameter.ndim > 1 else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            entries = [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
            self.optimizer = optimizer_class(entries, **options)
        return self.optimizer


# ---- what is left ----


def finish_vlm(
    trainer: VlmTrainer,
    model: VlmModelArguments,
    data: ConversationArguments,
    conversations: ConversationData,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Save the model (merged, if asked), processor, results, curve and card; push, if asked.

    The trainer leaves the group of processes with it, and is not to be used any more.

    Args:
        trainer: After training.
        model: Options of the run.
        data: Options of the run.
        conversations: What it was trained on.
        dtype: What the weights are saved in. Where FSDP or DeepSpeed hold them in parts they stay as they are.

    Returns:
        The loss of the held-out conversations, or that of the last tenth of the training.
    """
    args, folder = trainer.args, Path(trainer.args.output_dir)
    if args.merge:
        trainer.model = trainer.model_wrapped = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        cast(trainer.model, dtype)
    history = list(trainer.state.log_history)
    scores = _scores(trainer, conversations, history)
    trainer.save_model(args.output_dir, _internal_call=True)
    trainer.save_state()
    if trainer.is_world_process_zero():
        split = f"{data.held_out} of {data.train_split}" if conversations.evaluation is not None else data.train_split
        result = EvaluationResult(
            protocol="conversation",
            model=folder.resolve().name,
            dataset=_public(data.dataset),
            split=split,
            num_examples=len(conversations.evaluation or conversations.train),
            metrics=scores,
            settings=_settings(args, model, data, trainer.state.global_step),
            dataset_config=data.dataset_config,
        )
        result.save(folder / "results.json")
        draw_curve(history, folder / "curve.png")
        trainer.card = vlm_card(trainer.accelerator.unwrap_model(trainer.model), result)
    trainer.create_model_card()
    if args.push_to_hub:
        trainer.push_to_hub()
    trainer.end()
    return scores


def _scores(trainer: VlmTrainer, conversations: ConversationData, history: list[dict[str, Any]]) -> dict[str, float]:
    if conversations.evaluation is not None:
        return {"loss": float(trainer.evaluate()["eval_loss"])}
    losses = [entry["loss"] for entry in history if "loss" in entry]
    last = losses[-max(1, len(losses) // 10) :]
    return {"training_loss": sum(last) / len(last)} if last else {}


def _settings(args: VlmArguments, model: VlmModelArguments, data: ConversationArguments, steps: int) -> dict[str, Any]:
    """What the result depends on, for results and card."""
    chosen = {key: _public(value) if isinstance(value, str) else value for key, value in asdict(model).items()}
    unused = ["vision", "image_size", "scale_factor", "vision_feature_layer"] if model.model else ["model"]
    unused += [] if model.lora else ["rank", "alpha", "dropout"]
    chosen = {key: value for key, value in chosen.items() if key not in unused}
    names = ("batch_size", "learning_rate", "projector_learning_rate", "weight_decay", "warmup_steps", "bf16", "seed")
    chosen |= {"merged": args.merge, "steps": steps, "max_length": data.max_length}
    chosen |= {name: getattr(args, name) for name in names}
    return {key: value for key, value in chosen.items() if value is not None}


def _public(name: str) -> str:
    """A Hub id as it is, a folder or file without where it lies on this machine."""
    return Path(name).resolve().name if Path(name).exists() else name


def vlm_card(model: nn.Module, result: EvaluationResult) -> ModelCard:
    """The model's own card, with data, recipe and result.

    Args:
        model: What was trained, perhaps with an adapter.
        result: Of the run.

    Returns:
        The card, ready to `save`.
    """
    config = getattr(model, "peft_config", {}).get("default")
    card = (model if config is None else model.get_base_model())._new_card()
    if "loss" in result.metrics:  # of held-out conversations; the settings stand in the table, once
        card.data.model_name, card.data.eval_results = result.model, replace(result, settings=None).eval_results()
    card.data.datasets = [result.dataset] if result.dataset.count("/") == 1 else None
    if config is not None:
        base = config.base_model_name_or_path
        card.data.library_name, card.data.tags = "peft", [*card.data.tags, "lora"]
        card.data.base_model = base if base.count("/") == 1 and not Path(base).exists() else None
        card.text += f"\nThis folder holds a LoRA adapter and the projector alone, for the base {_public(base)}. "
        card.text += "`eupe_hf.lora.load_peft_model(PATH).merge_and_unload()` joins them.\n"
    chosen = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in (result.settings or {}).items())
    scores = "\n".join(f"| {key.replace('_', ' ')} | {value:.4f} |" for key, value in result.metrics.items())
    card.text += f"\n## Data\n\n{result.dataset}, {result.split}: {result.num_examples} conversations\n"
    card.text += f"\n## Recipe\n\nAs LLaVA-1.5.\n\n| setting | value |\n|---|---|\n{chosen}\n"
    card.text += f"\n## Results\n\n| metric | value |\n|---|---|\n{scores}\n"
    return card
