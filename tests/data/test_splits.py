# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets divided into a part to train on and a part to evaluate on, and the names of their classes."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from eupe_hf.data.options import DataArguments
from eupe_hf.data.rows import Rows
from eupe_hf.data.splits import given_names, hold_out, load_splits, names_by_label, read_names
from eupe_hf.data.streams import Stream


COLUMNS = {"image": "image", "label": "label"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tables(root: Path, **labels: list[int]) -> DataArguments:
    """A folder with a parquet file per split, whose images show their number as a grey."""
    root.mkdir()
    for split, values in labels.items():
        images = [Image.new("L", (4, 4), i) for i in range(len(values))]
        data = datasets.Dataset.from_dict({"image": images, "label": values}).cast_column("image", datasets.Image())
        data.to_parquet(root / f"{split}.parquet")
    return DataArguments(str(root), held_out=0.25)


def numbers(rows: Rows) -> list[int]:
    return [image.getpixel((0, 0)) for image, _ in rows]


def test_held_out_share_is_of_each_class_and_repeats() -> None:
    labels = [0] * 60 + [1] * 30 + [2] * 10
    held = hold_out(labels, 100, 0.2, seed=0)
    assert [int(held[start:stop].sum()) for start, stop in ((0, 60), (60, 90), (90, 100))] == [12, 6, 2]
    assert (held == hold_out(labels, 100, 0.2, seed=0)).all()
    assert (held != hold_out(labels, 100, 0.2, seed=1)).any()
    assert hold_out(None, 10, 0.3, seed=0).sum() == 3


def test_label_files_are_lists_objects_or_lines(tmp_path: Path) -> None:
    file = tmp_path / "names"
    for text in ('["a", "b"]', '{"1": "b", "0": "a"}', "a\n\n b \n"):
        file.write_text(text)
        assert read_names(str(file)) == ["a", "b"]
    for text, words in (
        ('{"0": "a", "2": "b"}', "without a gap"), ("a\na", "each once"), ("", "each once"),
        ('["a", ["b"]]', r"the name 1 is \['b'\]"), ('["a", {}]', r"the name 1 is \{\}"),
        ('["a", null]', "the name 1 is None"),
        ('{"id2label": {"0": "a"}}', "ids in .* must go from 0 to 0"), ('["a", 1, "1"]', "each once"),
        ("[", "not a JSON file"),
        ("[" * 100_000, "nested too deep"), ("{}", "each once"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_names(str(file))
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match=r"--labels .*names is not text in UTF-8"):
        read_names(str(file))
    file.write_bytes(b"\xef\xbb\xbfa\nb")
    assert read_names(str(file)) == ["a", "b"]


def test_validation_split_is_the_evaluation_part(tmp_path: Path) -> None:
    arguments = tables(tmp_path / "data", train=[0] * 6, validation=[0] * 2)
    train, evaluation, split = load_splits(arguments, COLUMNS, seed=0)
    assert (len(train), len(evaluation), split) == (6, 2, "validation")
    arguments.eval_split = "train"
    assert numbers(load_splits(arguments, COLUMNS, seed=0)[1]) == [0, 1, 2, 3, 4, 5]
    # a split is never its own evaluation unless you ask for it
    arguments.eval_split, arguments.train_split, arguments.held_out = None, "validation", 0.5
    train, evaluation, split = load_splits(arguments, COLUMNS, seed=0)
    assert sorted(numbers(train) + numbers(evaluation)) == [0, 1] and split == "0.5 of validation"


def test_share_is_held_out_of_each_class(tmp_path: Path) -> None:
    arguments = tables(tmp_path / "data", train=[0] * 12 + [1] * 4)
    train, evaluation, split = load_splits(arguments, COLUMNS, seed=0, classes=True)
    assert split == "0.25 of train" and sorted(numbers(train) + numbers(evaluation)) == list(range(16))
    assert sum(number < 12 for number in numbers(evaluation)) == 3 and len(evaluation) == 4
    assert numbers(load_splits(arguments, COLUMNS, seed=0, classes=True)[1]) == numbers(evaluation)
    assert numbers(load_splits(arguments, COLUMNS, seed=1, classes=True)[1]) != numbers(evaluation)
    arguments.held_out = 0.01
    with pytest.raises(ValueError, match=r"'train' has 16 rows, too few to hold out a share of 0\.01: raise"):
        load_splits(arguments, COLUMNS, seed=0)


def test_limit_takes_evenly_spaced_rows(tmp_path: Path) -> None:
    arguments = tables(tmp_path / "data", train=[0] * 10, validation=[0] * 3)
    arguments.limit = 4
    train, evaluation, _ = load_splits(arguments, COLUMNS, seed=0)
    assert numbers(train) == [0, 2, 5, 7] and numbers(evaluation) == [0, 1, 2]


def test_stream_has_its_evaluation_rows_in_memory(tmp_path: Path) -> None:
    arguments = tables(tmp_path / "data", train=[0] * 5, validation=[0] * 4)
    arguments.streaming, arguments.eval_rows, arguments.strict, arguments.shuffle_buffer = True, 3, True, 7
    train, evaluation, split = load_splits(arguments, COLUMNS, seed=3)
    assert isinstance(train, Stream) and (train.seed, train.buffer, train.strict) == (3, 7, True)
    assert isinstance(evaluation, Rows) and split == "3 rows of validation"
    assert len(set(numbers(evaluation))) == 3


@pytest.mark.parametrize(
    ("given", "occur", "expected"),
    [
        (["cat", "dog"], {1}, {0: "cat", 1: "dog"}),
        (["dog", "cat"], {"cat"}, {"dog": "dog", "cat": "cat"}),
        (None, {7, 3}, {3: "3", 7: "7"}),
        (None, {"b", "a"}, {"a": "a", "b": "b"}),
    ],
)
def test_labels_count_names_or_are_names(given: Any, occur: set[Any], expected: dict[Any, str]) -> None:
    found = names_by_label(given, occur, "d")
    assert list(found.items()) == list(expected.items())


def test_names_of_the_file_come_before_those_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    feature = datasets.ClassLabel(names=["x", "y"])
    assert given_names(DataArguments("d"), feature) == ["x", "y"] and given_names(DataArguments("d")) is None
    assert given_names(DataArguments("d", labels=str(tmp_path / "names.txt")), feature) == ["a", "b"]
    with pytest.raises(ValueError, match="The stream d does not name its classes: name them with --labels FILE"):
        given_names(DataArguments("d", streaming=True))
    with pytest.raises(ValueError, match=r"--labels .*nowhere is not a file\."):
        read_names(str(tmp_path / "nowhere"))


def test_held_out_rows_without_classes_are_spread() -> None:
    held = hold_out(None, 1000, 0.1, seed=0)
    assert held.sum() == 100 and np.flatnonzero(held).std() > 200
