# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA on EUPE models with peft: which layers to adapt, and adapters that load without knowing the head.

Importing this module gives peft the default targets of EUPE models. It needs `pip install 'eupe-hf[train]'`.

A configuration from `lora_config` saves the configuration of the model (`eupe_config.json`) and a card with the
adapter. The folder then loads with `from_pretrained` of its class, with the Auto class of the task, and with
`pipeline(task, model=folder)`. `load_peft_model` returns peft's model instead, to merge it or to train on.

With a peft configuration of your own, or without this package, transformers knows only the base:
`AutoModelFor...from_pretrained(folder, num_labels=...)` has to describe the head. Without the package, the base
must also be a model of that class that `save_pretrained` wrote, loaded with `trust_remote_code=True`. Merged models
have no limits: `load_peft_model(folder).merge_and_unload().save_pretrained(...)`.

An adapter is trained with `config.pos_embed_rescale`, as the encoders were: a ViT's patch coordinates are scaled at
random, so that one adapter serves several image sizes. `None` turns it off, for one size or for comparable runs.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from eupe_hf.models.modeling_eupe import EupePreTrainedModel, find_encoders
from eupe_hf.models.modeling_eupe_adapter import Adapter, save_model_config
from eupe_hf.models.reading_eupe_adapter import FAULTS
from eupe_hf.variants import VARIANTS

from .cards import MODELS, complete_cards


try:
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import constants, save_and_load
    from peft.utils.other import AuxiliaryTrainingWrapper
except ImportError as error:
    raise ImportError("LoRA needs peft: pip install 'eupe-hf[train]'.") from error


# Linear layers by what they do. A ConvNeXt's depthwise convolutions are never adapted: an update of rank r would have
# more parameters than the layer.
TARGETS: dict[str, tuple[str, ...]] = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("up_proj", "down_proj", "pointwise_conv1", "pointwise_conv2"),
}
TARGETS["all"] = TARGETS["attention"] + TARGETS["mlp"]
# What peft adapts by default: as for other ViTs, and in a ConvNeXt the pointwise layers.
_DEFAULTS = ("q_proj", "v_proj", "pointwise_conv1", "pointwise_conv2")
_MODEL_TYPES = ("eupe", "eupe_multitask", "eupe_pyramid")


