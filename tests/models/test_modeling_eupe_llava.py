# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The VLM as a model: the features that reach the language model, generation, saving, and errors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, FULL_SIZE
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.utils import SAFE_WEIGHTS_NAME
from vlm_common import TEXT, make_language_model, make_tokenizer, make_tower, make_vlm

from eupe_hf import EupeLlavaConfig, EupeLlavaForConditionalGeneration, EupeLlavaModel, variant_config
from eupe_hf.models.modeling_eupe_llava import EupeLlavaProjector


SIDES = {"vit": 16, "convnext": 8}


def projected(model: EupeLlavaForConditionalGeneration | EupeLlavaModel, pixel_values: torch.Tensor, **options: Any):
    """Returns the input of the projector, and the output of `get_image_features`."""
    seen = []
    hook = model.multi_modal_projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        outputs = model.get_image_features(pixel_values, **options)
    hook.remove()
    return torch.cat(seen), outputs


def prompt(processor: Any, texts: list[str], images: list[Any]) -> dict[str, torch.Tensor]:
    return processor(text=texts, images=images or None, padding=True, return_tensors="pt")


def pictures(count: int, size: tuple[int, int] = (64, 64)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(count)]


# ---- features ----


@pytest.mark.parametrize("name", FULL_SIZE)
def test_features_are_the_normed_patch_tokens_bit_for_bit(name: str) -> None:
    text = {"model_type": "llama", **TEXT}
    model = EupeLlavaModel(EupeLlavaConfig(vision_config=variant_config(name), text_config=text)).eval()
    tower = model.vision_tower
    for height, width in ((64, 64), (96, 160)):
        pixel_values = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        given, outputs = projected(model, pixel_values)
        with torch.no_grad():
            tokens = tower(pixel_values).last_hidden_state[:, tower.config.num_prefix_tokens :]
            expected = model.multi_modal_projector(tokens)
        stride = tower.config.patch_size
        assert tokens.shape[1] == (height // stride) * (width // stride)
        assert torch.equal(given, tokens)
        assert torch.equal(torch.stack(outputs.pooler_output), expected)


def test_several_layers_are_normed_and_concatenated() -> None:
    model, _ = make_vlm("vit", vision_feature_layer=[1, -1])
    pixel_values = torch.randn(1, 3, 64, 64)
    given, _ = projected(model, pixel_values)
    with torch.no_grad():
        outputs = model.vision_tower(pixel_values, output_hidden_states=True)
        first = model.vision_tower.norm(outputs.hidden_states[1])[:, 5:]
    assert torch.equal(given, torch.cat((first, outputs.last_hidden_state[:, 5:]), dim=-1))
    alone, _ = projected(make_vlm("vit")[0], pixel_values, vision_feature_layer=1)
    assert alone.shape[-1] == 32 and not torch.equal(alone, given[..., 32:])


@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_several_sizes_are_encoded_as_if_alone(family: str) -> None:
    model, processor = make_vlm(family)
    processor.image_processor.do_resize = False
    images = [pictures(1, size)[0] for size in ((64, 64), (32, 96), (64, 64))]
    inputs = prompt(processor, ["<image> a <image>", "b <image>"], images)
    assert inputs["image_sizes"].tolist() == [[64, 64], [32, 96], [64, 64]]
    assert inputs["pixel_values"].shape == (3, 3, 64, 96)
    with torch.no_grad():
        together = model.get_image_features(inputs["pixel_values"], image_sizes=inputs["image_sizes"]).pooler_output
        for image, feature in zip(images, together, strict=True):
            alone = prompt(processor, ["<image>"], [image])
            expected = model.get_image_features(alone["pixel_values"]).pooler_output[0]
            torch.testing.assert_close(feature, expected, atol=1e-5, rtol=1e-5)
        ids = inputs["input_ids"]
        assert (ids == model.config.image_token_id).sum() == sum(map(len, together))
        generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        logits = model(**inputs).logits[:, -1]
    assert torch.equal(generated[:, ids.shape[1]], logits.argmax(-1))


def test_squares_of_patches_are_joined_row_by_row() -> None:
    config = EupeLlavaConfig(vision_config=variant_config("eupe-t"), text_config={"model_type": "llama", **TEXT})
    config.scale_factor = 2
    projector = EupeLlavaProjector(config)
    seen: list[torch.Tensor] = []
    projector.linear_1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = torch.arange(20.0)[None, :, None].expand(1, 20, 192)  # 4 rows of 5 patches; the last column is left out
    assert projector(features, (4, 5)).shape == (1, 4, 32)
    first = [[0, 1, 5, 6], [2, 3, 7, 8], [10, 11, 15, 16], [12, 13, 17, 18]]
    assert seen[0][0, :, ::192].tolist() == first
    with pytest.raises(ValueError, match="20 features do not form a grid of 4 x 4"):
        projector(features)


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_factor_divides_the_tokens(family: str) -> None:
    side = 4 * SIDES[family]
    counts = []
    for scale_factor in (1, 2):
        model, processor = make_vlm(family, image_size=side, scale_factor=scale_factor)
        inputs = prompt(processor, ["<image> a"], pictures(1))
        counts.append(int((inputs["input_ids"] == model.config.image_token_id).sum()))
        assert counts[-1] == model.config.image_seq_length
        assert model(**inputs).logits.isfinite().all()
    assert counts == [16, 4]


def test_frozen_tower_is_deterministic_in_training() -> None:
    model, _ = make_vlm("vit")
    pixel_values = torch.randn(1, 3, 64, 64)
    expected = model.get_image_features(pixel_values).pooler_output[0]
    model.train()
    assert not torch.equal(model.get_image_features(pixel_values).pooler_output[0], expected)
    model.vision_tower.requires_grad_(False)
    assert torch.equal(model.get_image_features(pixel_values).pooler_output[0], expected)


# ---- generation ----


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_with_cache_equal_those_without(family: str) -> None:
    model, processor = make_vlm(family)
    inputs = prompt(processor, ["<image> one <image> two"], pictures(2))
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    cached = model.generate(**inputs, **options)
    for other in ({"use_cache": False}, {"cache_implementation": "static"}):
        again = model.generate(**inputs, **options, **other)
        assert torch.equal(again.sequences, cached.sequences)
        torch.testing.assert_close(torch.stack(again.logits), torch.stack(cached.logits), atol=2e-5, rtol=1e-5)
    whole = model(**{**inputs, "input_ids": cached.sequences, "attention_mask": torch.ones_like(cached.sequences)})
    length = inputs["input_ids"].shape[1]
    torch.testing.assert_close(whole.logits[0, length - 1 : -1], torch.cat(cached.logits), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_batch_with_different_numbers_of_images_equals_single(family: str, options: dict[str, Any]) -> None:
    model, processor = make_vlm(family)
    images, texts = (
        pictures(3),
        ["<image> one <image> two", "text alone", "<image> a longer question than the others?"],
    )
    options = {"max_new_tokens": 6, "do_sample": False, **options}
    batch = prompt(processor, texts, images)
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, (text, own) in enumerate(zip(texts, (images[:2], [], images[2:]), strict=True)):
        alone = prompt(processor, [text], own)
        assert torch.equal(model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :], together[row])


def test_beams_see_their_own_images() -> None:
    model, processor = make_vlm("vit")
    first, second = pictures(2)
    seen = []
    for images in ([first, second], [second, first]):
        inputs = prompt(processor, ["<image> one <image> two"], images)
        options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
        outputs = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
        best = outputs.sequences[:1]
        whole = {**inputs, "input_ids": best, "attention_mask": torch.ones_like(best)}
        logits = model(**whole).logits[0, inputs["input_ids"].shape[1] - 1 : -1].log_softmax(-1)
        score = logits.gather(1, best[0, inputs["input_ids"].shape[1] :, None]).sum() / len(logits)
        seen.append(score.item())
        assert outputs.sequences_scores[0].item() == pytest.approx(score.item(), abs=1e-4)
    assert seen[0] != seen[1]


def test_text_alone_gives_what_the_language_model_gives() -> None:
    language_model = make_language_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = language_model(ids).logits
    model, _ = EupeLlavaForConditionalGeneration.from_vision_text(
        make_vlm("vit")[0].vision_tower, language_model, tokenizer=make_tokenizer(), image_size=64
    )
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("scale_factor", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone_reaches_every_parameter_that_trains(family: str, scale_factor: int) -> None:
    model, _ = make_vlm(family, image_size=128, scale_factor=scale_factor)
    ids = torch.arange(6, 14)[None]
    inputs = {"input_ids": ids, "labels": ids}
    expected = model.eval()(**inputs).loss
    model.train().requires_grad_(True)
    for frozen in ((), (model.vision_tower,), (model.vision_tower, model.language_model, model.lm_head)):
        for part in frozen:
            part.requires_grad_(False)
        model.zero_grad()
        loss = model(**inputs).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        for part in (model.vision_tower, model.multi_modal_projector):
            for name, parameter in part.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None and not parameter.grad.any(), name
    model.requires_grad_(False)
    assert not model(**inputs).loss.requires_grad
    by_embeds = model(inputs_embeds=model.get_input_embeddings()(ids), labels=ids).loss
    torch.testing.assert_close(by_embeds, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_close_to_float32(family: str) -> None:
    model, processor = make_vlm(family)
    inputs = prompt(processor, ["<image> one"], pictures(1))
    expected = model(**inputs).logits
    found = model.to(torch.bfloat16)(**inputs).logits.float()
    cosine = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
    assert cosine.min() > 0.998  # measured: 0.9997 (ViT) and 0.9989 (ConvNeXt), of weights ten times the usual


@pytest.mark.slow
def test_compiled_model_gives_equal_logits() -> None:
    model, processor = make_vlm("vit")
    inputs = dict(prompt(processor, ["<image> one"], pictures(1)))
    with torch.no_grad():
        expected = model(**inputs).logits
        found = torch.compile(model, fullgraph=True)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


# ---- errors ----


def test_mismatch_names_both_numbers_and_the_cause() -> None:
    model, processor = make_vlm("vit")
    inputs = prompt(processor, ["<image> one"], pictures(1))
    small = {**inputs, "pixel_values": inputs["pixel_values"][..., :32, :32]}
    message = r"do not match: the prompts hold 16 image tokens, the images give 4 features.*patch_size.*\(16 and 1\)"
    with pytest.raises(ValueError, match=message):
        model(**small)
    with pytest.raises(ValueError, match="16 image tokens, the images give 4 features"):
        model.generate(**small, max_new_tokens=2)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(ValueError, match="16 image tokens, the images give 4 features"):
        model(inputs_embeds=embeddings, pixel_values=small["pixel_values"])


def test_prompt_beyond_the_context_says_what_to_do() -> None:
    model, processor = make_vlm("vit")
    model.config.text_config.max_position_embeddings = 40
    inputs = prompt(processor, ["<image> <image> <image>"], pictures(3))
    with pytest.raises(ValueError, match=r"50 tokens, the language model takes at most 40.*48 image tokens.*fewer"):
        model(**inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, "must be 'default', patch tokens only, got 'full'"),
        ({"vision_feature_layer": 9}, "vision_feature_layer must be from -4 to 3, got 9"),
        ({"image_sizes": [[64, 64]] * 2}, "one row per image, 1, got 2"),
        ({"image_sizes": [[8, 64]]}, "at least 16 x 16 pixels, one token, got 8 x 64"),
    ],
)
def test_features_of_what_does_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_vlm("vit")[0].get_image_features(torch.zeros(1, 3, 64, 64), **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale_factor": 0}, "scale_factor must be at least 1, got 0"),
        ({"vision_feature_layer": [1, 99]}, "must be from -13 to 12"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "must be an EupeConfig, got model_type 'clip_vision"),
        (
            {"vision_config": {"backbone_type": "convnext"}, "vision_feature_layer": 1},
            "only its last stage has a norm",
        ),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
    ],
)
def test_impossible_configuration_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        EupeLlavaConfig(**fields)


