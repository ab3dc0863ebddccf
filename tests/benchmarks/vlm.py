# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""What the tower and the projector cost of a VLM's prefill, and how often they run.

    python tests/benchmarks/vlm.py
    python tests/benchmarks/vlm.py --models eupe-b --scale-factors 1 --rounds 21

One image of 384 pixels and 32 tokens of text before a language model of Llama's architecture with 110 M parameters
(width 768, 12 blocks, 32,000 tokens), all with random weights, float32. Times of the parts are taken by hooks within
one prefill, so a share is of one and the same run; printed are medians over the rounds, and of the share of both the
least and the greatest. The last two columns count how often tower and language model run in `generate` with 16 new
tokens, greedily and by four beams.
"""

import argparse
import os
import statistics
import time
from typing import Any

import torch
from transformers import LlamaConfig, logging

from eupe_hf import VARIANTS, EupeLlavaConfig, EupeLlavaForConditionalGeneration, variant_config


IMAGE_TOKEN, TEXT_TOKENS, NEW_TOKENS = 3, 32, 16


def make(name: str, scale_factor: int, size: int) -> tuple[EupeLlavaForConditionalGeneration, dict[str, torch.Tensor]]:
    """A VLM and a prompt with one image."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    tower = variant_config(name, image_size=size)
    config = EupeLlavaConfig(
        vision_config=tower, text_config=text, scale_factor=scale_factor, image_token_index=IMAGE_TOKEN
    )
    ids = torch.tensor([[IMAGE_TOKEN] * config.image_seq_length + list(range(10, 10 + TEXT_TOKENS))])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, size, size)}
    return EupeLlavaForConditionalGeneration(config).eval(), inputs


class Stopwatch:
    """Seconds and calls of the parts of a model, by name."""

    def __init__(self, **parts: torch.nn.Module):
        self.seconds, self.calls = dict.fromkeys(parts, 0.0), dict.fromkeys(parts, 0)
        for name, part in parts.items():
            part.register_forward_pre_hook(lambda *_, name=name: self._add(name, -time.perf_counter()))
            part.register_forward_hook(lambda *_, name=name: self._add(name, time.perf_counter()))

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds
        self.calls[name] += seconds < 0

    def reset(self) -> None:
        """Begin anew."""
        self.seconds, self.calls = dict.fromkeys(self.seconds, 0.0), dict.fromkeys(self.calls, 0)


def prefill(model: EupeLlavaForConditionalGeneration, inputs: dict[str, Any], watch: Stopwatch) -> dict[str, float]:
    """Milliseconds of a prefill and of its parts."""
    watch.reset()
    start = time.perf_counter()
    model(**inputs, use_cache=True, logits_to_keep=1)
    return {"all": 1e3 * (time.perf_counter() - start), **{k: 1e3 * v for k, v in watch.seconds.items()}}


def decoding(model: EupeLlavaForConditionalGeneration, inputs: dict[str, torch.Tensor], watch: Stopwatch) -> list[str]:
    """How often tower and language model run in `generate`, as "tower / language model"."""
    counts = []
    for beams in (1, 4):
        watch.reset()
        model.generate(**inputs, num_beams=beams, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
        counts.append(f"{watch.calls['tower']} / {watch.calls['text']}")
    return counts


@torch.inference_mode()
def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--scale-factors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} threads, {arguments.size} pixels, {arguments.rounds} rounds"
    )
    print("| model | scale_factor | image tokens | prefill, ms | tower | projector | both | runs | by beams |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        for scale_factor in arguments.scale_factors:
            model, inputs = make(name, scale_factor, arguments.size)
            inner = model.model
            watch = Stopwatch(
                tower=inner.vision_tower, projector=inner.multi_modal_projector, text=inner.language_model
            )
            prefill(model, inputs, watch), prefill(model, inputs, watch)
            rounds = [prefill(model, inputs, watch) for _ in range(arguments.rounds)]
            milliseconds = statistics.median(row["all"] for row in rounds)
            tower, projector = (
                statistics.median(row[k] / row["all"] for row in rounds) for k in ("tower", "projector")
            )
            both = sorted((row["tower"] + row["projector"]) / row["all"] for row in rounds)
            spread = f"{statistics.median(both):.1%} ({both[0]:.1%} to {both[-1]:.1%})"
            cells = [name, scale_factor, model.config.image_seq_length, f"{milliseconds:.0f}", f"{tower:.1%}"]
            cells += [f"{projector:.1%}", spread, *decoding(model, inputs, watch)]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
