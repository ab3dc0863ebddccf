# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""The chat script: it prints what the model generates, remembers the conversation, and reports errors."""

import io
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from drawn_counts import QUESTION, WORDS, draw, save_parts
from PIL import Image
from transformers import TextStreamer

from eupe_hf import EupeLlavaForConditionalGeneration, EupeLlavaProcessor


Run = Callable[..., str]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VLM with random weights, and images."""
    folder = tmp_path_factory.mktemp("chat")
    save_parts(folder)
    torch.manual_seed(1)
    model, processor = EupeLlavaForConditionalGeneration.from_vision_text(
        folder / "tower", folder / "text", image_size=64
    )
    words = range(WORDS.index("how"), WORDS.index("USER"))  # always eight words that are printed
    model.generation_config.suppress_tokens = [i for i in range(model.lm_head.out_features) if i not in words]
    model.save_pretrained(folder / "vlm")
    processor.save_pretrained(folder / "vlm")
    for i in range(2):
        draw(np.random.default_rng(i), 2 * i).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The inputs of the model, question by question."""
    calls: list[dict[str, Any]] = []
    generate = EupeLlavaForConditionalGeneration.generate

    def generate_and_keep(self: Any, **inputs: Any) -> Any:
        calls.append(inputs)
        return generate(self, **inputs)

    monkeypatch.setattr(EupeLlavaForConditionalGeneration, "generate", generate_and_keep)
    return calls


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, material: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script in this process on the lines of a pipe, and returns what it printed."""
    monkeypatch.chdir(material)

    def run_here(*options: Any, lines: str = "") -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        main = runpy.run_path(str(ROOT / "examples" / "chat_vlm.py"))["main"]
        capsys.readouterr()
        main(["--model", "vlm", "--max_new_tokens", "8", *map(str, options)])
        return capsys.readouterr().out

    return run_here


def expected_answer(material: Path, names: list[str], question: str = QUESTION) -> str:
    model = EupeLlavaForConditionalGeneration.from_pretrained(material / "vlm")
    processor = EupeLlavaProcessor.from_pretrained(material / "vlm")
    parts = [{"type": "image", "image": Image.open(material / name)} for name in names]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    said = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(said, skip_special_tokens=True)


def test_question_prints_what_the_model_generates(chat: Run, material: Path, asked: list[dict[str, Any]]) -> None:
    printed = chat("--image", "0.png", "--question", QUESTION)
    assert printed.strip() == expected_answer(material, ["0.png"]).strip() != ""
    processor = EupeLlavaProcessor.from_pretrained(material / "vlm")
    pixels = processor.image_processor(Image.open(material / "0.png"), return_tensors="pt")["pixel_values"]
    assert torch.equal(asked[0]["pixel_values"].cpu(), pixels)


def test_size_and_device_are_used(chat: Run, asked: list[dict[str, Any]]) -> None:
    chat("--image", "0.png", "--size", "32", "--device", "cpu", "--question", QUESTION)
    assert asked[0]["pixel_values"].shape == (1, 3, 32, 32)
    assert asked[0]["input_ids"].device.type == "cpu"


def test_several_images_and_none_are_taken(chat: Run, material: Path, asked: list[dict[str, Any]]) -> None:
    printed = chat("--image", "0.png", "1.png", "--question", QUESTION)
    assert asked[0]["pixel_values"].shape == (2, 3, 64, 64)
    assert printed.strip() == expected_answer(material, ["0.png", "1.png"]).strip()
    assert chat("--question", "what is it ?").strip() == expected_answer(material, [], "what is it ?").strip()


def test_answer_is_streamed_word_by_word(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr(TextStreamer, "on_finalized_text", lambda self, text, stream_end=False: pieces.append(text))
    chat("--image", "0.png", "--question", QUESTION)
    assert len([piece for piece in pieces if piece]) > 2, pieces


def test_lines_of_a_pipe_are_one_conversation(chat: Run, asked: list[dict[str, Any]], material: Path) -> None:
    printed = chat("--image", "0.png", lines=f"{QUESTION}\nwhat is it ?\n/image 1.png\nand it ?\n\nnever asked ?\n")
    assert len(printed.splitlines()) == len(asked) == 3
    assert [call["pixel_values"].shape[0] for call in asked] == [1, 1, 2]
    processor = EupeLlavaProcessor.from_pretrained(material / "vlm")
    first, second = (processor.decode(call["input_ids"][0]) for call in asked[:2])
    answer = printed.splitlines()[0]
    said = re.sub(r"\s|</s>", "", second.removeprefix(first))
    assert second.startswith(first) and said == re.sub(r"\s", "", f"{answer}USER:whatisit?ASSISTANT:")
    chat("--image", "0.png", lines=f"{QUESTION}\n/new\nwhat is it ?\n")
    assert "pixel_values" not in asked[-1] and asked[-1]["input_ids"].shape[1] < asked[0]["input_ids"].shape[1]


def test_bad_image_is_answered_with_a_sentence_and_the_chat_goes_on(chat: Run, asked: list[dict[str, Any]]) -> None:
    Path("cut.png").write_bytes(Path("0.png").read_bytes()[:100])
    printed = chat(lines=f"/image nowhere.png\n/image cut.png\n/image\n{QUESTION}\n").splitlines()
    assert printed[0].startswith("The image 'nowhere.png' can't be read (")
    assert printed[1].startswith("The image 'cut.png' can't be read (") and "can't be read" in printed[2]
    assert len(printed) == 4 and "pixel_values" not in asked[0]


def test_too_long_a_conversation_is_reported(chat: Run) -> None:
    printed = chat("--image", "0.png", lines=f"{'what ' * 300}\nwhat is it ?\n").splitlines()
    assert "the language model takes at most 256" in printed[0] and len(printed) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image", "nowhere.png"], r"The image 'nowhere.png' can't be read"),
        (["--model", "nowhere"], r"There is no model at nowhere: pass a folder or a Hub id\."),
        (["--max_new_tokens", "0"], r"--max-new-tokens must be at least 1, got 0\."),
        (["--max-new-tokens", "0"], r"--max-new-tokens must be at least 1, got 0\."),
        (["--size", "0"], r"--size must be at least 1, got 0\."),
        (["--device", "nonsense"], "The device 'nonsense' is not available on this machine"),
    ],
)
def test_wrong_options_end_with_one_sentence(chat: Run, options: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=rf"^chat_vlm.py: {words}[^\n]*$"):
        chat(*options, "--question", QUESTION)
