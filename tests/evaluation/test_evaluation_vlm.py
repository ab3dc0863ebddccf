# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Questions, answers and scores of VLMs, worked out by hand, and examples/evaluate_vlm.py as you run it."""

import itertools
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers import PreTrainedTokenizerBase
from vlm_common import make_vlm

from eupe_hf.data.loading import load_split
from eupe_hf.evaluation.vlm import (
    Question,
    generate_answers,
    letter_ids,
    normalise_answer,
    parse_letter,
    parse_yes_no,
    read_question,
    score_answer,
    soft_accuracy,
    yes_no_metrics,
)


COLUMNS = {"question": "question", "answer": "answer"}
COLOURS = ["red", "blue", "green", "white"]


# ---- questions ----


@pytest.mark.parametrize(("answer", "truth"), [("Yes", "yes"), (" no ", "no"), (True, "yes"), (False, "no")])
def test_yes_no_question_is_asked_in_the_words_of_llava(answer: Any, truth: str) -> None:
    question = read_question("yes_no", {"question": " Is it red? ", "answer": answer}, COLUMNS)
    assert question.prompt == "Is it red?\nAnswer the question using a single word or phrase."
    assert question.truth == truth


def test_options_come_from_a_list_or_from_lettered_columns() -> None:
    listed = {"question": "Which?", "choices": ["a fox", "2", "a cat"], "answer": 2, "hint": "Look."}
    columns = {**COLUMNS, "choices": "choices", "hint": "hint"}
    question = read_question("multiple_choice", listed, columns, suffix="")
    assert question == Question("Context: Look.\nWhich?\nA. a fox\nB. 2\nC. a cat", "C", ("a fox", "2", "a cat"))
    lettered = {
        "question": "Which?",
        "A": "a fox",
        "B": "2",
        "C": None,
        "D": float("nan"),
        "answer": "b",
        "hint": None,
    }
    question = read_question("multiple_choice", lettered, {**COLUMNS, "hint": "hint"})
    assert question.truth == "B" and question.options == ("a fox", "2")
    ending = "B. 2\nAnswer with the option's letter from the given choices directly."
    assert question.prompt.startswith("Which?\nA. a fox") and question.prompt.endswith(ending)
    assert read_question("multiple_choice", {**listed, "answer": "a fox"}, columns).truth == "A"


def test_answers_of_several_people_are_read() -> None:
    row = {"question": "How many?", "answer": [{"answer": "two", "answer_id": 1}, {"answer": "3", "answer_id": 2}]}
    assert read_question("vqa", row, COLUMNS).truth == ("two", "3")
    assert read_question("vqa", {**row, "answer": 5}, COLUMNS).truth == ("5",)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("yes_no", {"answer": "maybe"}, "must be yes or no, got 'maybe'"),
        ("multiple_choice", {"A": "one", "answer": "A"}, "2 to 10 options, got 1"),
        ("multiple_choice", {"A": "1", "B": "2", "answer": "C"}, "a letter of AB, a number from 0 to 1 or .* got 'C'"),
        ("multiple_choice", {"A": "1", "B": "2", "answer": -1}, "got -1"),
        ("vqa", {"answer": None}, "at least one answer, got none"),
        ("vqa", {"answer": [{"text": "two"}]}, "An answer must be text or a number, got None"),
        ("vqa", {"answer": [["two"]]}, r"An answer must be text or a number, got \['two'\]"),
        ("yes_no", {"answer": ["yes"]}, r"must be yes or no, got \['yes'\]"),
        ("yes_no", {"question": None, "answer": "yes"}, "The question must be text, got None"),
        (
            "multiple_choice",
            {"A": "1", "B": None, "C": "3", "answer": "C"},
            "An option must be text or a number, got None",
        ),
        ("multiple_choice", {"A": "1", "B": [2], "answer": "A"}, r"An option must be text or a number, got \[2\]"),
        ("multiple_choice", {"A": "1", "B": "2", "answer": True}, "got True"),
    ],
)
def test_question_that_has_no_answer_is_refused(task: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_question(task, {"question": "?", **row}, COLUMNS)


def test_row_without_a_column_is_refused() -> None:
    with pytest.raises(ValueError, match="The row has no 'answer'; it has 'question'"):
        read_question("vqa", {"question": "?"}, {"question": "question", "answer": "answer"})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (None, "The options must be a list, got None"), (5, "got 5"),
        ({"text": ["a", "b"]}, "The options must be a list"),
        ("['x', 'y']", "It looks like a list that was stored as text: read it before"),
        (["x", None, "y"], "An option must be text or a number, got None"), (["x", ["y"]], "An option must be text"),
    ],
)  # fmt: skip
def test_choices_that_are_no_list_are_refused(choices: Any, message: str) -> None:
    columns = {**COLUMNS, "choices": "choices", "hint": "hint"}
    row = {"question": "?", "choices": choices, "answer": 0, "hint": None}
    with pytest.raises(ValueError, match=message):
        read_question("multiple_choice", row, columns)
    with pytest.raises(ValueError, match="The hint must be text, got 5"):
        read_question("multiple_choice", {**row, "choices": ["x", "y"], "hint": 5}, columns)
    empty = read_question("multiple_choice", {**row, "choices": ["x", "y"], "hint": float("nan")}, columns)
    assert "Context" not in empty.prompt


