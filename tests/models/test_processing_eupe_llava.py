# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The VLM's processor: numbers of image tokens, assistant masks, saving, and its use in transformers."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAMILIES, ROOT
from PIL import Image
from published import code_files
from transformers import AutoProcessor, TextIteratorStreamer, pipeline
from vlm_common import make_tokenizer, make_vlm

from eupe_hf import EupeLlavaProcessor


PHOTO = ROOT / "examples" / "images" / "coffee.jpg"


def ask(question: str, *images: Any) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def count(processor: EupeLlavaProcessor, inputs: Any) -> list[int]:
    return [list(row).count(processor.image_token_id) for row in inputs["input_ids"]]


# ---- tokens ----


@pytest.mark.parametrize(
    ("options", "sizes", "tokens"),
    [
        ({}, [(30, 40)], [16]),  # resized to 64 x 64
        ({"size": {"height": 32, "width": 96}}, [(30, 40)], [12]),
        ({"size": {"shortest_edge": 64}}, [(100, 150), (100, 100)], [24, 16]),
        ({"do_resize": False}, [(50, 79), (64, 64)], [12, 16]),
        ({"do_resize": False, "do_pad": True, "size_divisor": 16}, [(50, 79), (64, 64)], [20, 20]),
        ({"do_center_crop": True, "crop_size": 48}, [(30, 40)], [9]),
    ],
)
@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_tokens_follow_from_the_processed_size(
    options: dict[str, Any], sizes: list[tuple[int, int]], tokens: list[int], return_tensors: str | None
) -> None:
    model, processor = make_vlm("vit")
    images = [np.zeros((*size, 3), dtype=np.uint8) for size in sizes]
    texts = ["<image> what?"] * len(images)
    padding = return_tensors is not None
    inputs = processor(images=images, text=texts, return_tensors=return_tensors, padding=padding, **options)
    assert count(processor, inputs) == tokens
    assert processor._get_num_multimodal_tokens(sizes, **options)["num_image_tokens"] == tokens
    if return_tensors == "pt":
        features = model.get_image_features(inputs["pixel_values"], image_sizes=inputs.get("image_sizes"))
        assert [len(feature) for feature in features.pooler_output] == tokens


