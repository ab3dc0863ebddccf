# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Evaluate a VLM on the six benchmarks of the paper with lmms-eval, through its wrapper for transformers' LLaVA.

    python examples/lmms_eval_llava.py --model llava_hf --model_args pretrained=my-vlm,dtype=bfloat16,device_map=cuda \
        --batch_size 1 --tasks textvqa_val,scienceqa_img,realworldqa,pope,gqa,mme --output_path results/ --log_samples

The options are lmms-eval's own (`pip install lmms-eval decord`). The tasks are the paper's TextVQA, SQA, RealWorldQA,
POPE, GQA and, as `mme_perception_score`, MME-P. Their data comes from the Hub. On several GPUs, leave out `device_map`
and start with `accelerate launch --num_processes 8 examples/lmms_eval_llava.py ...`.

This was tried with lmms-eval 0.7.3 on the CPU, on a task like POPE with drawn images, with and without
`--force_simple`. The six benchmarks have not been run. transformers 5 refuses the wrapper's default `device_map=""`.
"""

from typing import Any

from lmms_eval.cli.dispatch import main
from lmms_eval.models.simple import llava_hf

from eupe_hf import EupeLlavaForConditionalGeneration


class EupeLlava(EupeLlavaForConditionalGeneration):
    """The model, whose answers end where its own configuration says."""

    def generate(self, *args: Any, eos_token_id: Any = None, **kwargs: Any) -> Any:
        """Ignores the wrapper's end of text, which does not end a turn in every family."""
        ends = self.generation_config.eos_token_id
        return super().generate(*args, eos_token_id=eos_token_id if ends is None else ends, **kwargs)


llava_hf.model_map["eupe_llava"] = EupeLlava

if __name__ == "__main__":
    main()
