# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""EUPE VLMs in tools that are made for transformers' LLaVA: evaluation wrappers, trainers, and LLaVA itself."""

import logging as standard_logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import peft
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers import (
    AutoConfig,
    AutoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.utils import logging
from vlm_common import TEXT, TOWERS, make_tokenizer, make_vlm

from eupe_hf import EupeConfig, EupeImageProcessor, EupeLlavaForConditionalGeneration, EupeLlavaProcessor, EupeModel


both_families = pytest.mark.parametrize("family", ["vit", "convnext"])
QUESTION = "Is there a cat?\nAnswer the question using a single word or phrase."
RED, BLUE = Image.new("RGB", (90, 60), "red"), Image.new("RGB", (50, 70), "blue")


@pytest.fixture(params=["vit", "convnext"], scope="module")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved VLM."""
    folder = tmp_path_factory.mktemp(request.param)
    for part in make_vlm(request.param):
        part.save_pretrained(folder)
    return folder


# ---- what LLaVA has, and tools read ----


@both_families
def test_parts_are_where_llava_has_them(family: str) -> None:
    model, processor = make_vlm(family)
    inner = model.model
    assert type(inner.vision_tower) is EupeModel and model.vision_tower is inner.vision_tower
    assert model.multi_modal_projector is inner.multi_modal_projector and model.language_model is inner.language_model
    assert model.get_input_embeddings() is inner.language_model.embed_tokens
    assert model.get_output_embeddings() is model.lm_head
    assert model.config.image_token_id == model.config.image_token_index == processor.image_token_id
    pixels = torch.randn(2, 3, 64, 64)
    for part in (model, inner):
        outputs = part.get_image_features(pixels, vision_feature_layer=-1, vision_feature_select_strategy="default")
        tokens = inner.vision_tower(pixels).last_hidden_state[:, model.config.vision_config.num_prefix_tokens :]
        assert torch.equal(torch.stack(list(outputs.pooler_output)), inner.multi_modal_projector(tokens))
        assert outputs.last_hidden_state.shape[0] == 2


@pytest.mark.parametrize(("family", "stride", "tokens"), [("vit", 16, 24), ("convnext", 8, 96)])
def test_processor_has_what_llavas_has_and_its_arithmetic_gives_our_number(
    family: str, stride: int, tokens: int
) -> None:
    model, processor = make_vlm(family)
    assert isinstance(processor, LlavaProcessor)
    assert (processor.patch_size, processor.num_additional_image_tokens) == (stride, 1)
    assert processor.vision_feature_select_strategy == model.config.vision_feature_select_strategy == "default"
    assert processor.image_token == "<image>"
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == processor.image_token_id
    image = {"pixel_values": torch.zeros(1, 3, 64, 96)}
    theirs = LlavaProcessor.replace_image_token(processor, image, 0)
    assert processor.replace_image_token(image, 0) == theirs == "<image>" * tokens
    assert model.get_image_features(image["pixel_values"]).pooler_output[0].shape[0] == tokens
    counted = processor._get_num_multimodal_tokens(image_sizes=[(30, 40), (64, 96)])
    assert counted.num_image_tokens == [(64 // stride) ** 2] * 2


# ---- wrappers of evaluation tools ----


def load_as_a_wrapper(folder: Path, classes: dict[str, type], dtype: Any = "auto") -> tuple[Any, Any]:
    """Loads like lmms-eval's wrapper for LLaVA, which picks the class by the configuration's model type."""
    model_class = classes[AutoConfig.from_pretrained(folder).model_type]
    options = {"revision": "main", "trust_remote_code": False, "attn_implementation": None}
    model = model_class.from_pretrained(folder, torch_dtype=dtype, device_map="cpu", **options)
    processor = AutoProcessor.from_pretrained(folder, revision="main", trust_remote_code=False)
    processor.tokenizer.padding_side = "left"
    return model.eval(), processor


def answer_as_a_wrapper(model: Any, tokenizer: Any, inputs: Any, **options: Any) -> str:
    """Generates with the arguments that wrappers pass, and decodes the new tokens."""
    end = tokenizer.eos_token_id
    arguments = {"do_sample": False, "temperature": None, "top_p": None, "num_beams": 1, "max_new_tokens": 8}
    arguments |= {"use_cache": True, "pad_token_id": end, "eos_token_id": end, **options}
    found = model.generate(**inputs.to("cpu", model.dtype), **arguments)
    return tokenizer.batch_decode(found[:, inputs["input_ids"].shape[-1] :], skip_special_tokens=True)[0]


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"top_p": 1.0, "use_cache": False}])
def test_evaluation_wrapper_takes_the_model_as_it_takes_llava(saved: Path, options: dict[str, Any]) -> None:
    classes = {"llava": LlavaForConditionalGeneration, "eupe_llava": EupeLlavaForConditionalGeneration}
    model, processor = load_as_a_wrapper(saved, classes)
    tokenizer = processor.tokenizer
    # older wrappers write "<image>" into a string and use the tokenizer's template
    chat = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    inputs = processor(images=[RED], text=text, return_tensors="pt")
    grid = (64 // processor.patch_size) ** 2
    assert (inputs["input_ids"] == processor.image_token_id).sum() == grid
    first = answer_as_a_wrapper(model, tokenizer, inputs, **options)
    # newer ones pass parts to the processor's
    parts = [{"type": "image", "url": RED}, {"type": "text", "text": QUESTION}]
    text_of_parts = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    assert text_of_parts == text
    again = processor(images=[RED], videos=None, text=text_of_parts, return_tensors="pt")
    assert answer_as_a_wrapper(model, tokenizer, again, **options) == first
    blue = processor(images=[BLUE], text=text, return_tensors="pt")
    assert answer_as_a_wrapper(model, tokenizer, blue, **options) != first  # the picture is read


def test_evaluation_wrapper_asks_about_two_images_and_none(saved: Path) -> None:
    model, processor = load_as_a_wrapper(saved, {"eupe_llava": EupeLlavaForConditionalGeneration}, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    tokenizer, answers = processor.tokenizer, set()
    for images in ([], [RED, BLUE], [BLUE, RED]):
        chat = [{"role": "user", "content": " ".join(["<image>"] * len(images)) + "\n" + QUESTION}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=images or None, text=text, return_tensors="pt")
        assert ("pixel_values" in inputs) == bool(images)
        answers.add(answer_as_a_wrapper(model, tokenizer, inputs))
    assert len(answers) == 3


def test_evaluation_wrapper_scores_a_continuation(saved: Path) -> None:
    model, processor = load_as_a_wrapper(saved, {"eupe_llava": EupeLlavaForConditionalGeneration})
    chat = [{"role": "user", "content": f"<image>\n{QUESTION}"}, {"role": "assistant", "content": "yes"}]
    inputs = processor(
        text=[processor.tokenizer.apply_chat_template(chat, tokenize=False)], images=[RED], return_tensors="pt"
    )
    labels = inputs["input_ids"].clone()
    labels[:, :-6] = -100
    with torch.inference_mode():
        outputs = model(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(outputs["logits"][0, -7:-1], labels[0, -6:])
    assert torch.allclose(outputs["loss"], expected, atol=1e-6)


_LMMS_EVAL = {  # as much of it as the launcher touches
    "lmms_eval/models/simple/llava_hf.py": "model_map = {'llava': None}\n",
    "lmms_eval/cli/dispatch.py": "import sys\nfrom lmms_eval.models.simple import llava_hf\n"
    "def main():\n"
    "    model = llava_hf.model_map['eupe_llava'].from_pretrained(sys.argv[2])\n"
    "    calls = []\n"
    "    type(model).__mro__[1].generate = lambda self, **given: calls.append(given['eos_token_id'])\n"
    "    model.generate(eos_token_id=2)\n"
    "    model.generation_config.eos_token_id = None\n"
    "    model.generate(eos_token_id=2)\n"
    "    print(sys.argv[1:], type(model).__mro__[1].__name__, calls)\n",
}


def test_launcher_registers_the_model_before_it_calls_lmms_eval(saved: Path, tmp_path: Path) -> None:
    for name, source in _LMMS_EVAL.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "examples" / "lmms_eval_llava.py"), "--tasks", str(saved)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=True
    )
    ends = [2, make_tokenizer().convert_tokens_to_ids("<|im_end|>")]  # of the text, and of a turn
    expected = f"['--tasks', {str(saved)!r}] EupeLlavaForConditionalGeneration [{ends}, 2]"
    assert done.stdout.strip() == expected


# ---- trainers ----


def conversation(answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "What colour?"}, {"role": "assistant", "content": answer}]


@both_families
def test_collator_of_a_trainer_gives_a_loss_on_answers_alone(family: str) -> None:
    """Collates `messages` and `images` like TRL's SFTTrainer."""
    model, processor = make_vlm(family)
    chats = []
    for answer, images in (("red", [RED]), ("a blue one", [BLUE, RED])):
        question, reply = conversation(answer)
        parts = [{"type": "image", "image": image} for image in images]
        parts.append({"type": "text", "text": question["content"]})
        chats.append([
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": reply["content"]}]},
        ])  # fmt: skip
    padding = {"padding": True, "padding_side": "right", "pad_to_multiple_of": None, "truncation": False}
    batch = processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True,
        processor_kwargs={**padding, "max_length": None, "add_special_tokens": False},
    )  # fmt: skip
    assert batch["pixel_values"].shape[0] == 3 and batch["attention_mask"][0, -1] == 0
    labels = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
    kept = [processor.tokenizer.decode(row[row != -100]) for row in labels]
    assert kept == ["red<|im_end|>", "a blue one<|im_end|>"]
    model.train()(**batch, labels=labels).loss.backward()
    assert model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