# ---- scores ----


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"), ("No, there is none.", "no"), ("There is no dog.", "no"), ("It isn't.", "no"),
        ("Yes, not far away", "yes"), ("a notable dog", None), ("", None), ("yesterday", None),
    ],
)  # fmt: skip
def test_yes_and_no_are_found_as_words(text: str, expected: str | None) -> None:
    assert parse_yes_no(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"), ("b.", "B"), ("(C) blue sky", "C"), ("A: red", "A"), ("B\nbecause", "B"),
        ("The answer is C", "C"), ("Option (D).", "D"), ("Blue sky.", "C"), ("It is a red", "A"),
        ("red or green", None), ("E", None), ("", None), ("The answer is a mystery", None),
    ],
)  # fmt: skip
def test_letter_is_found_by_itself_or_by_the_words_of_its_option(text: str, expected: str | None) -> None:
    assert parse_letter(text, ["red", "green", "blue sky", "four"]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat.", "cat"), (" two  dogs\n", "2 dogs"), ("1,000", "1000"), ("2.5 m.", "2.5 m"), ("none", "0"),
        ("red/blue", "red blue"), ("red, blue", "red blue"), ("don't", "dont"), ("what?", "what"), ("an", ""),
    ],
)  # fmt: skip
def test_answer_is_normalised_as_the_vqa_evaluation_does(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(("same", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_is_the_mean_over_leaving_out_each_person(same: int, expected: float) -> None:
    # 1 of 10: the nine sets with him give 1/3 each, the one without him 0; and so on
    answers = ["a Cat"] * same + [f"dog {i}" for i in range(10 - same)]
    assert soft_accuracy("cat", answers) == pytest.approx(expected, abs=1e-9)
    question = Question("?", tuple(answers))
    assert score_answer("vqa", "Cat!", question, vqa_soft=True) == ("cat", pytest.approx(expected, abs=1e-9))
    assert score_answer("vqa", "Cat!", question) == ("cat", float(same > 0))


def test_soft_accuracy_of_one_person_is_refused() -> None:
    with pytest.raises(ValueError, match="answers of several people, got 1"):
        soft_accuracy("cat", ["cat"])


def test_yes_no_metrics_by_hand() -> None:
    # 3 true yes, 1 false yes, 2 true no, 1 missed by "no", 1 missed by neither
    found = ["yes"] * 4 + ["no"] * 3 + [None]
    truth = ["yes"] * 3 + ["no"] * 3 + ["yes"] * 2
    assert yes_no_metrics(found, truth) == pytest.approx(
        {"accuracy": 5 / 8, "precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3, "yes_ratio": 1 / 2, "unanswered": 1 / 8}
    )
    silent = yes_no_metrics([None, "no"], ["no", "no"])
    assert (silent["accuracy"], silent["precision"], silent["recall"], silent["f1"]) == (0.5, 0, 0, 0)


# ---- answers ----


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_batch_of_questions_is_answered_as_each_alone(family: str) -> None:
    model, processor = make_vlm(family)
    questions = [Question("Short?", "yes"), Question("A longer question, is it?", "no"), Question("Text?", "no")]
    images = [Image.new("RGB", (70, 50), "red"), Image.new("RGB", (50, 90), "blue"), None]
    together = generate_answers(model, processor, questions, images, max_new_tokens=6)
    alone = [
        generate_answers(model, processor, [question], [image], max_new_tokens=6)[0]
        for question, image in zip(questions, images, strict=True)
    ]
    assert together == alone and len(set(alone)) == 3
    said = Question("Is <image> a token?", "no")
    assert generate_answers(model, processor, [said], images[:1]) != generate_answers(model, processor, [said], [None])
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)
    assert generate_answers(model, processor, questions, images, max_new_tokens=6) == together


def test_likelihood_answers_with_the_letter_that_the_logits_prefer() -> None:
    model, processor = make_vlm("vit")
    ids = letter_ids(processor, 4)
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["A", "B", "C", "D"]
    options = [("1", "2", "3", "4"), ("1", "2")]
    questions = [Question(f"Which of {len(given)}?", "A", given) for given in options]
    images = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    expected = []
    for question, image in zip(questions, images, strict=True):
        content = [{"type": "image", "image": image}, {"type": "text", "text": question.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        scores = model(**inputs).logits[0, -1, ids]
        expected.append("ABCD"[int(scores[: len(question.options)].argmax())])
    assert generate_answers(model, processor, questions, images, by_likelihood=True) == expected


def test_letters_of_several_tokens_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = make_vlm("vit")[1]
    encode = PreTrainedTokenizerBase.encode
    monkeypatch.setattr(
        type(processor.tokenizer), "encode", lambda self, text, **k: encode(self, text.replace("B", "BB"), **k)
    )
    with pytest.raises(ValueError, match="does not write each letter as one token"):
        letter_ids(processor, 4)
    processor.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        generate_answers(None, processor, [], [])


# ---- the script ----


Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VLM that answers "yes" to everything, and to which B is the likeliest letter."""
    model, processor = make_vlm("vit")
    tokenizer = processor.tokenizer
    with torch.no_grad():
        for parameter in (*model.language_model.layers.parameters(), model.lm_head.weight):
            parameter.zero_()  # what comes next follows from the last token alone
        embeddings = model.get_input_embeddings().weight.zero_()
        chain = tokenizer.convert_tokens_to_ids(["Ċ", "y", "e", "s", "<|im_end|>"])  # Ċ: the line break of the prompt
        for dimension, (token, following) in enumerate(itertools.pairwise(chain)):
            embeddings[token, dimension] = 1
            model.lm_head.weight[following, dimension] = 1
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("B"), 0] = 0.5
    folder = tmp_path_factory.mktemp("parrot")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parrot: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the script in this process and offline; gives what it wrote, or the one line with which it ended."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    main = runpy.run_path(str(ROOT / "examples" / "evaluate_vlm.py"))["main"]

    def run_here(task: str, dataset: Path, *options: Any, model: Path = parrot) -> dict[str, Any]:
        output = tmp_path / "results.json"
        arguments = ["--model", model, "--task", task, "--dataset", dataset, "--output", output, *options]
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            lines = [line for line in capsys.readouterr().err.splitlines() if "examples/s" not in line and line]
            return {"code": exit_.code, "said": lines[-1]}
        out, err = capsys.readouterr()
        saved = json.loads(output.read_text())
        assert all(f"{name:<12}{value:>9.4f}" in out for name, value in saved["metrics"].items())
        assert "%|" in err  # a progress bar
        return saved

    return run_here


def save(folder: Path, rows: dict[str, list[Any]]) -> Path:
    """A data set with one split, test, as `save_to_disk` leaves it; its images are of four colours."""
    count = len(next(iter(rows.values())))
    images = [Image.new("RGB", (60 + i, 50), COLOURS[i % 4]) for i in range(count)]
    data = datasets.Dataset.from_dict({"image": images, **rows})
    datasets.DatasetDict({"test": data.cast_column("image", datasets.Image())}).save_to_disk(folder)
    return folder


def test_script_scores_yes_and_no(run: Run, tmp_path: Path, parrot: Path) -> None:
    data = save(
        tmp_path / "pope", {"question": [f"Is it {i}?" for i in range(5)], "answer": ["yes", "no"] * 2 + ["no"]}
    )
    saved = run("yes_no", data, "--batch_size", 2)
    expected = {"accuracy": 0.4, "precision": 0.4, "recall": 1, "f1": 4 / 7, "yes_ratio": 1, "unanswered": 0}
    assert saved["metrics"] == pytest.approx(expected)
    assert [sample["answer"] for sample in saved["samples"]] == ["yes"] * 5
    assert [sample["score"] for sample in saved["samples"]] == [1, 0, 1, 0, 0]
    assert saved["samples"][0]["question"].startswith("Is it 0?\nAnswer the question")
    assert (saved["protocol"], saved["model"], saved["num_examples"]) == ("yes_no", str(parrot), 5)
    limited = run("yes_no", data, "--limit", 2, "--suffix", "Say it.", "--size", 32, "--device", "cpu")
    assert limited["settings"]["size"] == 32 and saved["settings"]["size"] is None
    assert limited["num_examples"] == limited["settings"]["limit"] == 2
    assert [sample["question"] for sample in limited["samples"]] == ["Is it 0?\nSay it.", "Is it 2?\nSay it."]


def test_script_scores_multiple_choices(run: Run, tmp_path: Path) -> None:
    rows = {"question": ["Which?"] * 3, "choices": [COLOURS, COLOURS[:2], COLOURS], "answer": [1, 1, 0]}
    data = save(tmp_path / "sqa", rows)
    assert run("multiple_choice", data)["metrics"] == {"accuracy": 0, "unanswered": 1}  # it says yes
    saved = run("multiple_choice", data, "--by_likelihood")
    assert saved["metrics"] == pytest.approx({"accuracy": 2 / 3, "unanswered": 0})
    assert [sample["read_as"] for sample in saved["samples"]] == ["B"] * 3
    lettered = save(tmp_path / "mmbench", {"question": ["Which?"] * 2, "A": ["1", "yes"], "B": ["2", "no"],
                                           "C": ["yes", None], "answer": ["C", "B"]})  # fmt: skip
    saved = run("multiple_choice", lettered)  # the words of an option count as its letter
    assert [sample["read_as"] for sample in saved["samples"]] == ["C", "A"] and saved["metrics"]["accuracy"] == 0.5


def test_script_scores_free_answers(run: Run, tmp_path: Path) -> None:
    answers = [["Yes."] * 2 + ["no"] * 8, ["no"] * 10]
    data = save(tmp_path / "vqa", {"question": ["Is it?"] * 2, "answer": ["YES", "the no"], "answers": answers})
    assert run("vqa", data)["metrics"] == {"accuracy": 0.5}
    assert run("vqa", data, "--vqa-soft")["metrics"] == {"accuracy": pytest.approx(0.3)}  # 0.6 and 0


def test_script_reads_json_lines_with_paths_and_rows_without_image(run: Run, tmp_path: Path) -> None:
    Image.new("L", (40, 40), 90).save(tmp_path / "grey.png")
    rows = [{"image": "grey.png", "text": "Grey?", "label": "yes"}, {"image": None, "text": "Blind?", "label": "no"}]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    columns = ("--question_column", "text", "--answer_column", "label", "--image_folder", tmp_path)
    saved = run("yes_no", file, *columns)
    assert [sample["answer"] for sample in saved["samples"]] == ["yes", "yes"]
    data = load_split(str(file), "any", {"image": "image"}, image_folder=str(tmp_path))
    assert data[0]["image"]["path"] == str(tmp_path / "grey.png") and data[1]["image"] is None
    assert "grey.png) cannot be read" in run("yes_no", file, *columns[:-1], tmp_path / "elsewhere")["said"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("yes_no", "--answer_column", "label"),
            "has no column 'label' for the answer; it has image, question, answer.",
        ),
        (("yes_no",), "Row 1: The answer must be yes or no, got 'blue'."),
        (("multiple_choice",), "neither a column 'choices' for the choices nor columns A and B"),
        (
            ("vqa", "--vqa_soft", "--answer_column", "answer"),
            "Row 0: This accuracy needs the answers of several people, got 1.",
        ),
        (("vqa", "--by_likelihood"), "--by-likelihood requires --task multiple_choice, got vqa"),
        (("vqa", "--limit", "0"), "--limit must be at least 1, got 0"),
        (("vqa", "--batch-size", "0"), "--batch-size must be at least 1, got 0"),
        (("vqa", "--size", "0"), "--size must be at least 1, got 0"),
        (("yes_no", "--answer-column", "answer", "--limit", "1", "--device", "nonsense"), "device 'nonsense' is not"),
        (("vqa", "--dtype", "int8"), "--dtype must be auto, float32, bfloat16 or float16, got int8"),
        (("vqa", "--split", "nothing"), "cannot be loaded: Unknown split 'nothing'."),
        (("vqa", "--output", "no/such/folder.json"), "must be a file in a folder that exists"),
        (("vqa", "--model", "no-model"), "The model no-model cannot be loaded"),
    ],
)
def test_script_ends_with_one_sentence(run: Run, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    data = save(tmp_path / "data", {"question": ["Is it?"] * 2, "answer": ["yes", "blue"]})
    ended = run(options[0], data, *options[1:])
    assert ended["code"] == 2 and message in ended["said"]
