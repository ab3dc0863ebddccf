# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""`from_vision_text` with the causal language models that people join: one class of each family, tiny and random."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import FAMILIES
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel
from vlm_common import TEXT, make_language_model, make_tokenizer, make_tower

from eupe_hf import EupeLlavaForConditionalGeneration, EupeModel
from eupe_hf.models.processing_eupe_llava import default_chat_template


# name of the family, its class in transformers, what its tiny configuration needs beyond the common fields
LANGUAGE_MODELS: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "LlamaConfig", {}),
    ("llama_tied", "LlamaConfig", {"tie_word_embeddings": True}),
    ("qwen2", "Qwen2Config", {"num_key_value_heads": 2}),
    ("qwen3", "Qwen3Config", {"num_key_value_heads": 2, "head_dim": 8}),
    ("gemma", "GemmaConfig", {"head_dim": 8, "num_key_value_heads": 2}),
    ("gemma2", "Gemma2Config", {"head_dim": 8, "num_key_value_heads": 2}),  # soft-caps its logits
    ("gemma3", "Gemma3TextConfig", {"head_dim": 8, "num_key_value_heads": 2}),
    ("phi", "PhiConfig", {}),  # a head with a bias
    ("phi3", "Phi3Config", {}),
    ("smollm3", "SmolLM3Config", {"num_key_value_heads": 2}),
    ("mistral", "MistralConfig", {"num_key_value_heads": 2}),
    ("gpt2", "GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),  # embeddings of another name
]


def make(config_class: str, fields: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    common = {} if config_class == "GPT2Config" else TEXT
    special = {key: TEXT[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    config = getattr(transformers, config_class)(**{**common, **special, **fields})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(("name", "config_class", "fields"), LANGUAGE_MODELS, ids=[row[0] for row in LANGUAGE_MODELS])
def test_language_model_keeps_its_logits_and_reloads(
    tmp_path: Path, name: str, config_class: str, fields: dict[str, Any]
) -> None:
    language_model = make(config_class, fields)
    ids = torch.tensor([[5, 9, 40, 17, 8]])
    with torch.no_grad():
        expected = language_model(input_ids=ids).logits
    language_model.save_pretrained(tmp_path / "text")
    make_tokenizer().save_pretrained(tmp_path / "text")
    make_tower("vit").save_pretrained(tmp_path / "vision")

    model, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        tmp_path / "vision", tmp_path / "text", image_size=64
    )
    with torch.no_grad():
        found = model(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)

    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    inputs = processor(text="<image> one", images=image, return_tensors="pt")
    model.save_pretrained(tmp_path / "joined")
    processor.save_pretrained(tmp_path / "joined")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "joined")
    tied = language_model.get_output_embeddings().weight is language_model.get_input_embeddings().weight
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    again = AutoProcessor.from_pretrained(tmp_path / "joined")(text="<image> one", images=image, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**again).logits, model(**inputs).logits)
        generated = loaded.generate(**again, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
    assert model.config.text_config.vocab_size >= len(processor.tokenizer)
    assert model.lm_head.weight.shape[0] == model.config.text_config.vocab_size


def test_new_tokens_need_new_embeddings() -> None:
    language_model = make_language_model(vocab_size=len(make_tokenizer()))
    tokenizer = make_tokenizer()
    model, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        make_tower("vit"), language_model, tokenizer=tokenizer, image_size=64
    )
    assert processor.image_token_id == model.config.image_token_id == len(tokenizer) - 1
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 320  # a multiple of 64
    assert processor.tokenizer.padding_side == "left"