@both_families
@pytest.mark.parametrize("with_lora", [False, True])
def test_trl_trains_on_messages_with_images(family: str, with_lora: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    model, processor = make_vlm(family)
    model.vision_tower.requires_grad_(False)
    rows = {"messages": [conversation("red"), conversation("blue")] * 2, "images": [[RED], [BLUE]] * 2}
    features = datasets.Dataset.from_dict(rows).cast_column("images", datasets.List(datasets.Image()))
    lora = peft.LoraConfig(target_modules=r".*language_model.*(q|v)_proj", r=2) if with_lora else None
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to="none", use_cpu=True,
            assistant_only_loss=True, learning_rate=1e-2, bf16=False, max_length=None, logging_steps=1,
        ),
        train_dataset=features,
        processing_class=processor,
        peft_config=lora,
    )  # fmt: skip
    trainer.train()
    assert len([entry for entry in trainer.state.log_history if entry.get("loss", 0) > 0]) == 2
    after = dict(model.named_parameters())
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert not any("vision_tower" in name for name in changed) and bool(changed) != with_lora
    adapters = [p for name, p in after.items() if "lora_B" in name]
    assert len(adapters) == 4 * with_lora and all(p.abs().max() > 0 for p in adapters)


# ---- transformers' own LLaVA on an EUPE encoder ----


