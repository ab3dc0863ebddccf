# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions about images: prompts from the rows of a data set, the answers of a model, and their scores.

There are three kinds: "yes_no" as in POPE, "multiple_choice" as in ScienceQA and MMBench, "vqa" for short free
answers. `examples/evaluate_vlm.py` joins the parts.
"""

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import ProcessorMixin


LETTERS = "ABCDEFGHIJ"
# the text after the question, in the words that LLaVA-1.5 was trained with
_SHORT = "Answer the question using a single word or phrase."
SUFFIXES = {
    "yes_no": _SHORT,
    "multiple_choice": "Answer with the option's letter from the given choices directly.",
    "vqa": _SHORT,
}
PIPELINE_TAGS = {**dict.fromkeys(SUFFIXES, "visual-question-answering"), "conversation": "image-text-to-text"}
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_TEXTS = (str, int, float)  # what an option and an answer can be
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'


@dataclass(frozen=True)
class Question:
    """A question, and its right answer.

    Args:
        prompt: The text beside the image.
        truth: "yes" or "no"; the letter of an option; or all answers that people gave.
        options: The options of a multiple choice, in the order of their letters.
    """

    prompt: str
    truth: str | tuple[str, ...]
    options: tuple[str, ...] = ()


def read_question(
    task: str, row: Mapping[str, Any], columns: Mapping[str, str], suffix: str | None = None
) -> Question:
    r"""Make a question from a row of a data set.

    Args:
        task: "yes_no", "multiple_choice" or "vqa".
        row: The row.
        columns: Names of the columns "question" and "answer", of "choices" if the options are a list (otherwise they
            are in columns A, B, C, ...), and of "hint", which may be absent or empty.
        suffix: The text after the question, by default as in `SUFFIXES`.

    Raises:
        ValueError: The answer does not fit the task, there are fewer than two options, or a cell holds another type.

    Example:

    ```python
    >>> from eupe_hf.evaluation.vlm import read_question

    >>> row = {"question": "Which is red?", "choices": ["grass", "blood"], "answer": 1}
    >>> columns = {"question": "question", "choices": "choices", "answer": "answer"}
    >>> question = read_question("multiple_choice", row, columns, suffix="Answer with a letter.")
    >>> print(question.prompt, question.truth, sep="\n")
    Which is red?
    A. grass
    B. blood
    Answer with a letter.
    B

    ```
    """
    needed = (columns[key] for key in ("question", "answer", "choices") if key in columns)
    if missing := [column for column in needed if column not in row]:
        raise ValueError(f"The row has no {missing[0]!r}; it has {', '.join(map(repr, row))}.")
    answer, asked = row[columns["answer"]], row[columns["question"]]
    if not isinstance(asked, str):
        raise ValueError(f"The question must be text, got {reprlib.repr(asked)}.")
    lines = [asked.strip()]
    options: tuple[str, ...] = ()
    truth: str | tuple[str, ...]
    if task == "yes_no":
        truth = ("no", "yes")[answer] if isinstance(answer, bool) else str(answer).strip().lower()
        if truth not in ("yes", "no"):
            raise ValueError(f"The answer must be yes or no, got {reprlib.repr(answer)}.")
    elif task == "multiple_choice":
        options = _options(
            row[columns["choices"]] if "choices" in columns else [row.get(letter) for letter in LETTERS]
        )
        truth = _right_letter(answer, options)
        hint = row.get(columns["hint"]) if "hint" in columns else None
        if not isinstance(hint, str) and not _is_missing(hint):
            raise ValueError(f"The hint must be text, got {reprlib.repr(hint)}.")
        lines = [f"Context: {hint}"] * (isinstance(hint, str) and bool(hint)) + lines
        lines += [f"{letter}. {option}" for letter, option in zip(LETTERS[: len(options)], options, strict=True)]
    else:
        truth = _answers(answer)
    return Question("\n".join([*lines, SUFFIXES[task] if suffix is None else suffix]).strip(), truth, options)


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, or the NaN of a table that has no other word for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _options(listed: Any) -> tuple[str, ...]:
    """The options of a multiple choice; empty ones at the end, of a table for longer questions, are left out."""
    if not isinstance(listed, (list, tuple)):
        hint = " It looks like a list that was stored as text: read it before." * str(listed).strip().startswith("[")
        raise ValueError(f"The options must be a list, got {reprlib.repr(listed)}.{hint}")
    count = max((index + 1 for index, option in enumerate(listed) if not _is_missing(option)), default=0)
    if wrong := [option for option in listed[:count] if _is_missing(option) or not isinstance(option, _TEXTS)]:
        raise ValueError(f"An option must be text or a number, got {reprlib.repr(wrong[0])}.")
    if not 2 <= count <= len(LETTERS):
        raise ValueError(f"A multiple choice has 2 to {len(LETTERS)} options, got {count}.")
    return tuple(str(option) for option in listed[:count])


def _answers(answer: Any) -> tuple[str, ...]:
    """All answers that people gave: one, a list, or a list of objects with "answer"."""
    given = [
        one.get("answer") if isinstance(one, Mapping) else one
        for one in (answer if isinstance(answer, (list, tuple)) else [answer])
        if one is not None
    ]
    if wrong := [one for one in given if not isinstance(one, _TEXTS)]:
        raise ValueError(f"An answer must be text or a number, got {reprlib.repr(wrong[0])}.")
    if not given:
        raise ValueError("There must be at least one answer, got none.")
    return tuple(map(str, given))


def _right_letter(answer: Any, options: Sequence[str]) -> str:
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
        return LETTERS[answer]
    letters = LETTERS[: len(options)]
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in letters:
        return answer.strip().upper()
    if answer in options:
        return LETTERS[options.index(answer)]
    raise ValueError(
        f"The answer must be a letter of {letters}, a number from 0 to {len(options) - 1} or the words of an option, "
        f"got {reprlib.repr(answer)}."
    )


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    questions: Sequence[Question],
    images: Sequence[PIL.Image.Image | None],
    max_new_tokens: int = 16,
    by_likelihood: bool = False,
) -> list[str]:
    """Answer a batch of questions by greedy decoding: one text per question.

    Args:
        model: A vision-language model, in eval mode.
        processor: Its processor, with a chat template.
        questions: The questions.
        images: One per question; `None` for a question without an image.
        max_new_tokens: Longest answer.
        by_likelihood: Answer multiple choices with the likeliest of their letters.

    Raises:
        ValueError: There is no chat template, a prompt is too long, or a letter is not one token.
    """
    tokenizer: Any = processor.tokenizer
    if processor.chat_template is None:
        raise ValueError("The processor has no chat template: set processor.chat_template and save it.")
    chats = [_chat(question.prompt, image) for question, image in zip(questions, images, strict=True)]
    inputs: Any = processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        sanitize_control_tokens=True,  # the words "<image>" in a question do not stand for an image
        processor_kwargs={"padding": True, "padding_side": "left"},
    )  # fmt: skip
    outputs: Any = model.generate(  # whatever the model's own generation_config says, this is greedy
        **inputs.to(model.device, model.dtype),
        max_new_tokens=1 if by_likelihood else max_new_tokens,
        do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
        pad_token_id=tokenizer.pad_token_id, return_dict_in_generate=True, output_logits=by_likelihood,
    )  # fmt: skip
    if not by_likelihood:
        new = outputs.sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    ids = letter_ids(processor, max(len(question.options) for question in questions))
    scores = outputs.logits[0][:, ids].float()  # (B, letters)
    return [LETTERS[int(row[: len(q.options)].argmax())] for q, row in zip(questions, scores, strict=True)]


def _chat(prompt: str, image: PIL.Image.Image | None, answer: str | None = None) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": image}] * (image is not None) + [{"type": "text", "text": prompt}]
    chat = [{"role": "user", "content": content}]
    return chat if answer is None else [*chat, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def letter_ids(processor: ProcessorMixin, count: int) -> list[int]:
    """Ids of the tokens A, B, C, ... at the start of an answer; a ValueError if one is not a single token."""
    chats = [_chat("?", None), *(_chat("?", None, letter) for letter in LETTERS[:count])]
    prompt, *answered = (
        processor.tokenizer.encode(
            processor.apply_chat_template(chat, add_generation_prompt=i == 0, continue_final_message=i > 0),
            add_special_tokens=False,
        )
        for i, chat in enumerate(chats)
    )
    ids = [full[len(prompt) :] for full in answered if full[: len(prompt)] == prompt]
    if len(ids) < count or any(len(new) != 1 for new in ids) or len({new[0] for new in ids}) < count:
        raise ValueError("The tokenizer does not write each letter as one token of its own: score the text instead.")
    return [new[0] for new in ids]


def parse_yes_no(text: str) -> str | None:
    """The first of "yes" and "no" in a text ("not" counts as no); `None` if it has neither."""
    found = re.search(r"\b(yes|no|not)\b|n't\b", text.lower())
    return None if found is None else "yes" if found[0] == "yes" else "no"


def parse_letter(text: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a text names, by letter or in words; `None` if it names none, or several."""
    letters = LETTERS[: len(options)]
    text = text.strip()
    found = re.match(rf"\(?([{letters}])(?:[).:,\n]|$)", text, flags=re.IGNORECASE)
    found = found or re.search(rf"\b(?i:answer|option|choice)(?: is)?:? *\(?([{letters}])\b", text)
    if found is not None:
        return found[1].upper()
    words = f" {normalise_answer(text)} "
    named = [
        letter for letter, option in zip(letters, options, strict=True) if f" {normalise_answer(option)} " in words
    ]
    return named[0] if len(named) == 1 else None


