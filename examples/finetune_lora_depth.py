# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for depth estimation: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_depth.py --dataset rooms/ --depth_scale 1000 --output_dir my-adapter
    python examples/finetune_lora_depth.py --dataset sayakpaul/nyu_depth_v2 --mode probe --layers 2 5 8 11

--dataset is a folder with images/NAME.jpg and depth/NAME.png or NAME.npy, optionally below train/ and validation/, or
a data set with a column of images and one of depth maps, on the Hub or in parquet files. A map holds one number per
pixel; --depth_scale says how many of its units make a metre. 0, NaN, and values outside of --min_depth to --max_depth
are unknown. The output folder gets the adapter with its head (--merge: an ordinary model), the image processor, a
card, results.json and curve.png. Metrics are measured on whole images, resized to --size; `examples/evaluate.py` has
the paper's protocol, at the images' own size. All options of transformers' TrainingArguments work as well. Needs
`pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForDepthEstimation
from eupe_hf.training import RecipeTrainer, adapt, finish, one_sentence, parse_recipe
from eupe_hf.training.tasks.depth import DepthTask


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # wrong input ends here, before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe(DepthTask, __doc__, arguments)

        # 2. Data, every file of it read once: unreadable files are skipped, or refused with --strict.
        task = DepthTask(data_args, args.seed)

        # 3. A model with a new head whose bins span the depths, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        model = EupeForDepthEstimation.from_pretrained(
            model_args.model, **task.head(model_args.layers), **model_args.loading
        )
        patch_size = model.config.patch_size
        model = adapt(model, model_args)

        # 4. The processor resizes images to a square. Training cuts a smaller square out of that, mirrors and
        #    recolours it, and changes no scale: the same room looks larger when it is nearer.
        processor = AutoImageProcessor.from_pretrained(model_args.model)
        processor.size = {"height": data_args.size, "width": data_args.size}

        # 5. The Trainer, with learning rates by depth, and metrics that are counted batch by batch.
        trainer = RecipeTrainer(task, processor, patch_size, args, model=model)
    trainer.announce()

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    trainer.accelerator.print(finish(trainer, model_args))


if __name__ == "__main__":
    main()
