# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Evaluate a VLM on the six benchmarks of the paper with lmms-eval, through its wrapper for transformers' LLaVA.

    python examples/lmms_eval_llava.py --model llava_hf --model_args pretrained=my-vlm,dtype=bfloat16,device_map=cuda \
        --batch_size 1 --tasks textvqa_val,scienceqa_img,realworldqa,pope,gqa,mme --output_path results/ --log_samples

The options are lmms-eval's own (`pip install lmms-eval decord`). These tasks are the paper's TextVQA, SQA,
RealWorldQA, POPE, GQA and, as `mme_perception_score`, MME-P; their data comes from the Hub. Several GPUs, without
`device_map`: `accelerate launch --num_processes 8 examples/lmms_eval_llava.py ...`.

Tried with lmms-eval 0.7.3 on the CPU, on a task of POPE's kind with drawn pictures, with and without `--force_simple`;
the six benchmarks themselves have not been run here. transformers 5 refuses the wrapper's default `device_map=""`.
"""

from typing import Any

from lmms_eval.cli.dispatch import main
from lmms_eval.models.simple import llava_hf

from eupe_hf import EupeLlavaForConditionalGeneration


class EupeLlava(EupeLlavaForConditionalGeneration):
    """The model, ending its answers where its own configuration says."""

    def generate(self, *args: Any, eos_token_id: Any = None, **kwargs: Any) -> Any:
        """The wrapper passes the tokenizer's end of text, which is not what ends a turn in every family."""
        ends = self.generation_config.eos_token_id
        return super().generate(*args, eos_token_id=eos_token_id if ends is None else ends, **kwargs)


llava_hf.model_map["eupe_llava"] = EupeLlava

if __name__ == "__main__":
    main()
