# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Tiny vision-language models for tests: towers of both families, a language model, a tokenizer of bytes."""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eupe_hf import EupeConfig, EupeLlavaForConditionalGeneration, EupeLlavaProcessor, EupeModel


TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3, "layerscale_value": 0.5},
    "convnext": {"backbone_type": "convnext", "hidden_sizes": [16, 32], "depths": [1, 2], "layerscale_value": 0.5},
}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make_tokenizer(extra: Sequence[str] = ("<|im_start|>", "<|im_end|>")) -> PreTrainedTokenizerFast:
    """Bytes as tokens, and the special tokens of a language model."""
    special = [*SPECIAL, *extra]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, extra_special_tokens=list(extra))


def make_tower(family: str, **fields: Any) -> EupeModel:
    """A tower with random weights, in eval mode."""
    return EupeModel(EupeConfig(**TOWERS[family], **fields)).eval()


def make_language_model(**fields: Any) -> LlamaForCausalLM:
    """A language model with random weights, in eval mode."""
    return LlamaForCausalLM(LlamaConfig(**{**TEXT, **fields})).eval()


def make_vlm(
    family: str, image_size: int = 64, **options: Any
) -> tuple[EupeLlavaForConditionalGeneration, EupeLlavaProcessor]:
    """A VLM with random weights large enough that each input shows in the output."""
    torch.manual_seed(0)
    model, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        make_tower(family), make_language_model(), tokenizer=make_tokenizer(), image_size=image_size, **options
    )
    with torch.no_grad():
        for parameter in (*model.multi_modal_projector.parameters(), *model.language_model.parameters()):
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
        model.lm_head.weight.normal_(0, 0.3)
    return model, processor
