# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""LoRA on EUPE models with peft: which layers to adapt, and adapters that can be loaded without knowing the head.

Importing this module tells peft the default targets of EUPE models. It needs `pip install 'eupe-hf[train]'`.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_eupe import WEIGHTS_LICENSE
from .modeling_eupe import ADAPTER_CONFIG_NAME, EupeBackbone, EupeModel
from .modeling_eupe_head import EupeTaskModel
from .modeling_eupe_multitask import EupeForMultiTask
from .variants import VARIANTS


try:
    import peft
    from peft.utils import constants, save_and_load
except ImportError as error:
    raise ImportError("LoRA needs peft: pip install 'eupe-hf[train]'.") from error


# Linear layers of the two families by what they do. A ConvNeXt's depthwise convolutions are never adapted: an update of
# rank r would have more parameters than the layer.
TARGETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("up_proj", "down_proj", "pointwise_conv1", "pointwise_conv2"),
}
TARGETS["all"] = TARGETS["attention"] + TARGETS["mlp"]
_IN_ENCODER = r"(?:.*\.)?encoder\.(?:layers|stages)\..*"


class EupeLoraConfig(peft.LoraConfig):
    """A `peft.LoraConfig` that saves the configuration of the model beside the adapter.

    An adapter folder names its base, which is an encoder and does not know the head. With the configuration beside it
    `AutoModelForImageClassification.from_pretrained(folder)` builds the right one.
    """

    def attach(self, model: PreTrainedModel) -> "EupeLoraConfig":
        """Remember the model whose configuration is to be saved. Returns this configuration."""
        self._model_config, self._architecture = model.config, type(model).__name__
        return self

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in peft, which calls this last; and the model's configuration, and the licence in the card."""
        super().save_pretrained(save_directory, **kwargs)
        config = self._model_config.__class__.from_dict(self._model_config.to_dict())
        config.architectures = [self._architecture]
        folder = Path(save_directory)
        config.to_json_file(folder / ADAPTER_CONFIG_NAME, use_diff=False)
        if (folder / "README.md").is_file():
            complete_card(folder / "README.md", str(self.base_model_name_or_path or ""))

    def to_dict(self) -> dict[str, Any]:
        """The fields that peft knows."""
        return {key: value for key, value in super().to_dict().items() if not key.startswith("_")}


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
    """Which layers of an EUPE model to adapt, and which to train and save as they are, for `peft.get_peft_model`.

    Adapted are linear layers of the encoder, wherever it sits in the model. What is new, the heads, is trained in full
    and saved with the adapter, batch-norm statistics included; a frozen head is not.

    Args:
        model: The model: an encoder, a task model, a multi-task model, or a decoder of transformers on `EupeBackbone`.
        r: Rank of the updates.
        alpha: Scale of the updates: they are multiplied by alpha / r, or alpha / sqrt(r) with `use_rslora`. By default
            `2 * r`, or `r` with `use_rslora`.
        targets: "attention" (the ViTs' query, key, value and output projections), "mlp" (the ViTs' MLPs, the
            ConvNeXts' pointwise layers), "all", or names of layers ("q_proj", ...). By default "attention" for a ViT
            and "mlp" for a ConvNeXt.
        dropout: Share of the inputs of each update that is dropped in training.
        use_dora: Weight-decomposed updates (DoRA, arXiv 2402.09353): slower, often better at small ranks.
        use_rslora: Rank-stabilised scale (arXiv 2312.03732): for large ranks.
        **kwargs: Other fields of `peft.LoraConfig`. `modules_to_save` replaces what is found to be new.

    Returns:
        The configuration.

    Raises:
        ValueError: The model has no EUPE encoder, or targets match none of its layers; the message lists what there is.

    Example:

    ```python
    >>> import peft
    >>> from eupe_hf import EupeForImageClassification, variant_config
    >>> from eupe_hf.lora import lora_config

    >>> model = EupeForImageClassification(variant_config("eupe-t", num_labels=10))
    >>> model = peft.get_peft_model(model, lora_config(model, r=8))
    >>> model.get_nb_trainable_parameters()
    (149386, 5643018)

    ```
    """
    names = _target_names(model, targets)
    pattern = rf"{_IN_ENCODER}\.(?:{'|'.join(names)})"
    modules = dict(model.named_modules())
    found = [name for name, module in modules.items() if re.fullmatch(pattern, name) and isinstance(module, nn.Linear)]
    if not found:
        there = sorted({name.rpartition(".")[2] for name in adaptable_layers(model)})
        raise ValueError(
            f"targets={targets!r} match no linear layer of the encoder in this {type(model).__name__}; it has "
            f"{', '.join(there)}."
        )
    alpha = alpha if alpha is not None else (r if use_rslora else 2 * r)
    fields = {"modules_to_save": new_modules(model) or None, "lora_alpha": alpha, "lora_dropout": dropout, **kwargs}
    config = EupeLoraConfig(r=r, target_modules=pattern, use_dora=use_dora, use_rslora=use_rslora, **fields)
    return config.attach(model)


