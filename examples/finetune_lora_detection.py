# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for object detection: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_detection.py --dataset parts/ --output_dir my-adapter
    python examples/finetune_lora_detection.py --dataset cppe-5 --model eupe-b --mode full --bf16

--dataset is a folder with COCO's JSON: annotations.json beside images/, or train.json and validation.json, or
train/annotations.json and validation/annotations.json, also as Roboflow exports them (train/_annotations.coco.json).
It may also be a data set, on the Hub or in parquet files, with a column `objects` that has `bbox`, as in COCO, and
`category` for each image. Category ids may have gaps; names come from the data, or from --labels. Boxes are clipped to
their images; boxes outside of them are counted and skipped, or refused with --strict. The output folder gets the
adapter with its head (--merge: an ordinary model), the image processor, a card, results.json and curve.png. All
options of transformers' TrainingArguments work as well. Needs `pip install 'eupe-hf[train,eval]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForObjectDetection
from eupe_hf.training import RecipeTrainer, adapt, finish, one_sentence, parse_recipe
from eupe_hf.training.tasks.detection import DetectionTask


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # wrong input ends here, before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe(DetectionTask, __doc__, arguments)

        # 2. Data, every file of it read once: unreadable files are skipped, or refused with --strict.
        task = DetectionTask(data_args, args.seed)

        # 3. A model with a new head for these classes, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        model = EupeForObjectDetection.from_pretrained(
            model_args.model, **task.head(model_args.layers), **model_args.loading
        )
        patch_size = model.config.patch_size
        model = adapt(model, model_args)

        # 4. The processor resizes images to a square. Training does so at 0.8 to 1.25 times the size, crops or pads
        #    them, mirrors and recolours them: the "standard scale jittering" of arXiv 2012.07177.
        processor = AutoImageProcessor.from_pretrained(model_args.model)
        processor.size = {"height": data_args.size, "width": data_args.size}

        # 5. The Trainer, with learning rates by depth, and average precision at each evaluation.
        trainer = RecipeTrainer(task, processor, patch_size, args, model=model)
    trainer.announce()

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    trainer.accelerator.print(finish(trainer, model_args))


if __name__ == "__main__":
    main()
