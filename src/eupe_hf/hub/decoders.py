# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""EUPE as the backbone of transformers' decoders: UperNet, DPT, Mask2Former, RT-DETR v2, and others of that kind.

A decoder takes `backbone_config=variant_config("eupe-s", out_indices=[...])`. transformers builds the backbone from
that configuration with random weights and does not say so; `load_backbone_weights` loads pretrained ones. Prepare
images with this package's image processor: DPT's own normalises with other statistics, RT-DETR's not at all.

- UperNet takes four stages of either family.
- DPT takes a ViT with `reshape_hidden_states=False`: class token and patches without registers. It has no loss of its
  own. For a ConvNeXt use `EupeForDepthEstimation`.
- Mask2Former (strides 4 to 32) and RT-DETR v2 (8 to 32) take maps of several strides: a ConvNeXt has them, a ViT gets
  them from an `EupePyramidConfig`. Mask2Former warns that it does not list the backbone, and works.
- The old `backbone="eupe-s"` does not work: transformers looks for that name on the Hub and in timm.

Load a saved decoder with its own class or its Auto class, in a process that has imported `eupe_hf`. Otherwise
transformers fails with `KeyError: 'eupe'` (or 'eupe_pyramid'); `trust_remote_code` fetches the code of whole models,
never of a part. `decoder_card` makes a card with the licence of EUPE's weights, which transformers leaves out.
"""

import os
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCard
from torch import nn

from eupe_hf.conversion.checkpoints import load_checkpoint
from eupe_hf.conversion.layouts import StateDict
from eupe_hf.models.configuration_eupe import EupeConfig
from eupe_hf.models.modeling_eupe import EupeBackbone, EupeModel, find_encoders
from eupe_hf.models.modeling_eupe_cards import encoder_in_words, hub_id, new_card
from eupe_hf.variants import VARIANTS, find_variant

from .fetch import fetch


_Model = TypeVar("_Model", bound=nn.Module)
# What the weights fix. The rest of a configuration says how the features are used, which the decoder may choose.
_ARCHITECTURE = (
    "backbone_type", "num_channels", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "num_register_tokens", "rope_theta", "rope_periods", "depths", "hidden_sizes", "hidden_act",
    "layer_norm_eps",
)  # fmt: skip


def load_backbone_weights(model: _Model, name_or_path: str | os.PathLike, **kwargs: Any) -> _Model:
    """Load pretrained weights into the EUPE encoder inside a model, in the encoder's dtype and on its device.

    Args:
        model: A model with one EUPE encoder, such as transformers' decoders with an EUPE `backbone_config`. It is
            also what is returned.
        name_or_path: A short name ("eupe-s"), a file or folder in any of the three layouts, or a repository on the
            Hub with an EUPE model of this package.
        **kwargs: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, as in `from_pretrained`.

    Raises:
        ValueError: The model has no EUPE encoder, or several, or one of another architecture; the message names the
            fields that differ. Or the checkpoint is incomplete (`CheckpointError`).
        OSError: The weights were not found.

    Example:

    ```python
    >>> from transformers import UperNetConfig, UperNetForSemanticSegmentation
    >>> from eupe_hf import load_backbone_weights, variant_config

    >>> backbone_config = variant_config("eupe-t", out_indices=[3, 6, 9, 12])
    >>> model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone_config, num_labels=21))
    >>> model = load_backbone_weights(model, "eupe-t")  # doctest: +SKIP

    ```
    """
    encoder = _find_encoder(model)
    if any(parameter.is_meta for parameter in encoder.parameters()):
        raise ValueError("The model is on the meta device and has no memory for weights: build it on a real device.")
    state, config = _read(name_or_path, kwargs)
    differences = [
        f"{name} ({ours!r}, the weights have {theirs!r})"
        for name in _ARCHITECTURE
        if (ours := getattr(encoder.config, name)) != (theirs := getattr(config, name))
    ]
    if differences:
        variant = find_variant(os.fspath(name_or_path))
        wanted = f"variant_config({variant.name!r})" if variant else "the configuration beside the weights"
        raise ValueError(
            f"The encoder in this {type(model).__name__} does not fit {name_or_path}: it differs in "
            f"{', '.join(differences)}. Build the model with {wanted} as its backbone_config, then load."
        )
    encoder.load_state_dict(state)
    return model


def decoder_card(model: nn.Module) -> ModelCard:
    """A card of a decoder with one EUPE encoder in it: how to load it, and the licence of EUPE's weights.

    Save it beside a saved model, `decoder_card(model).save(f"{folder}/README.md")`, or push it after the model,
    `decoder_card(model).push_to_hub(repo_id)`.

    Raises:
        ValueError: The model has no EUPE encoder, or several.
    """
    encoder, name = _find_encoder(model), type(model).__name__
    return new_card(
        f"{name}, {encoder_in_words(encoder.config)}",
        f"transformers' {name} on an Efficient Universal Perception Encoder (EUPE, arXiv 2603.22387), with eupe-hf.",
        f"""import eupe_hf
from transformers import {name}

model = {name}.from_pretrained("PATH")""",
        library_name="transformers",
        tags=["eupe"],
        base_model=hub_id(encoder.config.name_or_path),
    )


def _find_encoder(model: nn.Module) -> EupeBackbone | EupeModel:
    if not (encoders := find_encoders(model)):
        raise ValueError(
            f"This {type(model).__name__} has no EUPE encoder in it: build it with an EupeConfig or EupePyramidConfig "
            f"as its backbone_config, for example variant_config({next(iter(VARIANTS))!r})."
        )
    if len(encoders) > 1:
        names = f"{len(encoders)} EUPE encoders ({', '.join(encoders)})"
        raise ValueError(f"This {type(model).__name__} has {names}: pass one part.")
    return next(iter(encoders.values()))


def _read(name_or_path: str | os.PathLike, kwargs: dict[str, Any]) -> tuple[StateDict, EupeConfig]:
    """All weights by their names in `EupeModel`, and their configuration."""
    if not Path(name_or_path).exists():
        if find_variant(os.fspath(name_or_path)) is None:
            # refuses incomplete models, and explains a wrong name
            model = EupeModel.from_pretrained(name_or_path, dtype="auto", **kwargs)
            return model.state_dict(), model.config
        name_or_path = fetch(os.fspath(name_or_path), **kwargs)
    checkpoint = load_checkpoint(name_or_path)
    return checkpoint.state, checkpoint.config