# ---- saving ----


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_is_complete_and_keeps_tied_weights_tied(tmp_path: Path, family: str, tied: bool) -> None:
    torch.manual_seed(0)
    tower = make_vlm(family)[0].vision_tower
    language_model = make_language_model(tie_word_embeddings=tied)
    model, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        tower, language_model, tokenizer=make_tokenizer(), image_size=64
    )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is EupeLlavaForConditionalGeneration
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) is tied
    assert loaded.config.vision_config.to_dict() == model.config.vision_config.to_dict()
    inputs = prompt(processor, ["<image> one"], pictures(1))
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.generation_config.eos_token_id == [2, 5]  # the language model's, and the end of a turn
    assert type(AutoModel.from_pretrained(tmp_path)) is EupeLlavaModel
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "fair-noncommercial-research-license" in card and "licence of its own" in card


def test_missing_weight_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model, _ = make_vlm("vit")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / SAFE_WEIGHTS_NAME)
    del state["model.multi_modal_projector.linear_2.weight"]
    save_file(state, tmp_path / SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of EupeLlava.*linear_2\.weight"):
        AutoModelForImageTextToText.from_pretrained(tmp_path)
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"model.multi_modal_projector.linear_2.weight"}


def test_folder_of_something_else_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    make_tower("vit").save_pretrained(tmp_path / "tower")
    with pytest.raises(ValueError, match=r"tower holds a model of type 'eupe', not an EUPE VLM.*from_vision_text"):
        EupeLlavaForConditionalGeneration.from_pretrained(tmp_path / "tower")
    make_language_model().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="of type 'llama', not an EUPE VLM"):
        EupeLlavaForConditionalGeneration.from_pretrained(tmp_path / "text")


@pytest.mark.parametrize("family", FAMILIES)
def test_device_map_gives_equal_logits(tmp_path: Path, family: str) -> None:
    pytest.importorskip("accelerate")
    model, processor = make_vlm(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="auto")
    inputs = prompt(processor, ["<image> one"], pictures(1))
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
