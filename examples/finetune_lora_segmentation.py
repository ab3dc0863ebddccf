# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for semantic segmentation: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_segmentation.py --dataset street/ --labels names.txt --output_dir my-adapter
    python examples/finetune_lora_segmentation.py --dataset merve/scene_parse_150 --label_column annotation \
        --reduce_labels --mode probe --layers 2 5 8 11

--dataset is a folder with images/NAME.jpg and masks/NAME.png, perhaps under train/ and validation/, or a data set with
two image columns, on the Hub or in parquet files. A mask holds one class id per pixel, 255 where there is none; with
--reduce_labels 0 is none as well and 1 the first class, as in ADE20K. --labels names the classes, which are otherwise
counted. The output folder gets the adapter with its head (--merge: an ordinary model), the image processor, a card,
results.json and curve.png. Metrics are those of whole images squashed to --size; `examples/evaluate.py` has the
paper's sliding window. All options of transformers' TrainingArguments work as well. Needs
`pip install 'eupe-hf[train]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForSegmentation
from eupe_hf.evaluation import SegmentationMetrics
from eupe_hf.training import RecipeTrainer, StreamingMetrics, adapt, one_sentence, parse_recipe
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.report import finish
from eupe_hf.training.rows import TrainingRows
from eupe_hf.training.tasks.base import predicted_classes
from eupe_hf.training.tasks.segmentation import SegmentationDataArguments, load_segmentation


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # whatever is wrong with the input is said before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe("segmentation", __doc__, arguments, SegmentationDataArguments)

        # 2. Data, every file of it read once: what is unreadable is skipped, or refused with --strict.
        data = load_segmentation(data_args, args.seed, data_args.reduce_labels)

        # 3. A model with a new head for these classes, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        model = EupeForSegmentation.from_pretrained(
            model_args.encoder, id2label=dict(enumerate(data.names)), **model_args.head_fields()
        )
        ignore = model.config.semantic_loss_ignore_index
        model = adapt(model, model_args)

        # 4. The processor squashes image and mask to a square, and reduces labels. Training instead crops a square out
        #    of the image at 0.5 to 2 times its size, mirrors and recolours it: the paper's protocol.
        processor = AutoImageProcessor.from_pretrained(model_args.encoder)
        processor.size = {"height": data_args.size, "width": data_args.size}
        processor.do_reduce_labels = data_args.reduce_labels
        augment = training_augmentation("segmentation", data_args, fill=ignore)
        train = TrainingRows(data.train, processor, "mask", augment, args.seed)
        evaluation = TrainingRows(data.evaluation, processor, "mask")

        # 5. The Trainer, with learning rates by depth, and metrics that are counted batch by batch.
        trainer = RecipeTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processor,
            compute_metrics=StreamingMetrics(lambda: SegmentationMetrics(len(data.names), ignore)),
            preprocess_logits_for_metrics=predicted_classes,
        )
    trained, total = trainer.get_num_trainable_parameters(), sum(p.numel() for p in model.parameters())
    say = trainer.accelerator.print  # once, however many processes there are
    say(f"{train.count} images to train on, {len(evaluation)} to evaluate on, {len(data.names)} classes.")
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    table = finish(trainer, "segmentation", model_args, data_args, data.eval_split)
    say(f"{table}\nSaved {args.output_dir}: pipeline('image-segmentation', model={args.output_dir!r}) runs it.")


if __name__ == "__main__":
    main()