def adaptable_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers of the EUPE encoder in a model.

    Raises:
        ValueError: There is no EUPE encoder in the model.
    """
    if not any(isinstance(module, (EupeBackbone, EupeModel)) for module in model.modules()):
        raise ValueError(f"This {type(model).__name__} has no EUPE encoder in it; LoRA targets are layers of one.")
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(rf"{_IN_ENCODER}\.\w+", name)
    ]


def new_modules(model: nn.Module) -> list[str]:
    """Names of the parts of an EUPE model that are new, that is of its heads, without those that are frozen."""
    heads = {}
    if isinstance(model, EupeTaskModel):
        heads = {"head": model.head}
    elif isinstance(model, EupeForMultiTask):
        heads = {f"heads.{name}": head for name, head in model.heads.items()}
    return [name for name, head in heads.items() if any(p.requires_grad for p in head.parameters())]


def complete_card(path: str | os.PathLike, base_model: str) -> None:
    """Give the card of an adapter the licence of the weights that it adapts, and the Hub id of its base.

    Args:
        path: The card.
        base_model: What the adapter was trained on: a short name becomes the Hub id; a local path is left out.
    """
    card = ModelCard.load(path)
    for key, value in WEIGHTS_LICENSE.items():
        setattr(card.data, key, value)
    if base_model in VARIANTS:
        base_model = VARIANTS[base_model].repo_id
    card.data.base_model = base_model if base_model.count("/") == 1 and not Path(base_model).exists() else None
    card.data.tags = sorted({*(card.data.tags or []), "eupe", "lora"} - {f"base_model:adapter:{base_model}"})
    card.save(path)


def _target_names(model: nn.Module, targets: str | Sequence[str] | None) -> list[str]:
    layers = adaptable_layers(model)
    if targets is None:
        targets = "attention" if any(name.endswith("q_proj") for name in layers) else "mlp"
    names = TARGETS.get(targets, (targets,)) if isinstance(targets, str) else tuple(targets)
    return [re.escape(name) for name in names]


def register() -> None:
    """Tell peft the default targets of EUPE models, and that a short name is no repository on the Hub."""
    defaults = list(TARGETS["attention"][0:3:2] + TARGETS["mlp"][2:])  # as for other ViTs; in a ConvNeXt the pointwise
    for model_type in ("eupe", "eupe_multitask"):
        constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[model_type] = defaults
    original = save_and_load.check_file_exists_on_hf_hub
    if getattr(original, "_answers_short_names", False):
        return

    def check_file_exists_on_hf_hub(repo_id: str, filename: str, **kwargs: Any) -> bool | None:
        return False if repo_id in VARIANTS else original(repo_id, filename, **kwargs)

    check_file_exists_on_hf_hub._answers_short_names = True
    save_and_load.check_file_exists_on_hf_hub = check_file_exists_on_hf_hub


register()

__all__ = ["TARGETS", "EupeLoraConfig", "adaptable_layers", "complete_card", "lora_config", "new_modules"]
