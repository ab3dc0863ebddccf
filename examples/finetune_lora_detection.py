# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Fine-tune an encoder for object detection: with LoRA, with a frozen encoder, or in full.

    python examples/finetune_lora_detection.py --dataset parts/ --output_dir my-adapter
    python examples/finetune_lora_detection.py --dataset cppe-5 --encoder eupe-b --mode full --bf16

--dataset is a folder with COCO's JSON: annotations.json beside images/, or train.json and validation.json, or
train/annotations.json and validation/annotations.json, also as Roboflow exports them (train/_annotations.coco.json).
Or a data set, on the Hub or in parquet files, with a column `objects` that has `bbox`, as in COCO, and `category` for
each image. Category ids may have gaps; names come from the data, or from --labels. Boxes are clipped to their images,
those of which nothing is left are counted and skipped, or refused with --strict. The output folder gets the adapter
with its head (--merge: an ordinary model), the image processor, a card, results.json and curve.png. All options of
transformers' TrainingArguments work as well. Needs `pip install 'eupe-hf[train,eval]'`.
"""

from collections.abc import Sequence

from transformers import AutoImageProcessor, logging, set_seed

from eupe_hf import EupeForObjectDetection
from eupe_hf.extras import require
from eupe_hf.training import StreamingMetrics, adapt, one_sentence, parse_recipe
from eupe_hf.training.augmentation import training_augmentation
from eupe_hf.training.report import finish
from eupe_hf.training.tasks.detection import (
    DETECTION_DEFAULTS,
    DetectionDataArguments,
    DetectionMetrics,
    DetectionRows,
    DetectionTrainer,
    collate_objects,
    load_detection,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and leave a folder that can be loaded."""
    logging.set_verbosity_error()  # transformers warns that the head is new, which is the point here
    with one_sentence():  # whatever is wrong with the input is said before the first step
        # 1. Options: of the model, of the data, and of the Trainer.
        model_args, data_args, args = parse_recipe(
            "detection", __doc__, arguments, DetectionDataArguments, DETECTION_DEFAULTS
        )
        require("pycocotools.coco")  # which the first evaluation will need

        # 2. Data, every file of it read once: what is unreadable is skipped, or refused with --strict.
        data = load_detection(data_args, args.seed)

        # 3. A model with a new head for these classes, and adapters in its encoder.
        set_seed(args.seed)  # the head starts at random
        model = EupeForObjectDetection.from_pretrained(
            model_args.encoder, id2label=dict(enumerate(data.names)), **model_args.head_fields()
        )
        model = adapt(model, model_args)

        # 4. The processor squashes images to a square. Training does so at 0.8 to 1.25 times the size, crops or pads
        #    them, mirrors and recolours them: the "standard scale jittering" of arXiv 2012.07177.
        processor = AutoImageProcessor.from_pretrained(model_args.encoder)
        processor.size = {"height": data_args.size, "width": data_args.size}
        train = DetectionRows(data.train, processor, training_augmentation("detection", data_args), args.seed)
        evaluation = DetectionRows(data.evaluation, processor)

        # 5. The Trainer, with learning rates by depth, and average precision at each evaluation.
        trainer = DetectionTrainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=processor,
            data_collator=collate_objects,
            compute_metrics=StreamingMetrics(DetectionMetrics),
        )
    trained, total = trainer.get_num_trainable_parameters(), sum(p.numel() for p in model.parameters())
    say = trainer.accelerator.print  # once, however many processes there are
    say(f"{train.count} images to train on, {len(evaluation)} to evaluate on, {len(data.names)} classes.")
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%}).")

    # 6. Train, from the start or from a checkpoint; the best model is loaded at the end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # 7. Save the model with its processor, results, curve and card, and push it with --push_to_hub.
    table = finish(trainer, "detection", model_args, data_args, data.eval_split)
    say(f"{table}\nSaved {args.output_dir}: pipeline('object-detection', model={args.output_dir!r}) runs it.")


if __name__ == "__main__":
    main()
