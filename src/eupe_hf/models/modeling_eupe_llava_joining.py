# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Joins an EUPE encoder and a causal language model into a VLM; part of `EupeLlavaForConditionalGeneration`."""

import copy
import os
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import PreTrainedModel

from .configuration_eupe_llava import EupeLlavaConfig
from .modeling_eupe import EupeModel
from .processing_eupe_llava import EupeLlavaProcessor, end_of_turn_id


_Model = TypeVar("_Model", bound="EupeLlavaJoiningMixin")


class EupeLlavaJoiningMixin:
    """`from_vision_text`. Stands before the model."""

    @classmethod
    def from_vision_text(
        cls: type[_Model],
        vision: EupeModel | str | os.PathLike,
        text: PreTrainedModel | str | os.PathLike,
        *,
        tokenizer: Any = None,
        image_size: int = 384,
        vision_feature_layer: int | list[int] = -1,
        scale_factor: int = 1,
        image_token: str = "<image>",
        chat_template: str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> tuple[_Model, EupeLlavaProcessor]:
        """Joins an encoder and a language model. The projector between them is new: train it.

        Args:
            vision: The encoder: a model, which is taken over, not copied, or its short name, Hub id or folder.
            text: The language model, likewise: any causal one with a linear head, whose logits may be soft-capped.
            tokenizer: The language model's, by default loaded from the same place as `text`. It gets an image token,
                a padding token if it has none, a chat template, and pads on the left.
            image_size: The processor resizes images to `image_size` x `image_size` pixels.
            vision_feature_layer: As in `EupeLlavaConfig`.
            scale_factor: As in `EupeLlavaConfig`.
            image_token: Stands for an image in a prompt.
            chat_template: By default `default_chat_template`.
            dtype: Of the whole model, by default the language model's. `torch.float32` trains without autocast.

        Returns:
            The model, in eval mode, and its processor.

        Raises:
            OSError: A model was not found.
            ValueError: There is no tokenizer, `image_size` gives no token, or the logits of text alone would change.
        """
        tower = vision if isinstance(vision, PreTrainedModel) else EupeModel.from_pretrained(vision)
        if not isinstance(tower, EupeModel):
            raise ValueError(f"vision must be an EupeModel or its name or folder, got {type(tower).__name__}.")
        source = text.name_or_path if isinstance(text, PreTrainedModel) else text
        if tokenizer is None and not source:
            raise ValueError("text has no name to load a tokenizer from: pass tokenizer=.")
        tokenizer = AutoTokenizer.from_pretrained(source) if tokenizer is None else tokenizer
        causal = text if isinstance(text, PreTrainedModel) else AutoModelForCausalLM.from_pretrained(text)
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        cast(causal, dtype or causal.dtype)
        before = _text_logits(causal)
        config = EupeLlavaConfig(
            vision_config={**tower.config.to_dict(), "image_size": image_size},
            text_config=causal.config.get_text_config(),
            vision_feature_layer=vision_feature_layer,
            scale_factor=scale_factor,
            lm_head_bias=getattr(causal.get_output_embeddings(), "bias", None) is not None,
        )
        options = (config.vision_config, scale_factor, image_token, chat_template)
        processor = EupeLlavaProcessor.from_tokenizer(tokenizer, *options)
        processor.image_tokens(image_size, image_size)  # refuses too small a size
        if len(processor.tokenizer) > causal.get_input_embeddings().num_embeddings:
            causal.resize_token_embeddings(len(processor.tokenizer), pad_to_multiple_of=64)
        config.text_config, config.image_token_index = causal.config.get_text_config(), processor.image_token_id
        cast(tower, causal.dtype)
        model = _join(cls, config, tower, causal)
        if chat_template is None:
            _stop_at(model, end_of_turn_id(tokenizer))
        after = _text_logits(model)[..., : before.shape[-1]]
        if not torch.allclose(before, after, atol=1e-3, rtol=1e-3):
            raise ValueError(
                f"{type(causal).__name__} does more to its logits than a linear head and is not supported: logits "
                f"of text would change by up to {(before - after).abs().max():.3g}."
            )
        return model, processor


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Casts the parameters. `to` would also round the frequencies of rotary embeddings, which must stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _join(model_class: Any, config: EupeLlavaConfig, tower: EupeModel, causal: PreTrainedModel) -> Any:
    decoder, head = causal.base_model, causal.get_output_embeddings()
    config.vision_config._attn_implementation = tower.config._attn_implementation
    config.text_config._attn_implementation = causal.config._attn_implementation
    config.vision_config.name_or_path = tower.config.name_or_path
    config.dtype = config.vision_config.dtype = config.text_config.dtype = causal.dtype
    with torch.device("meta"):
        model = model_class(config)
    if type(model.model.language_model) is not type(decoder):
        name = type(causal).__name__
        raise ValueError(f"{name} is not a plain causal language model: pass one of AutoModelForCausalLM.")
    tower.config.image_size = config.vision_config.image_size
    model.model.vision_tower, model.model.language_model = tower, decoder
    projector = type(model.multi_modal_projector)(config)
    for module in projector.modules():
        model._init_weights(module)
    model.model.multi_modal_projector = projector.to(causal.device, causal.dtype)
    tower.to(causal.device)
    model.lm_head.weight, model.lm_head.bias = head.weight, head.bias
    model.tie_weights()
    model.generation_config = copy.deepcopy(causal.generation_config)
    return model.eval()


def _stop_at(model: Any, token_id: int | None) -> None:
    """Ends `generate` at this token too."""
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if token_id is not None and token_id not in ends:
        model.generation_config.eos_token_id = [*ends, token_id]


@torch.no_grad()
def _text_logits(model: Any) -> torch.Tensor:
    """Logits of a few tokens, in float32, (1, 4, vocabulary)."""
    was_training = model.training
    ids = torch.arange(5, 9, device=model.device)[None]  # any but the first, which are special
    logits = model.eval()(input_ids=ids).logits.float()
    model.train(was_training)
    return logits