class EupeLoraConfig(peft.LoraConfig):
    """A `peft.LoraConfig` that saves a card, and the configuration from which the right head is built."""

    def attach(self, model: PreTrainedModel) -> "EupeLoraConfig":
        """Remember the model whose configuration is to be saved. Returns this configuration."""
        self._model_config, self._architecture = model.config, type(model).__name__
        return self

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in peft, which calls this last; then the configuration of the model, and the card."""
        super().save_pretrained(save_directory, **kwargs)
        save_model_config(self._model_config, self._architecture, save_directory)
        complete_cards(save_directory)


def lora_config(
    model: PreTrainedModel,
    r: int = 16,
    alpha: float | None = None,
    targets: str | Sequence[str] | None = None,
    dropout: float = 0.0,
    use_dora: bool = False,
    use_rslora: bool = False,
    **kwargs: Any,
) -> EupeLoraConfig:
    """A configuration for `peft.get_peft_model`: which layers to adapt, and which to train and save in full.

    LoRA adapts linear layers of the EUPE encoder, wherever it sits in the model. Everything but the encoder is new: it
    is trained in full and saved with the adapter, batch-norm statistics included. A frozen head is left out: the base
    that you load the adapter on must have it. To switch between tasks (`set_adapter`) add one adapter each; heads of
    different shapes need a multi-task model, with `modules_to_save=["heads.NAME"]` for the adapter of each.

    Args:
        model: An encoder, a task model, a multi-task model, or a decoder of transformers on `EupeBackbone`; or one of
            these that peft has wrapped, for a further adapter.
        r: Rank of the updates.
        alpha: Scale of the updates, by default `r`: they are multiplied by alpha / r, or alpha / sqrt(r) with
            `use_rslora`.
        targets: "attention" (a ViT's query, key, value and output projections; its default), "mlp" (a ViT's MLPs, a
            ConvNeXt's pointwise layers; its default), "all", or names of layers ("q_proj", ...).
        dropout: Share of each update's inputs that is dropped in training.
        use_dora: Weight-decomposed updates (DoRA, arXiv 2402.09353): slower, often better at small ranks.
        use_rslora: Rank-stabilised scale (arXiv 2312.03732): for large ranks.
        **kwargs: Other fields of `peft.LoraConfig`. `modules_to_save` replaces the new parts.

    Raises:
        ValueError: The model has no EUPE encoder, a target matches none of its layers (the message lists them), or
            peft cannot save the new parts.

    Example:

    ```python
    >>> import peft
    >>> from eupe_hf import EupeForImageClassification, variant_config
    >>> from eupe_hf.lora import lora_config

    >>> model = EupeForImageClassification(variant_config("eupe-t", num_labels=10))
    >>> model = peft.get_peft_model(model, lora_config(model, r=8))
    >>> model.get_nb_trainable_parameters()
    (149386, 5641172)

    ```
    """
    if "target_modules" in kwargs:
        raise ValueError("lora_config finds target_modules itself: name the layers with targets=[...].")
    model = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    names = _target_names(model, targets)
    prefixes = "|".join(re.escape(f"{name}." if name else "") for name in _encoders(model))
    if "modules_to_save" not in kwargs:
        kwargs["modules_to_save"] = new_modules(model) or None
    if unused := unused_blocks(model):
        kwargs.setdefault("exclude_modules", unused)
    fields: dict[str, Any] = {
        "target_modules": rf"(?:{prefixes})encoder\.(?:layers|stages)\..*\.(?:{'|'.join(map(re.escape, names))})",
        "lora_alpha": r if alpha is None else alpha,
        "lora_dropout": dropout,
    }
    config = EupeLoraConfig(r=r, use_dora=use_dora, use_rslora=use_rslora, **fields, **kwargs)
    return config.attach(model)


def load_peft_model(source: str, is_trainable: bool = False, **kwargs: Any) -> peft.PeftModel:
    """Base, head and adapter as peft's model: to merge it (`merge_and_unload`), or to go on training.

    `peft.PeftModel.from_pretrained(model, source)` loads the adapter on a model that you have, but saves it without
    the configuration of the model.

    Args:
        source: Folder or Hub repository of an adapter that was made with `lora_config`.
        is_trainable: Whether adapter and head will be trained on; the model comes in eval mode all the same.
        **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder` of the adapter.

    Raises:
        OSError: The base was not found.
        ValueError: The adapter has no configuration of its model beside it, is damaged, or does not fit its base.
    """
    adapter = Adapter(source, kwargs)
    model_class = MODELS.get(adapter.architecture or "")
    if model_class is None:
        raise ValueError(
            f"{source} does not say which EUPE model it is for ({adapter.architecture or 'no eupe_config.json'}). "
            "Build that model, and load with peft.PeftModel.from_pretrained(model, ADAPTER)."
        )
    options = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    if issubclass(model_class, EupePreTrainedModel):
        model, _ = model_class.base_of_adapter(adapter, adapter.base, True, **options)
    else:  # the base of a VLM is whole
        model = model_class.from_pretrained(adapter.base, **options)
    adapter.check(model)
    try:
        config = EupeLoraConfig(**peft.LoraConfig.from_pretrained(source, **kwargs).to_dict()).attach(model)
        wrapped = peft.PeftModel.from_pretrained(model, source, config=config, is_trainable=is_trainable, **kwargs)
        expected = save_and_load.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        if missing := sorted(expected.keys() - {f"base_model.model.{name}" for name in adapter.tensors}):
            raise ValueError(f"it lacks {len(missing)} tensors, among them {missing[0]}.")
    except FAULTS as error:
        raise adapter.unreadable(error) from error
    return wrapped.eval()


def adaptable_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of the EUPE encoders in a model. Raises `ValueError` if it has none."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, encoder in _encoders(model).items()
        for name, module in encoder.named_modules()
        if re.match(r"encoder\.(?:layers|stages)\.", name) and ".base_layer" not in name and ".lora_" not in name
        # of a layer that has an adapter already, the layer inside
        if isinstance(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module, nn.Linear)
    ]


def unused_blocks(model: nn.Module) -> str | None:
    """A pattern of the layers in blocks that are not computed, since no chosen stage needs them; `None` for none."""
    blocks = [
        re.escape(f"{prefix}.{name}" if prefix else name)
        for prefix, encoder in _encoders(model).items()
        for name in getattr(encoder, "unused_blocks", lambda: [])()
    ]
    return rf"(?:{'|'.join(blocks)})\..*" if blocks else None


def new_modules(model: nn.Module) -> list[str]:
    """Names of the new parts of a model: all but the EUPE encoders and frozen heads.

    Raises:
        ValueError: New parameters that belong to no module of their own, or that peft would train twice.
    """
    # peft finds parts by the endings of their names: a part whose ending is found elsewhere too is taken apart
    names = list(_new_modules(model, "", set(_encoders(model).values())))
    while ambiguous := next((name for name in names if _unwanted(model, name)), None):
        module = model.get_submodule(ambiguous)
        parts = [f"{ambiguous}.{part}" for part, child in module.named_children() if list(child.parameters())]
        if not parts or list(module.parameters(recurse=False)):
            raise ValueError(
                f"peft finds parts by the ending of their names, and would train {ambiguous} and "
                f"{_unwanted(model, ambiguous)[0]} apart, even where they are one and the same. Pass "
                "modules_to_save with what you want to train, e.g. modules_to_save=[] for the adapter alone."
            )
        place = names.index(ambiguous)
        names[place : place + 1] = parts
    return names


def _new_modules(module: nn.Module, name: str, encoders: set[nn.Module]) -> Iterator[str]:
    if module in encoders:
        return
    if isinstance(module, AuxiliaryTrainingWrapper):  # wrapped for an adapter that the model has
        yield name
        return
    holds_encoder = any(part in encoders for part in module.modules())
    # heads in a dictionary are frozen and trained one by one
    if not holds_encoder and not isinstance(module, nn.ModuleDict):
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield name
        return
    for part, _ in module.named_parameters(recurse=False):
        raise ValueError(f"{f'{name}.' if name else ''}{part} is new, but peft can save whole modules only.")
    for part, child in module.named_children():
        yield from _new_modules(child, f"{name}.{part}" if name else part, encoders)


def _unwanted(model: nn.Module, name: str) -> list[str]:
    """Other parts that peft would take for the part of this name."""
    anywhere = re.compile(rf"(?:.*\.)?{name}(?:\..*)?")
    return [
        other
        for other, _ in model.named_modules(remove_duplicate=False)
        if other != name and (other.endswith(name) or (anywhere.fullmatch(other) and not other.startswith(f"{name}.")))
    ]


def _encoders(model: nn.Module) -> dict[str, Any]:
    if not (found := find_encoders(model)):
        raise ValueError(f"This {type(model).__name__} has no EUPE encoder; LoRA targets are layers of one.")
    return found


def _target_names(model: nn.Module, targets: str | Sequence[str] | None) -> list[str]:
    there = sorted({name.rpartition(".")[2] for name in adaptable_layers(model)})
    if targets is None:
        targets = "attention" if "q_proj" in there else "mlp"
    if isinstance(targets, str) and targets in TARGETS:
        names, unknown = [name for name in TARGETS[targets] if name in there], []
    else:
        names = [targets] if isinstance(targets, str) else list(targets)
        unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise ValueError(
            f"targets={targets!r}: {', '.join(map(repr, unknown)) or 'nothing of it'} matches no linear layer of the "
            f"encoder in this {type(model).__name__}; it has {', '.join(there)}. All of them are targets='all'."
        )
    return names


def register() -> None:
    """Give peft the default targets of EUPE models, and answer for short names, which are not on the Hub."""
    for model_type in _MODEL_TYPES:
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type] = list(_DEFAULTS)
    ask = save_and_load.check_file_exists_on_hf_hub
    save_and_load.check_file_exists_on_hf_hub = lambda name, *args, **kwargs: (
        name not in VARIANTS and ask(name, *args, **kwargs)
    )


register()
