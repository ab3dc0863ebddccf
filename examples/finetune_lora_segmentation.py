# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for semantic segmentation: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_segmentation.py --dataset street/ --labels names.txt --output_dir my-adapter
    python examples/finetune_lora_segmentation.py --dataset merve/scene_parse_150 --label_column annotation \
        --reduce_labels --mode probe --layers 2 5 8 11

--dataset is a folder with images/NAME.jpg and masks/NAME.png, optionally below train/ and validation/, or a data set
with two image columns, on the Hub or in parquet files. A mask holds one class id per pixel; 255 is ignored, or the
--ignore_index. With --reduce_labels 0 is ignored as well and 1 is the first class, as in ADE20K. --labels names the
classes; without it they have numbers. The output folder gets the adapter with its head (--merge: an ordinary model),
the image processor, a card, results.json and curve.png. Metrics are measured on whole images, resized to --size;
`examples/evaluate.py` has the paper's sliding window. All options of transformers' TrainingArguments work as well.
Needs `pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForSegmentation
from eupe_hf.training import RecipeTrainer, adapt, finish, one_sentence, parse_recipe
from eupe_hf.training.tasks.segmentation import SegmentationTask


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # wrong input ends here, before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe(SegmentationTask, __doc__, arguments)

        # 2. Data, every file of it read once: unreadable files are skipped, or refused with --strict.
        task = SegmentationTask(data_args, args.seed)

        # 3. A model with a new head for these classes, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        model = EupeForSegmentation.from_pretrained(
            model_args.model, **task.head(model_args.layers), **model_args.loading
        )
        patch_size = model.config.patch_size
        model = adapt(model, model_args)

        # 4. The processor resizes image and mask to a square, and reduces labels. Training instead crops a square
        #    out of the image at 0.5 to 2 times its size, mirrors and recolours it: the paper's protocol.
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