def normalise_answer(text: str) -> str:
    """Normalise a text as the VQA evaluation does: lower case, no articles or punctuation, numbers to ten as digits.

    Punctuation beside a space is removed, other punctuation becomes a space; points stay inside numbers. Apostrophes
    are removed, where the original adds missing ones: either way "dont" equals "don't".

    Source: `VQAEval.processPunctuation` and `processDigitArticle` of the VQA evaluation (arXiv:1505.00468).
    """
    text = " ".join(text.lower().split())
    has_thousands = re.search(r"\d,\d", text) is not None
    cleaned = text.replace("'", "")
    for mark in _PUNCTUATION:
        is_beside_space = has_thousands or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_beside_space else " ")
    words = re.sub(r"\.(?!\d)", "", cleaned).split()
    return " ".join(_DIGITS.get(word, word) for word in words if word not in _ARTICLES)


def score_answer(task: str, text: str, question: Question, vqa_soft: bool = False) -> tuple[str | None, float]:
    """The answer in a text, as it is compared, and its score from 0 to 1."""
    if task == "vqa":
        return normalise_answer(text), (soft_accuracy if vqa_soft else exact_match)(text, question.truth)
    found = parse_yes_no(text) if task == "yes_no" else parse_letter(text, question.options)
    return found, float(found == question.truth)


