# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune one encoder for several tasks together: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_multitask.py --classification photos/ --segmentation street/ labels=names.txt
    python examples/finetune_lora_multitask.py --depth rooms/ depth_scale=1000 --detection parts/ \
        --task_weights depth=2 --epoch_of detection --model eupe-b --bf16 --output_dir my-adapter

Each task has its own data set, in any layout that its own recipe takes. Options of that recipe's data can follow as
NAME=VALUE. The tasks need not share images. Each step takes --per_device_train_batch_size images of every task, one
task after the other: it follows the losses of all tasks, and each head sees images of its own task alone. A data set
with fewer images is read more often; --epoch_of says whose images make an epoch, --task_weights how much a loss
counts. The best model has the highest "score": the mean of accuracy, mean IoU, depth's delta1 and average precision,
of the tasks there are. The output folder gets the adapter with all heads
(--merge: an ordinary model), the image processor, a card, results.json and curve.png. All options of transformers'
TrainingArguments work as well. Needs `pip install 'eupe-hf[train,eval]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForMultiTask
from eupe_hf.training import adapt, finish, one_sentence, parse_recipe
from eupe_hf.training.multitask import MultiTask, MultiTaskTrainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the heads are new, which is the point here
    with one_sentence():  # wrong input ends here, before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe(MultiTask, __doc__, arguments)

        # 2. Data of each task, every file of it read once: unreadable files are skipped, or refused with --strict.
        task = MultiTask(data_args, args.seed)

        # 3. A model with a new head for each task, and adapters in its encoder. --layers is for all heads.
        set_seed(args.seed)  # the heads start at random
        model = EupeForMultiTask.from_pretrained(
            model_args.model, **task.head(model_args.layers), **model_args.loading
        )
        patch_size = model.config.encoder.patch_size
        model = adapt(model, model_args)

        # 4. The processor resizes images to a square; training augments each task as its own recipe does.
        processor = AutoImageProcessor.from_pretrained(model_args.model)
        processor.size = {"height": data_args.size, "width": data_args.size}

        # 5. The Trainer, with batches of one task, all tasks in each step, and learning rates by depth.
        trainer = MultiTaskTrainer(task, processor, patch_size, args, model=model)
    trainer.announce()

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    trainer.accelerator.print(finish(trainer, model_args))


if __name__ == "__main__":
    main()
