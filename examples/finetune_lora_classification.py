# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for image classification: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_classification.py --dataset photos/ --output_dir my-adapter
    python examples/finetune_lora_classification.py --dataset food101 --encoder eupe-b --rank 8 --bf16
    python examples/finetune_lora_classification.py --dataset photos/ --output_dir my-adapter \
        --resume_from_checkpoint last

--dataset is a folder with one folder of images per class, perhaps under train/ and validation/, or the id of a data
set on the Hub. The output folder gets the adapter with its head (--merge: an ordinary model), the image processor, a
card, results.json and curve.png; `AutoModelForImageClassification.from_pretrained` and `pipeline` take it. --mode
probe trains the head alone, --mode full everything. All options of transformers' TrainingArguments work as well. Needs
`pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForImageClassification
from eupe_hf.evaluation import ClassificationMetrics
from eupe_hf.training import RecipeTrainer, StreamingMetrics, adapt, one_sentence, parse_recipe
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.report import finish
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.base import predicted_classes
from eupe_hf.training.tasks.classification import load_classification


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # whatever is wrong with the input is said before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe("classification", __doc__, arguments)

        # 2. Data, every file of it read once: what is unreadable is skipped, or refused with --strict.
        data = load_classification(data_args, args.seed)

        # 3. A model with a new head for these classes, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        model = EupeForImageClassification.from_pretrained(
            model_args.encoder, id2label=dict(enumerate(data.names)), **model_args.head_fields()
        )
        model = adapt(model, model_args)

        # 4. The processor squashes images to a square, as upstream's does. Training takes a random part of 8 to 100 %
        #    of each image, as in peft's recipe, mirrors and recolours it.
        processor = AutoImageProcessor.from_pretrained(model_args.encoder)
        processor.size = {"height": data_args.size, "width": data_args.size}
        augment = training_augmentation("classification", data_args)
        train = TrainingRows(data.train, processor, "class", augment, args.seed)
        evaluation = TrainingRows(data.evaluation, processor, "class")

        # 5. The Trainer, with learning rates by depth, and metrics that are counted batch by batch.
        trainer = RecipeTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processor,
            compute_metrics=StreamingMetrics(lambda: ClassificationMetrics(len(data.names))),
            preprocess_logits_for_metrics=predicted_classes,
        )
    trained, total = trainer.get_num_trainable_parameters(), sum(p.numel() for p in model.parameters())
    say = trainer.accelerator.print  # once, however many processes there are
    say(f"{train.count} images to train on, {len(evaluation)} to evaluate on, {len(data.names)} classes.")
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    table = finish(trainer, "classification", model_args, data_args, data.eval_split)
    say(f"{table}\nSaved {args.output_dir}: pipeline('image-classification', model={args.output_dir!r}) runs it.")


if __name__ == "__main__":
    main()
