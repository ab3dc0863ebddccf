# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
r"""Ask a vision-language model about the images of a data set, and score its answers.

    python examples/evaluate_vlm.py --model my-vlm --task yes_no --dataset lmms-lab/POPE --output pope.json
    python examples/evaluate_vlm.py --model my-vlm --task multiple_choice --dataset lmms-lab/ScienceQA \
        --config ScienceQA-IMG --output scienceqa.json
    python examples/evaluate_vlm.py --model my-vlm --task multiple_choice --dataset lmms-lab/MMBench --config en \
        --split dev --by-likelihood --output mmbench.json
    python examples/evaluate_vlm.py --model my-vlm --task vqa --dataset questions.jsonl --image-folder photos/

- yes_no: POPE's accuracy, precision, recall and F1 of "yes", and the share of "yes". Any other answer is wrong.
- multiple_choice: accuracy. Options are a list in one column with an index as the answer, or columns A, B, C, ... with
  a letter. The answer is read from the text, or is the likeliest letter with --by-likelihood.
- vqa: exact match with any of the answers, normalised as in the VQA evaluation. With --vqa-soft, its accuracy by the
  number of people who gave the answer.

--model is any image-text-to-text model of transformers with a chat template. Decoding is greedy, so two runs on one
machine give equal answers. The JSON holds every question and answer. Needs `pip install 'eupe-hf[eval]'`.
"""

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from eupe_hf.data.loading import load_split
from eupe_hf.data.rows import Rows
from eupe_hf.evaluation import EvaluationResult
from eupe_hf.evaluation.vlm import (
    LETTERS,
    SUFFIXES,
    Question,
    generate_answers,
    read_question,
    score_answer,
    yes_no_metrics,
)
from eupe_hf.loading import pick_device
from eupe_hf.training import one_sentence


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line. Options of two words are understood with "-" and with "_"."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, **options: Any) -> None:
        parser.add_argument(*dict.fromkeys((name, f"--{name[2:].replace('-', '_')}")), **options)

    add("--model", required=True, help="a Hub id or a folder")
    add("--task", choices=list(SUFFIXES), required=True)
    add("--dataset", required=True, help="a Hub id, a folder, or a JSON, JSON-lines or parquet file")
    add("--config", help="configuration of the data set, if it has several")
    add("--split", default="test", help="default: %(default)s")
    add("--image-column", default="image", metavar="NAME", help="images, or paths to them (default: %(default)s)")
    add("--image-folder", metavar="FOLDER", help="the folder that these paths start from")
    add("--question-column", default="question", metavar="NAME", help="default: %(default)s")
    add("--answer-column", metavar="NAME", help="default: answer; answers with --vqa-soft")
    add("--choices-column", default="choices", metavar="NAME", help="default: %(default)s, else the columns A, B, ...")
    add("--hint-column", default="hint", metavar="NAME", help="multiple_choice: context (default: %(default)s)")
    add("--suffix", metavar="TEXT", help="follows each question (default: LLaVA-1.5's words for the task)")
    add("--by-likelihood", action="store_true", help="multiple_choice: answer with the likeliest letter")
    add("--vqa-soft", action="store_true", help="vqa: min(people who gave the answer / 3, 1)")
    add("--limit", type=int, metavar="N", help="take only N rows, evenly spaced over the split")
    add("--size", type=int, help="side in pixels that images are resized to (default: the processor's)")
    add("--batch-size", type=int, default=8, help="default: %(default)s")
    add("--max-new-tokens", type=int, default=16, help="longest answer (default: %(default)s)")
    add("--dtype", default="auto", help="auto (as saved), float32, bfloat16 or float16 (default: %(default)s)")
    add("--device", help="such as cpu or cuda:1 (default: the accelerator if there is one)")
    add("--output", type=Path, metavar="FILE", help="write metrics, settings and all answers as JSON")
    args = parser.parse_args(arguments)
    for name in ("limit", "size", "batch_size", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for name, task in (("by_likelihood", "multiple_choice"), ("vqa_soft", "vqa")):
        if getattr(args, name) and args.task != task:
            parser.error(f"--{name.replace('_', '-')} requires --task {task}, got {args.task}")
    if args.dtype not in ("auto", "float32", "bfloat16", "float16"):
        parser.error(f"--dtype must be auto, float32, bfloat16 or float16, got {args.dtype}")
    if args.output is not None and (args.output.is_dir() or not args.output.absolute().parent.is_dir()):
        parser.error(f"--output {args.output} must be a file in a folder that exists")
    return args


@contextlib.contextmanager
def naming_row(number: int) -> Iterator[None]:
    """Names the row in the message of an error."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"Row {number}: {error}") from error


def load_questions(args: argparse.Namespace) -> tuple[Any, list[Question]]:
    """Loads the rows, and makes a question of each."""
    columns = {
        "image": args.image_column,
        "question": args.question_column,
        "answer": args.answer_column or ("answers" if args.vqa_soft else "answer"),
    }
    data = load_split(args.dataset, args.split, columns, args.config, args.limit, image_folder=args.image_folder)
    if args.task == "multiple_choice":
        if args.choices_column in data.column_names:
            columns["choices"] = args.choices_column
        elif not {"A", "B"} <= set(data.column_names):
            raise ValueError(
                f"The data set {args.dataset} has neither a column {args.choices_column!r} for the choices nor "
                f"columns A and B; it has {', '.join(data.column_names)}."
            )
        columns["hint"] = args.hint_column
    used = {*columns.values(), *LETTERS} - {args.image_column}
    rows = data.select_columns([name for name in data.column_names if name in used])
    questions = []
    for number, row in enumerate(rows):
        with naming_row(number):
            questions.append(read_question(args.task, row, columns, args.suffix))
            score_answer(args.task, "", questions[-1], args.vqa_soft)  # fails now, not after the model ran
    return data, questions


def load_model(args: argparse.Namespace) -> tuple[Any, Any]:
    """Loads the model and its processor."""
    device = pick_device(args.device)
    try:
        model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype).to(device).eval()
        processor = AutoProcessor.from_pretrained(args.model)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"The model {args.model} cannot be loaded: {error}") from error
    if args.size is not None:
        processor.image_processor.size = {"height": args.size, "width": args.size}
    return model, processor


def ask(args: argparse.Namespace, model: Any, processor: Any, data: Any, questions: Sequence[Question]) -> list[str]:
    """Returns the model's answer to each question."""
    rows, texts = Rows(data, {"image": args.image_column}), []
    with logging.tqdm(total=len(questions), desc=args.task) as bar:
        for start in range(0, len(questions), args.batch_size):
            batch = questions[start : start + args.batch_size]
            has_image = [cell is not None for cell in data[start : start + len(batch)][args.image_column]]
            images = [rows[start + i][0] if has_image[i] else None for i in range(len(batch))]
            texts += generate_answers(model, processor, batch, images, args.max_new_tokens, args.by_likelihood)
            bar.update(len(batch))
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the evaluation. Bad input exits with code 2 and a one-line message."""
    # 1. Read the options.
    args = parse(arguments)
    with one_sentence():
        # 2. Load the data set, and make a question of each row.
        data, questions = load_questions(args)

        # 3. Load the model.
        model, processor = load_model(args)

        # 4. Ask.
        texts = ask(args, model, processor, data, questions)

    # 5. Score the answers.
    scored = [score_answer(args.task, *pair, args.vqa_soft) for pair in zip(texts, questions, strict=True)]
    found, scores = zip(*scored, strict=True)
    metrics = {"accuracy": sum(scores) / len(scores)}
    if args.task == "yes_no":
        metrics = yes_no_metrics(found, [question.truth for question in questions])
    elif args.task == "multiple_choice":
        metrics["unanswered"] = found.count(None) / len(found)

    # 6. Write and print the result.
    names = ("suffix", "by_likelihood", "vqa_soft", "size", "max_new_tokens", "batch_size", "dtype", "limit")
    settings = {name: getattr(args, name) for name in names}
    settings["suffix"] = SUFFIXES[args.task] if args.suffix is None else args.suffix
    source = (args.task, args.model, args.dataset, args.split)
    result = EvaluationResult(*source, len(data), metrics, settings, args.config)
    samples = [
        {"question": question.prompt, "answer": text, "read_as": read, "truth": question.truth, "score": score}
        for question, text, read, score in zip(questions, texts, found, scores, strict=True)
    ]
    if args.output is not None:
        args.output.write_text(json.dumps({**result.to_dict(), "samples": samples}, indent=2), encoding="utf-8")
    print(f"{args.task} of {args.model} on {len(data)} rows of {args.dataset} ({args.split})")
    print("\n".join(f"{name:<12}{value:>9.4f}" for name, value in metrics.items()))


if __name__ == "__main__":
    main()
