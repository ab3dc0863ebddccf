# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Train a vision-language model on an EUPE encoder by the recipe of LLaVA-1.5, in two stages.

    python examples/train_vlm.py --stage 1 --vision eupe-b --text HuggingFaceTB/SmolLM2-360M-Instruct \
        --dataset blip_laion_cc_sbu_558k.json --image_folder images/ --output_dir stage1
    python examples/train_vlm.py --stage 2 --model stage1 --dataset llava_v1_5_mix665k.json --image_folder data/ \
        --output_dir my-vlm
    python examples/train_vlm.py --stage 2 --model stage1 --lora language --dataset conversations/ --output_dir my-vlm

Stage 1 joins encoder and language model and trains the projector between them; stage 2 trains projector and language
model, or adapters. --dataset is a JSON file in LLaVA's format, or a data set (a folder or an id on the Hub) with the
columns `messages` and `images`. The model learns the answers alone. The output folder gets the model (with --lora:
adapter and projector, for the base that --model names; --merge: an ordinary model), processor, card, results.json and
curve.png; `AutoModelForImageTextToText.from_pretrained` and `pipeline("image-text-to-text")` load it. --batch_size
counts the examples of a step on all devices together. LoRA's alpha is the rank; LLaVA-1.5 has twice that: --alpha 256.
All options of transformers' TrainingArguments work as well. Several GPUs: `accelerate launch --config_file` with a
file from examples/accelerate. Needs `pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import logging, set_seed

from eupe_hf.training import finish, one_sentence
from eupe_hf.training.conversations import load_conversations
from eupe_hf.training.vlm import VlmTrainer, adapt_vlm, load_vlm, parse_vlm, vlm_card


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one stage, and leave a folder that can be loaded."""
    logging.set_verbosity_error()
    with one_sentence():  # wrong input ends here, before the first step
        # 1. Options: of the models, of the data, and of the Trainer, by default LLaVA-1.5's for the stage.
        model_args, data_args, args = parse_vlm(__doc__, arguments)

        # 2. The VLM: stage 1 joins an encoder and a language model with a new projector, stage 2 loads what that left.
        set_seed(args.seed)  # the projector starts at random
        model, processor = load_vlm(model_args)
        dtype = model.dtype  # to save in

        # 3. Conversations: every image is opened once, image places are counted, long ones are left out, none is cut.
        context = getattr(model.config.text_config, "max_position_embeddings", None)
        data = load_conversations(data_args, processor, context, args.seed)

        # 4. What learns: the projector; in stage 2 the language model too, or adapters. The tower stays as it is.
        model = adapt_vlm(model, model_args)

        # 5. The Trainer, with examples of similar length in a batch and labels on what the assistant says.
        trainer = VlmTrainer(data, processor, args, dtype, model=model)
    trainer.announce()

    # 6. Train, from the start or from a checkpoint.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    trainer.accelerator.print(finish(trainer, model_args, vlm_card))


if __name__ == "__main__":
    main()
