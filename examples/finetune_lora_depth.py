# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for depth estimation: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_depth.py --dataset rooms/ --depth_scale 1000 --output_dir my-adapter
    python examples/finetune_lora_depth.py --dataset sayakpaul/nyu_depth_v2 --mode probe --layers 2 5 8 11

--dataset is a folder with images/NAME.jpg and depth/NAME.png or NAME.npy, perhaps under train/ and validation/, or a
data set with a column of images and one of depth maps, on the Hub or in parquet files. A map holds one number per
pixel, --depth_scale of which are a metre; 0, NaN, and what is not between --min_depth and --max_depth is unknown. The
output folder gets the adapter with its head (--merge: an ordinary model), the image processor, a card, results.json
and curve.png. Metrics are those of whole images squashed to --size; `examples/evaluate.py` has the paper's protocol,
at the images' own size. All options of transformers' TrainingArguments work as well. Needs
`pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForDepthEstimation
from eupe_hf.training import RecipeTrainer, StreamingMetrics, adapt, one_sentence, parse_recipe
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.report import finish
from eupe_hf.training.tasks.depth import (
    DEPTH_DEFAULTS,
    BatchDepthMetrics,
    DepthDataArguments,
    DepthRows,
    load_depth,
    resized_depth,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # whatever is wrong with the input is said before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe("depth", __doc__, arguments, DepthDataArguments, DEPTH_DEFAULTS)
        args.greater_is_better = "delta" in args.metric_for_best_model  # all the others are errors

        # 2. Data, every file of it read once: what is unreadable is skipped, or refused with --strict.
        data = load_depth(data_args, args.seed)

        # 3. A model with a new head whose bins span the depths, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        depths = {"min_depth": data_args.min_depth, "max_depth": data_args.max_depth}
        model = EupeForDepthEstimation.from_pretrained(model_args.encoder, **depths, **model_args.head_fields())
        crop = data_args.crop_size(model.config.patch_size)
        model = adapt(model, model_args)

        # 4. The processor squashes images to a square. Training cuts a smaller square out of that, mirrors and
        #    recolours it, and changes no scale: the same room looks larger when it is nearer.
        processor = AutoImageProcessor.from_pretrained(model_args.encoder)
        processor.size = {"height": data_args.size, "width": data_args.size}
        augment = training_augmentation("depth", data_args, crop)
        options = {"seed": args.seed, "depth_scale": data_args.depth_scale}
        train = DepthRows(data.train, processor, "mask", augment, **options)
        evaluation = DepthRows(data.evaluation, processor, "mask", **options)

        # 5. The Trainer, with learning rates by depth, and metrics that are counted batch by batch.
        trainer = RecipeTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processor,
            compute_metrics=StreamingMetrics(lambda: BatchDepthMetrics(**depths)),
            preprocess_logits_for_metrics=resized_depth,
        )
    trained, total = trainer.get_num_trainable_parameters(), sum(p.numel() for p in model.parameters())
    say = trainer.accelerator.print  # once, however many processes there are
    say(f"{train.count} images to train on, {len(evaluation)} to evaluate on.")
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    table = finish(trainer, "depth", model_args, data_args, data.eval_split)
    say(f"{table}\nSaved {args.output_dir}: pipeline('depth-estimation', model={args.output_dir!r}) runs it.")


if __name__ == "__main__":
    main()
