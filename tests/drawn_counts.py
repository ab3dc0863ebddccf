# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the tests of the VLM scripts share: pictures of squares to count, a tiny encoder and language model.

They are not the scenes of `examples/drawn_scenes.py`. Each square fills one patch of the encoder, so a language model
of a few words learns to count them within a test; the tests' bars were measured on these pictures.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from eupe_hf import EupeConfig, EupeModel


SIDE, PATCH = 64, 16
QUESTION = "how many red squares ?"
COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60)}
DISTRACTORS = [(c, s) for c in COLOURS for s in ("square", "disc") if (c, s) != ("red", "square")]
WORDS = [
    "<unk>", "<s>", "</s>", "how", "many", "red", "squares", "blue", "discs", "is", "it", "what", "and", "?", "0", "1",
    "2", "3", "4", "USER", ":", "ASSISTANT", "SYSTEM",
]  # fmt: skip


def save_parts(folder: Path) -> None:
    """A random encoder as `tower`, a random language model as `text`."""
    torch.manual_seed(0)
    config = EupeConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, layerscale_value=0.5)
    EupeModel(config).save_pretrained(folder / "tower")
    save_language_model(folder / "text", context=256)


def save_language_model(folder: Path, context: int) -> None:
    """A random Llama that knows a handful of words."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=context,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def draw(noise: np.random.Generator, count: int) -> Image.Image:
    """`count` red squares, and two to five other squares and discs, each in its own cell."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(value) for value in noise.integers(170, 256, 3)))
    pen, row = ImageDraw.Draw(image), SIDE // PATCH
    others = [DISTRACTORS[i] for i in noise.integers(0, len(DISTRACTORS), noise.integers(2, 6))]
    cells = noise.permutation(row**2)
    for cell, (colour, shape) in zip(cells, [("red", "square")] * count + others, strict=False):
        top, left = (PATCH * int(place) + int(noise.integers(1, 4)) for place in divmod(int(cell), row))
        box = [left, top, left + 11, top + 11]
        (pen.rectangle if shape == "square" else pen.ellipse)(box, fill=COLOURS[colour])
    return image


def save_pictures(folder: Path, count: int, seed: int) -> Path:
    """Save pictures with 0 to 4 red squares, and LLaVA's JSON that asks how many. Returns the path of the JSON."""
    folder.mkdir(parents=True)
    noise, records = np.random.default_rng(seed), []
    for i in range(count):
        draw(noise, i % 5).save(folder / f"{i}.png")
        turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": str(i % 5)}]
        records.append({"id": f"picture {i}", "image": f"{i}.png", "conversations": turns})
    path = folder / "conversations.json"
    path.write_text(json.dumps(records))
    return path