def exact_match(text: str, answers: Sequence[str]) -> float:
    """1 if a text is one of the answers after `normalise_answer`, else 0."""
    return float(normalise_answer(text) in map(normalise_answer, answers))


def soft_accuracy(text: str, answers: Sequence[str]) -> float:
    """Accuracy of the VQA evaluation: min(people who gave this answer / 3, 1), averaged over leaving out each person.

    Args:
        text: The answer.
        answers: The answers of several people, ten in VQAv2 and TextVQA.

    Raises:
        ValueError: There are fewer than two answers.

    Example:

    ```python
    >>> from eupe_hf.evaluation.vlm import soft_accuracy

    >>> soft_accuracy("A cat.", ["cat"] * 2 + ["dog"] * 8)
    0.6

    ```
    """
    if len(answers) < 2:
        raise ValueError(f"This accuracy needs the answers of several people, got {len(answers)}.")
    given = normalise_answer(text)
    same = [normalise_answer(answer) == given for answer in answers]
    return round(sum(min((sum(same) - one) / 3, 1) for one in same) / len(same), 10)


def yes_no_metrics(found: Sequence[str | None], truth: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of "yes", the share of "yes", and the share of answers that are neither.

    An answer that is neither is wrong. Precision is 0 without a predicted yes, recall without a true one.

    Example:

    ```python
    >>> from eupe_hf.evaluation.vlm import yes_no_metrics

    >>> metrics = yes_no_metrics(["yes", "yes", "no", None], ["yes", "no", "no", "yes"])
    >>> metrics["accuracy"], metrics["precision"], metrics["recall"], metrics["f1"]
    (0.5, 0.5, 0.5, 0.5)

    ```
    """
    pairs = list(zip(found, truth, strict=True))
    hits, said, right = pairs.count(("yes", "yes")), list(found).count("yes"), list(truth).count("yes")
    return {
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
        "precision": hits / max(said, 1),
        "recall": hits / max(right, 1),
        "f1": 2 * hits / max(said + right, 1),
        "yes_ratio": said / len(pairs),
        "unanswered": list(found).count(None) / len(pairs),
    }