@pytest.fixture
def warnings_of_the_encoder() -> Iterator[list[str]]:
    """The encoder's warnings from here on."""
    messages: list[str] = []
    handler = standard_logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.get_logger("eupe_hf.models.modeling_eupe_vit")
    type(logger).warning_once.cache_clear()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def plain_llava(family: str, additional: int, layer: int | list[int] = -1) -> tuple[Any, Any]:
    """transformers' LLaVA with an `EupeConfig` in it, and inputs."""
    torch.manual_seed(0)
    vision = EupeConfig(**TOWERS[family], image_size=64)
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=7, vision_feature_layer=layer
    )
    processor = EupeLlavaProcessor.from_tokenizer(make_tokenizer(), vision)
    config.image_token_index = processor.image_token_id
    plain = LlavaProcessor(
        EupeImageProcessor(size={"height": 64, "width": 64}), processor.tokenizer, patch_size=vision.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=additional,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval(), plain(images=[RED], text="<image>?", return_tensors="pt")


def test_plain_llava_with_a_vit_does_not_take_the_tokens_of_a_class_token_alone(
    warnings_of_the_encoder: list[str],
) -> None:
    model, inputs = plain_llava("vit", additional=1)  # as for CLIP: 16 tokens, but 4 registers are in the features
    with pytest.raises(ValueError, match=f"tokens: 16, features: {20 * 32}"):  # values, not features
        model(**inputs)
    assert len(warnings_of_the_encoder) == 1


@pytest.mark.parametrize("layer", [-1, 2, [1, -1]])
def test_plain_llava_that_feeds_registers_is_warned_of_once(
    warnings_of_the_encoder: list[str], layer: int | list[int]
) -> None:
    model, inputs = plain_llava("vit", additional=5, layer=layer)  # the tokens of everything but the class token
    for _ in range(2):
        assert model(**inputs).image_hidden_states.shape[0] == 20
    (message,) = warnings_of_the_encoder
    assert "a class token and 4 registers and have not passed the final norm" in message
    assert "EupeLlavaForConditionalGeneration feeds it normed patch tokens" in message


def test_plain_llava_with_a_convnext_fails(warnings_of_the_encoder: list[str]) -> None:
    # its hidden states are maps: LLaVA takes off a channel, and the projector finds columns where channels should be
    model, inputs = plain_llava("convnext", additional=1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(**inputs)
    assert not warnings_of_the_encoder


@both_families
def test_no_other_use_warns(family: str, warnings_of_the_encoder: list[str]) -> None:
    model, processor = make_vlm(family, vision_feature_layer=[1, -1] if family == "vit" else -1)
    inputs = processor(images=[RED], text="<image>?", return_tensors="pt")
    model(**inputs, output_hidden_states=True)
    tower = model.vision_tower
    tower(inputs["pixel_values"], output_hidden_states=True)
    tower(inputs["pixel_values"], output_hidden_states=(1, 2))
    assert not warnings_of_the_encoder


def test_warning_does_not_break_a_compiled_graph(warnings_of_the_encoder: list[str]) -> None:
    tower = make_vlm("vit")[0].vision_tower
    torch._dynamo.reset()
    compiled = torch.compile(tower, fullgraph=True, backend="eager")
    states = compiled(torch.zeros(1, 3, 64, 64), output_hidden_states=2).hidden_states
    assert states[2].shape == (1, 21, 32) and not warnings_of_the_encoder


# ---- the tower runs once ----


@both_families
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 4},
        {"do_sample": True, "num_return_sequences": 3},
    ],
)
def test_tower_runs_once_for_each_image_and_never_while_decoding(family: str, options: dict[str, Any]) -> None:
    model, processor = make_vlm(family)
    inputs = processor(
        images=[RED, BLUE, RED], text=["<image> a", "<image> <image> b"], padding=True, return_tensors="pt"
    )
    seen: list[int] = []
    model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    steps: list[int] = []
    model.language_model.register_forward_pre_hook(lambda module, args: steps.append(1))
    model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, **options)
    assert len(steps) == 6 and seen == [3]