def test_tokenizer_without_padding_gets_a_token_for_it() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    _, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        make_tower("vit"), make_language_model(), tokenizer=tokenizer, image_size=64
    )
    assert processor.tokenizer.pad_token_id not in (None, processor.tokenizer.eos_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_dtype_is_that_of_all_parts(family: str) -> None:
    options: dict[str, Any] = {"tokenizer": make_tokenizer(), "image_size": 64}
    language_model = make_language_model().to(torch.bfloat16)
    model, _ = EupeLlavaForConditionalGeneration.from_vision_text(make_tower(family), language_model, **options)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model, _ = EupeLlavaForConditionalGeneration.from_vision_text(
        make_tower(family), language_model, dtype="float32", **options
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_can_not_be_joined_is_refused(tmp_path: Path) -> None:
    join = EupeLlavaForConditionalGeneration.from_vision_text
    options: dict[str, Any] = {"tokenizer": make_tokenizer(), "image_size": 64}
    scaled = make("CohereConfig", {"num_key_value_heads": 2, "logit_scale": 0.1})
    with pytest.raises(ValueError, match="CohereForCausalLM does more to its logits than a linear head"):
        join(make_tower("vit"), scaled, **options)
    with pytest.raises(ValueError, match="vision must be an EupeModel or its name or folder, got LlamaForCausalLM"):
        join(make_language_model(), make_language_model(), **options)
    with pytest.raises(ValueError, match="pass tokenizer="):
        join(make_tower("vit"), make_language_model())
    with pytest.raises(ValueError, match="8 x 8 pixels gives no image token"):
        join(make_tower("vit"), make_language_model(), **{**options, "image_size": 8})
    with pytest.raises(OSError, match="nothing-here"):
        join(make_tower("vit"), tmp_path / "nothing-here", **options)
    with pytest.raises(OSError, match="nothing-here"):
        join(tmp_path / "nothing-here", make_language_model(), **options)


def test_encoder_of_a_task_model_can_be_the_tower(tmp_path: Path) -> None:
    from eupe_hf import EupeForImageClassification

    classifier = EupeForImageClassification(make_tower("vit").config)
    classifier.save_pretrained(tmp_path)
    tower = EupeModel.from_pretrained(tmp_path).eval()
    model, _ = EupeLlavaForConditionalGeneration.from_vision_text(
        tmp_path, make_language_model(), tokenizer=make_tokenizer(), image_size=64
    )
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = model.vision_tower(pixel_values).last_hidden_state
        assert torch.equal(found, tower(pixel_values).last_hidden_state)


@pytest.mark.parametrize(
    ("extra", "expected", "answer"),
    [
        (
            ("<|im_start|>", "<|im_end|>"),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<image>\nHow many?<|im_end|>\n"
            "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>assistant\n",
            "Two.<|im_end|>",
        ),
        (
            ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n<image>\nHow many?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "Two.<|eot_id|>",
        ),
        (
            ("<start_of_turn>", "<end_of_turn>"),
            "<start_of_turn>user\nBe brief.<end_of_turn>\n<start_of_turn>user\n<image>\nHow many?<end_of_turn>\n"
            "<start_of_turn>model\nTwo.<end_of_turn>\n<start_of_turn>model\n",
            "Two.<end_of_turn>",
        ),
        (
            ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
            "<|system|>\nBe brief.<|end|>\n<|user|>\n<image>\nHow many?<|end|>\n<|assistant|>\nTwo.<|end|>\n"
            "<|assistant|>\n",
            "Two.<|end|>",
        ),
        ((), "SYSTEM: Be brief. USER: <image>\nHow many? ASSISTANT: Two.</s>ASSISTANT:", " Two.</s>"),
    ],
    ids=["chatml", "llama3", "gemma", "phi3", "llava15"],
)
def test_chat_template_follows_the_language_model(extra: tuple[str, ...], expected: str, answer: str) -> None:
    tokenizer = make_tokenizer(extra)
    parts = [{"type": "image"}, {"type": "text", "text": "How many?"}]
    for content in (parts, "<image>\nHow many?"):  # evaluation tools write the image token themselves
        conversation = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": "Two."},
        ]
        template = default_chat_template(tokenizer)
        text = tokenizer.apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=True
        )
        assert text == expected
        encoded = tokenizer.apply_chat_template(
            conversation, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
        assert tokenizer.decode(marked) == answer


def test_part_that_is_neither_text_nor_image_is_refused() -> None:
    tokenizer = make_tokenizer()
    conversation = [{"role": "user", "content": [{"type": "video"}]}]
    with pytest.raises(Exception, match="must be text or image, not video"):
        tokenizer.apply_chat_template(conversation, chat_template=default_chat_template(tokenizer), tokenize=False)
