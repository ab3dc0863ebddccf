# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Train a vision-language model on an EUPE encoder by the recipe of LLaVA-1.5, in two stages.

    python examples/train_vlm.py --stage 1 --vision eupe-b --text HuggingFaceTB/SmolLM2-360M-Instruct \
        --dataset blip_laion_cc_sbu_558k.json --image_folder images/ --output_dir stage1
    python examples/train_vlm.py --stage 2 --model stage1 --dataset llava_v1_5_mix665k.json --image_folder data/ \
        --output_dir my-vlm
    python examples/train_vlm.py --stage 2 --model stage1 --lora language --dataset conversations/ --output_dir my-vlm

Stage 1 joins encoder and language model and trains the projector between them; stage 2 trains projector and language
model, or adapters. --dataset is a JSON file in LLaVA's format, or a data set (a folder or an id on the Hub) with the
columns `messages` and `images`. Answers alone are learned. The output folder gets the model (with --lora: adapter and
projector, for the base that --model names; --merge: an ordinary model), processor, card, results.json and curve.png;
`AutoModelForImageTextToText.from_pretrained` and `pipeline("image-text-to-text")` take it. --batch_size counts the
examples of a step on all devices together. All options of transformers' TrainingArguments work as well.
Several GPUs: `accelerate launch --config_file` with a file from examples/accelerate. Needs
`pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import logging, set_seed

from eupe_hf.training import one_sentence
from eupe_hf.training.conversations import ConversationCollator, load_conversations
from eupe_hf.training.vlm import VlmTrainer, adapt_vlm, finish_vlm, load_vlm, parse_vlm


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one stage, and leave a folder that can be loaded."""
    logging.set_verbosity_error()
    with one_sentence():  # whatever is wrong with the input is said before the first step
        # 1. Options: of the models, of the data, and of the Trainer, by default LLaVA-1.5's for the stage.
        model_args, data_args, args = parse_vlm(__doc__, arguments)

        # 2. The VLM: stage 1 joins an encoder and a language model with a new projector, stage 2 loads what that left.
        set_seed(args.seed)  # the projector starts at random
        model, processor = load_vlm(model_args)
        dtype = model.dtype  # to save in

        # 3. Conversations: every image opened once, image places counted, too long ones left out, none ever truncated.
        context = getattr(model.config.text_config, "max_position_embeddings", None)
        data = load_conversations(data_args, processor, context, args.seed)

        # 4. What learns: the projector; in stage 2 the language model too, or adapters. The tower stays as it is.
        model = adapt_vlm(model, model_args)

        # 5. The Trainer, with examples of similar length in a batch and labels on what the assistant says.
        trainer = VlmTrainer(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            data_collator=ConversationCollator(processor),
            processing_class=processor,
            lengths=data.lengths,
        )
    trained, total = trainer.get_num_trainable_parameters(), sum(p.numel() for p in model.parameters())
    say = trainer.accelerator.print  # once, however many processes there are
    say(f"{len(data.train)} conversations to train on, {sum(data.lengths) / len(data.lengths):.0f} tokens on average.")
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")

    # 6. Train, from the start or from a checkpoint.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    for name, score in finish_vlm(trainer, model_args, data_args, data, dtype).items():
        say(f"{name.replace('_', ' ').capitalize()}: {score:.4f}.")
    say(f"Saved {args.output_dir}: python examples/chat_vlm.py --model {args.output_dir} --image PHOTO talks to it.")


if __name__ == "__main__":
    main()