def test_scale_factor_and_stride_count() -> None:
    _, processor = make_vlm("convnext", scale_factor=2)
    assert (processor.patch_size, processor.scale_factor) == (8, 2)
    assert processor.image_tokens(64, 64) == 16
    assert processor.image_tokens(79, 33) == 8
    with pytest.raises(ValueError, match="15 x 64 pixels gives no image token: at least 16 x 16"):
        processor.image_tokens(15, 64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16"])
def test_any_picture_gives_its_tokens(mode: str) -> None:
    model, processor = make_vlm("vit")
    pixels = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    image = (
        Image.fromarray(pixels) if mode == "I;16" else Image.fromarray((pixels // 257).astype(np.uint8)).convert(mode)
    )
    for picture in (image, image.crop((0, 0, 1, 1))):
        inputs = processor.apply_chat_template(
            ask("what?", picture), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        assert count(processor, inputs) == [16]
        assert model(**inputs).logits.isfinite().all()


def test_wrong_input_is_answered_by_a_sentence(tmp_path: Path) -> None:
    _, processor = make_vlm("vit")
    image = np.zeros((40, 40, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="Found total 2 <image> tokens and 1 images"):
        processor(images=image, text="<image> <image>")
    with pytest.raises(ValueError, match="Found 1 <image> tokens in the text but no images"):
        processor(text="<image> what?")
    with pytest.raises(ValueError, match="Please disable truncation or increase `max_length`"):
        processor(images=image, text="<image> what?", truncation=True, max_length=8)
    with pytest.raises(ValueError, match=r"nothing\.jpg' can't be read"):
        processor(images=str(tmp_path / "nothing.jpg"), text="<image> what?")
    with pytest.raises(ValueError, match="'<image>' must be one token, but the tokenizer splits it into 7"):
        EupeLlavaProcessor(processor.image_processor, make_tokenizer())


# ---- conversations ----


@pytest.mark.parametrize("family", FAMILIES)
def test_assistant_mask_covers_answers_and_the_end_of_turns(family: str) -> None:
    _, processor = make_vlm(family)
    conversation = [
        *ask("How many?", PHOTO, PHOTO),
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    single = [*ask("What?", PHOTO), {"role": "assistant", "content": "Coffee."}]
    inputs = processor.apply_chat_template(
        [conversation, single], tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
        return_tensors="pt", processor_kwargs={"padding": True},
    )  # fmt: skip
    assert inputs["pixel_values"].shape[0] == 3
    marked = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True)]
    assert [processor.decode(ids) for ids in marked] == ["Two.<|im_end|>Yes.<|im_end|>", "Coffee.<|im_end|>"]


def test_streamer_gives_what_generate_gives() -> None:
    model, processor = make_vlm("vit")
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(ask("How many?", PHOTO), **options)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True)
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False, streamer=streamer)
    assert "".join(streamer) == processor.decode(generated[0, inputs["input_ids"].shape[1] :])


# ---- saving ----


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_processor_is_complete_and_equal(tmp_path: Path, family: str) -> None:
    _, processor = make_vlm(family, scale_factor=2)
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == code_files("processing_eupe_llava")
    config = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {"AutoProcessor": "processing_eupe_llava.EupeLlavaProcessor"}
    assert config["image_processor"]["auto_map"]["AutoImageProcessor"]["pil"].endswith("EupeImageProcessorPil")
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is EupeLlavaProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.tokenizer.padding_side == "left"
    conversation = ask("How many?", PHOTO)
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    found, expected = (p.apply_chat_template(conversation, **options) for p in (loaded, processor))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_pipeline_answers_by_path(tmp_path: Path, family: str) -> None:
    model, processor = make_vlm(family)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask_pipeline = pipeline("image-text-to-text", model=str(tmp_path))
    answers = ask_pipeline(
        text=ask("How many?", str(PHOTO)), max_new_tokens=4, do_sample=False, return_full_text=False
    )
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    inputs = processor.apply_chat_template(ask("How many?", PHOTO), **options)
    generated = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert answers[0]["generated_text"] == processor.decode(generated[0], skip_special_tokens=True)


@pytest.mark.parametrize("key", ["image", "url", "path", "base64"])
def test_images_in_conversations_come_in_every_form(key: str) -> None:
    _, processor = make_vlm("vit")
    text = base64.b64encode(PHOTO.read_bytes()).decode()
    forms = {
        "image": [f"data:image/jpeg;base64,{text}", text, PHOTO.as_uri(), PHOTO, Image.open(PHOTO)],
        "url": [f"data:image/jpeg;base64,{text}", PHOTO.as_uri()],
        "path": [str(PHOTO), PHOTO.as_uri()],
        "base64": [text],
    }
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor.apply_chat_template(ask("What?", PHOTO), **options)
    for given in forms[key]:
        conversation = [
            {"role": "user", "content": [{"type": "image", key: given}, {"type": "text", "text": "What?"}]}
        ]
        found = processor.apply_chat_template(conversation, **options)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    for bad in ("data:image/png;base64,AAAA", "A" * 5000, "file:///nowhere.png", "github://org:repo@main/a.png"):
        conversation = [{"role": "user", "content": [{"type": "image", key: bad}]}]
        with pytest.raises(ValueError, match=r"^The image '.{1,70}' can't be read \("):
            processor.apply_chat_template(conversation, **options)


def test_pipeline_answers_about_images_in_text(tmp_path: Path) -> None:
    model, processor = make_vlm("vit")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ask_pipeline = pipeline("image-text-to-text", model=str(tmp_path))
    text = base64.b64encode(PHOTO.read_bytes()).decode()
    answers = [
        ask_pipeline(text=ask("How many?", image), max_new_tokens=4, do_sample=False, return_full_text=False)
        for image in (str(PHOTO), f"data:image/jpeg;base64,{text}", text, PHOTO.as_uri())
    ]
    assert all(answer[0]["generated_text"] == answers[0][0]["generated_text"] for answer in answers)


ISOLATED = """
import sys
sys.modules["eupe_hf"] = None  # as if the package were not there
import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, again = sys.argv[1:]
for source in (folder, again):
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(processor).__module__.startswith("transformers_modules."), type(processor)
    picture = np.arange(50 * 70 * 3, dtype=np.uint8).reshape(50, 70, 3)
    inputs = processor(images=picture, text="<image> one", return_tensors="pt")
    print(model(**inputs).logits.double().sum().item())
    print(model.generate(**inputs, max_new_tokens=4, do_sample=False).tolist())
    if source == folder:
        model.save_pretrained(again)
        processor.save_pretrained(again)
try:
    AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise SystemExit("code ran without leave")
"""


@pytest.mark.parametrize("family", FAMILIES)
def test_process_without_the_package_loads_and_saves(tmp_path: Path, family: str) -> None:
    model, processor = make_vlm(family, scale_factor=2)
    folder, again = tmp_path / "vlm", tmp_path / "again"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ISOLATED, folder, again],
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    picture = np.arange(50 * 70 * 3, dtype=np.uint8).reshape(50, 70, 3)
    inputs = processor(images=picture, text="<image> one", return_tensors="pt")
    expected = [
        model(**inputs).logits.double().sum().item(),
        model.generate(**inputs, max_new_tokens=4, do_sample=False),
    ]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[:2] == lines[2:]
    assert lines[0] == pytest.approx(expected[0], rel=1e-6)
    assert lines[1] == expected[1].tolist()
    assert {path.name for path in folder.iterdir()} == {path.name for path in again.iterdir()}
