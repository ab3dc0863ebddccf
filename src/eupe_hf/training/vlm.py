# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Both stages of LLaVA-1.5's training (arXiv 2310.03744, table 9): options, what learns, the Trainer, the card.

LoRA's scale is one here, as in the other recipes: alpha is the rank. LLaVA-1.5's own script has rank 128 and twice the
scale: `--alpha 256`. Needs `pip install 'eupe-hf[train]'`.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers.trainer_pt_utils import LengthGroupedSampler

from eupe_hf.evaluation.results import EvaluationResult
from eupe_hf.models.modeling_eupe_cards import as_text, hub_id
from eupe_hf.models.modeling_eupe_llava import EupeLlavaForConditionalGeneration
from eupe_hf.models.modeling_eupe_llava_joining import cast
from eupe_hf.models.processing_eupe_llava import EupeLlavaProcessor

from .conversations import ConversationArguments, ConversationCollator, ConversationData
from .options import AdapterArguments, OutputArguments, check_output, check_processes, parse_options, peek, public
from .report import describe, settings_table
from .trainer import CardTrainer, SetEpoch


_PROJECTOR = "multi_modal_projector"
# Of both stages, as in the paper.
_VLM = {
    "num_train_epochs": 1,
    "warmup_steps": 0.03,  # a share of all steps
    "weight_decay": 0.0,
    "per_device_train_batch_size": 8,
    "bf16": torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
    "activation_checkpointing": True,
    "train_sampling_strategy": "group_by_length",
    "logging_first_step": True,
    "save_strategy": "steps",
    "save_steps": 0.1,
    "save_total_limit": 1,
    "prediction_loss_only": True,
    "rank": 128,
    "dropout": 0.05,
}
_STAGES = {"1": {"learning_rate": 1e-3, "batch_size": 256}, "2": {"learning_rate": 2e-5, "batch_size": 128}}
_LORA = {"learning_rate": 2e-4, "projector_learning_rate": 2e-5}  # LLaVA-1.5's scripts/v1_5/finetune_lora.sh


