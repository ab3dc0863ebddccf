# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune one encoder for several tasks together: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_multitask.py --classification photos/ --segmentation street/ labels=names.txt
    python examples/finetune_lora_multitask.py --depth rooms/ depth_scale=1000 --detection parts/ \
        --task_weights depth=2 --epoch_of detection --encoder eupe-b --bf16 --output_dir my-adapter

Each task has a data set of its own, in any layout that its own recipe takes; after it may follow options of that
recipe's data as NAME=VALUE. Their images need not be the same ones. Each step takes --per_device_train_batch_size
images of every task, one task after the other: it follows the losses of all of them, and each head sees images of its
own task alone. A data set with fewer images is gone through more often; --epoch_of says whose images make an epoch,
--task_weights how much a loss counts. The best model is that with the highest "score": the mean of accuracy, mean
IoU, depth's delta1 and average precision, of the tasks there are. The output folder gets the adapter with all heads
(--merge: an ordinary model), the image processor, a card, results.json and curve.png. All options of transformers'
TrainingArguments work as well. Needs `pip install 'eupe-hf[train,eval]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForMultiTask
from eupe_hf.training import adapt, one_sentence, parse_recipe
from eupe_hf.training.multitask import MULTITASK_DEFAULTS, MultiTaskDataArguments, MultiTaskTrainer, load_tasks
from eupe_hf.training.report import finish_tasks


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the heads are new, which is the point here
    with one_sentence():  # whatever is wrong with the input is said before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe(
            "multitask", __doc__, arguments, MultiTaskDataArguments, MULTITASK_DEFAULTS, "--TASK DATASET ..."
        )

        # 2. Data of each task, every file of it read once: what is unreadable is skipped, or refused with --strict.
        tasks = load_tasks(data_args, args.seed)

        # 3. A model with a new head for each task, and adapters in its encoder. --layers goes for all heads.
        set_seed(args.seed)  # the heads start at random
        heads = {name: {**task.head(), **model_args.head_fields()} for name, task in tasks.items()}
        model = EupeForMultiTask.from_pretrained(model_args.encoder, heads=heads)
        patch_size = model.config.encoder.patch_size
        model = adapt(model, model_args)

        # 4. The processor squashes images to a square; training augments those of each task as its own recipe does.
        processor = AutoImageProcessor.from_pretrained(model_args.encoder)
        processor.size = {"height": data_args.size, "width": data_args.size}

        # 5. The Trainer, with batches of one task, all tasks in each step, and learning rates by depth.
        trainer = MultiTaskTrainer(tasks, patch_size, processor, args, data_args.epoch_of, model=model)
    trained, total = trainer.get_num_trainable_parameters(), sum(p.numel() for p in model.parameters())
    say = trainer.accelerator.print  # once, however many processes there are
    for name, task in tasks.items():
        say(f"{name}: {len(task.data.train)} images to train on, {len(task.data.evaluation)} to evaluate on.")
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    table = finish_tasks(trainer, model_args, data_args, [task.evaluated() for task in tasks.values()])
    say(f"{table}\nSaved {args.output_dir}: EupeForMultiTask.from_pretrained({args.output_dir!r}) loads it.")


if __name__ == "__main__":
    main()