@dataclass
class VlmModelArguments(AdapterArguments):
    """The models, and what of them is trained."""

    stage: int = field(
        default=1, metadata={"help": "1: the projector alone; 2: projector and language model", "choices": [1, 2]}
    )
    vision: str = field(default="eupe-b", metadata={"help": "the encoder: a short name, a Hub id or a folder"})
    text: str | None = field(default=None, metadata={"help": "a causal language model to join it with"})
    model: str | None = field(default=None, metadata={"help": "instead of both: a VLM, as stage 1 saves it"})
    size: int = field(default=384, metadata={"help": "side in pixels to which images are resized"})
    scale_factor: int = field(default=1, metadata={"help": "2: a quarter of the image tokens"})
    vision_feature_layer: list[int] | None = field(
        default=None, metadata={"help": "hidden states of the encoder to project; default: the last"}
    )
    lora: str | None = field(
        default=None,
        metadata={"help": "stage 2: adapters on the language model, or on both", "choices": ["language", "both"]},
    )
    alpha: float | None = field(
        default=None, metadata={"help": "LoRA: scale of the updates, times 1 / rank; default: --rank (LLaVA-1.5: 256)"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text is None) == (self.model is None):
            raise ValueError("Give either --text, a language model to join with --vision, or --model, a VLM.")
        if self.lora is not None and self.stage == 1:
            raise ValueError("--lora requires --stage 2: stage 1 trains the projector alone.")

    def settings(self) -> dict[str, Any]:
        """What results and card say of these options."""
        unused = ["vision", "size", "scale_factor", "vision_feature_layer"] if self.model else ["model"]
        unused += [] if self.lora else ["rank", "alpha", "dropout"]
        chosen = {key: value for key, value in asdict(self).items() if key not in unused}
        return {key: public(value) if isinstance(value, str) else value for key, value in chosen.items()}


@dataclass
class VlmArguments(OutputArguments):
    """The Trainer's own arguments, and what training a VLM adds to them."""

    batch_size: int = field(
        default=256, metadata={"help": "examples per step, of all processes: sets --gradient_accumulation_steps"}
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
    """Read the command line of a stage, and check the output folder: what `parse_recipe` does for recipes."""
    stage = peek("stage", "1", arguments)
    defaults = _VLM | _STAGES.get(stage, {}) | (_LORA if peek("lora", "", arguments) else {})
    classes = (VlmModelArguments, ConversationArguments, VlmArguments)
    usage = "--stage 1 --text MODEL --dataset DATASET"
    defaults |= {"output_dir": f"eupe-vlm-stage{stage}"}
    model, data, training = parse_options(classes, defaults, description, arguments, usage)
    if training.merge and model.lora is None:
        raise ValueError("--merge requires --lora; without it an ordinary model is saved anyway.")
    if model.lora is not None and model.model is None and not training.merge:
        raise ValueError(
            "An adapter needs a base to be loaded on: give --model with what stage 1 left, or --merge to save all."
        )
    check_processes(training)
    check_output(training)
    return model, data, training


def load_vlm(arguments: VlmModelArguments) -> tuple[EupeLlavaForConditionalGeneration, EupeLlavaProcessor]:
    """The VLM of `--model`, which must be whole, or one of `--vision` and `--text` with a new projector."""
    if arguments.model is not None:
        model = EupeLlavaForConditionalGeneration.from_pretrained(arguments.model)
        if model._hf_peft_config_loaded:
            raise ValueError(
                f"--model {arguments.model} is an adapter: give a whole model, as training with --merge saves it."
            )
        return model, EupeLlavaProcessor.from_pretrained(arguments.model)
    return EupeLlavaForConditionalGeneration.from_vision_text(
        arguments.vision,
        arguments.text,
        image_size=arguments.size,
        scale_factor=arguments.scale_factor,
        vision_feature_layer=arguments.vision_feature_layer or -1,
    )


def adapt_vlm(model: EupeLlavaForConditionalGeneration, arguments: VlmModelArguments) -> nn.Module:
    """Choose what is trained: the projector, with the language model or adapters in stage 2.

    What is trained is held in float32, as mixed precision needs: in bfloat16 most updates of 2e-5 would be rounded
    away. What is frozen stays in the type that it was loaded in. With `--lora` this returns peft's model around it.
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
    modules = model.language_model.named_modules()  # LLaVA-1.5 adapts all of its linear layers
    names = sorted({name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)})
    language = rf"(?:.*\.)?language_model\..*\.(?:{'|'.join(map(re.escape, names))})"
    config.target_modules = language if arguments.lora == "language" else f"{language}|{config.target_modules}"
    import peft

    return peft.get_peft_model(model, config)


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
        data: Conversations.
        processor: Of the model.
        args: Options of the run.
        dtype: What the weights are saved in. Where FSDP or DeepSpeed hold them in parts they stay as they are.
        **kwargs: As for the Trainer.
    """

    def __init__(self, data: ConversationData, processor: Any, args: VlmArguments, dtype: torch.dtype, **kwargs: Any):
        options = {"args": args, "processing_class": processor, "data_collator": ConversationCollator(processor)}
        super().__init__(data, train_dataset=data.train, eval_dataset=data.evaluation, **options, **kwargs)
        self.dtype = dtype
        # by whole steps: the order does not depend on how they are split over devices
        self.sampler = _LengthSampler(args.batch_size, data.lengths, args.seed)
        self.add_callback(SetEpoch(self.sampler))

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        # the Trainer's own would open every image to learn its length
        by_length = self.args.train_sampling_strategy == "group_by_length"
        return self.sampler if by_length else super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return torch.utils.data.SequentialSampler(eval_dataset)

    def rate_of(self, model: nn.Module) -> Callable[[str, nn.Parameter], float]:
        """The projector's own rate, and one for all else."""
        rate, own = self.args.learning_rate, self.args.projector_learning_rate
        return lambda name, parameter: own if own is not None and _PROJECTOR in name else rate

    def settle(self) -> None:
        """As for recipes, in the type that the weights came in."""
        super().settle()
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            cast(self.model, self.dtype)

    def scores(self) -> dict[str, float]:
        """The loss of the held-out conversations, or the mean loss of the last tenth of the training."""
        if self.eval_dataset is not None:
            return super().scores()
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        last = losses[-max(1, len(losses) // 10) :]
        return {"training_loss": sum(last) / len(last)} if last else {}


def vlm_card(folder: Path, model: nn.Module, results: Sequence[EvaluationResult]) -> ModelCard:
    """The model's own card, with data, recipe and the one result: what `recipe_card` is for recipes."""
    (result,) = results
    config = getattr(model, "peft_config", {}).get("default")
    card = (model if config is None else model.get_base_model())._new_card()
    if "loss" in result.metrics:  # of held-out conversations; the settings stand in the table, once
        card.data.model_name, card.data.eval_results = result.model, replace(result, settings=None).eval_results()
    card.data.datasets = [result.dataset] if hub_id(result.dataset) == result.dataset else None
    if config is not None:
        base = config.base_model_name_or_path
        card.data.library_name, card.data.tags, card.data.base_model = "peft", [*card.data.tags, "lora"], hub_id(base)
        card.text += (
            f"\nThis folder holds a LoRA adapter and the projector alone, for the base {as_text(public(base))}. "
        )
        card.text += "`eupe_hf.lora.load_peft_model(PATH).merge_and_unload()` joins them.\n"
    data = f"{result.dataset}, {result.split}: {result.num_examples} conversations"
    describe(card, data, f"As LLaVA-1.5.\n\n{settings_table(result)}", results)
    return card
