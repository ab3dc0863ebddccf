# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Data sets of every format that recipes and evaluations read, with one or two changes by a seed.

Each is written whole, changed, and read as the recipe does: loading and checks first, then every row as the Trainer
takes it. What the checks let pass must be fit to train on.
"""

import collections
import copy
import functools
import io
import json
import random
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from campaign import UnmadeError
from PIL import Image
from vlm_common import make_vlm


SIDE = (12, 8)  # width and height of the pictures
TASKS = Path(__file__).resolve().parents[1]
# ---- values ----


def deep(depth: int) -> Any:
    """A list in a list in a list ..."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 99, 1.5, -0.5, 1e30, float("nan"), float("inf"), 2**40, 2**70,
    "", " ", "x", "1", "cup", "0.png", "../0.png", "/etc/passwd", "a\nb", "\u00e9\u4e2d\U0001f600", "\x00", "<image>",
    "[1, 2, 3, 4]", "2020-01-01", [], {}, [None], [1], ["x"], [[1]], [[], []], [1, 2, 3, 4], [[1, 2, 3, 4]],
    [1, 2, None, 4], [1, 2, "3", 4], deep(40), {"a": 1}, {"bytes": "x"}, {"path": 5}, {"bytes": None, "path": None},
    {"path": "0.png"}, {"bytes": [1, 2], "path": "0.png"},
)  # fmt: skip


def paths(value: Any, found: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of nested JSON stand."""
    if found:
        yield found
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from paths(item, (*found, key))


def mutate(content: Any, noise: random.Random) -> tuple[Any, str]:
    """Another value, none, twice, in a list, as text: in one place of nested JSON."""
    content = copy.deepcopy(content)
    # a path by its shape first: else rows crowd out what stands above them
    by_shape = collections.defaultdict(list)
    for path in paths(content):
        by_shape[tuple("#" if isinstance(key, int) else key for key in path)].append(path)
    if not by_shape:
        return content, "nothing to change"
    path = noise.choice(by_shape[noise.choice(sorted(by_shape, key=str))])
    parent = functools.reduce(lambda value, key: value[key], path[:-1], content)
    key, old = path[-1], functools.reduce(lambda value, key: value[key], path, content)
    kind = noise.choice(["value"] * 6 + ["delete", "twice", "listed", "text", "unlisted"])
    where = ".".join(map(str, path))
    if kind == "delete":
        del parent[key]
    elif kind == "twice" and isinstance(parent, list):
        parent.append(copy.deepcopy(old))
    elif kind == "listed":
        parent[key] = [old]
    elif kind == "text":
        parent[key] = str(old)
    elif kind == "unlisted" and isinstance(old, list) and old:
        parent[key] = old[0]
    else:
        kind = parent[key] = copy.deepcopy(noise.choice(VALUES))
    return content, f"{where}: {str(kind)[:60]}"


def damage(data: bytes, noise: random.Random) -> tuple[bytes, str]:
    """Bytes that are cut, replaced, or another file altogether."""
    kind = noise.choice(("cut", "empty", "flip", "text", "nested", "latin", "zeros", "bom"))
    if kind == "cut":
        return data[: noise.randrange(len(data) or 1)], kind
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(noise.choice((1, 3, 30))):
            changed[noise.randrange(len(changed))] = noise.randrange(256)
        return bytes(changed), kind
    other = {
        "empty": b"",
        "text": b"no such thing\n1,2\n",
        "nested": b"[" * 100_000,
        "latin": data.replace(b"c", b"\xe9"),
    }
    return {**other, "zeros": bytes(len(data)), "bom": b"\xef\xbb\xbf" + data}[kind], kind


def text_of(content: Any, noise: random.Random) -> tuple[bytes, str]:
    """JSON, now and then damaged as text."""
    data = json.dumps(content).encode()
    return damage(data, noise) if noise.random() < 0.12 else (data, "")


# ---- pictures and arrays ----


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE[1], SIDE[0], 3)).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# ---- formats ----


def of_rows(rows: list[dict[str, Any]], folder: Path, noise: random.Random, kind: str, features: Any = None) -> str:
    """Write rows, one of which may be changed, as JSON lines, as parquet or as `save_to_disk` does."""
    import datasets

    changed, told = rows, []
    for _ in range(noise.choice((1, 1, 2))):
        changed, one = mutate(changed, noise)
        told.append(one)
    if kind == "jsonl":
        lines = [text_of(row, noise) if noise.random() < 0.05 else (json.dumps(row).encode(), "") for row in changed]
        (folder / "train.jsonl").write_bytes(b"\n".join(line for line, _ in lines))
        return "; ".join([*told, *(words for _, words in lines if words)])
    rows = [row if isinstance(row, dict) else {"image": None} for row in changed]
    try:
        names = list(dict.fromkeys(name for row in rows for name in row))
        data = datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except Exception as error:
        raise UnmadeError(str(error)) from error
    data.to_parquet(folder / "train.parquet")
    return "; ".join(told)


def write_class_folder(folder: Path, noise: random.Random) -> str:
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for i in range(3):
            picture(i).save(folder / "train" / name / f"{i}.png")
    target = folder / "train" / "cat" / "1.png"
    kind = noise.choice(("damage", "metadata", "empty folder", "loose", "names", "folder"))
    if kind == "damage":
        data, kind = damage(target.read_bytes(), noise)
        target.write_bytes(data)
    elif kind == "metadata":
        rows, kind = mutate(
            [{"file_name": f"{name}/{i}.png", "label": 1} for name in ("cat", "dog") for i in range(3)], noise
        )
        (folder / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    elif kind == "empty folder":
        (folder / "train" / "emu").mkdir()
    elif kind == "loose":
        picture().save(folder / "train" / "loose.png")
    elif kind == "names":
        (folder / "train" / "cat").rename(
            folder / "train" / noise.choice(("a\nb", "\u4e2d", "label", " ", "-", "[x]", "*", "a#b", "x%20"))
        )
    else:
        (folder / "train" / "cat" / "2.png").unlink()
        (folder / "train" / "cat" / "2.png").mkdir()
    return kind


def image_cell(i: int, kind: str) -> Any:
    return f"{i}.png" if kind == "jsonl" else {"bytes": png(picture(i)), "path": f"{i}.png"}


def write_pictures(folder: Path, count: int = 6) -> None:
    for i in range(count):
        picture(i).save(folder / f"{i}.png")


def table(kind: str, label: Callable[[int], Any], column: str) -> Callable[[Path, random.Random], str]:
    def write(folder: Path, noise: random.Random) -> str:
        if kind == "jsonl":
            write_pictures(folder)
        paths = {i: str(folder / f"{i}.png") for i in range(6)}
        rows = [{"image": paths[i] if kind == "jsonl" else image_cell(i, kind), column: label(i)} for i in range(6)]
        return of_rows(rows, folder, noise, kind)

    return write


def write_csv(folder: Path, noise: random.Random) -> str:
    write_pictures(folder)
    rows = [["image", "label"], *([str(folder / f"{i}.png"), str(i % 2)] for i in range(6))]
    row, column = noise.randrange(7), noise.randrange(2)
    kind = noise.choice(("value", "value", "value", "short", "long", "damage"))
    if kind == "short":
        del rows[row][column]
    elif kind == "long":
        rows[row].append("x")
    else:
        rows[row][column] = str(noise.choice(VALUES))
    data, words = "\n".join(map(",".join, rows)).encode(), f"{kind} {row} {column} {rows[row]}"
    if kind == "damage":
        data, words = damage(data, noise)
    (folder / "train.csv").write_bytes(data)
    return words


def objects(i: int) -> Any:
    return {"bbox": [[1, 2, 5, 4], [0, 0, 3, 3]], "category": [i % 2, 1], "iscrowd": [0, 0]}


def object_list(i: int) -> Any:
    return [{"bbox": [1, 2, 5, 4], "category_id": i % 2}, {"bbox": [0.5, 0, 3, 3], "category_id": 1}]


def write_names(folder: Path, noise: random.Random) -> str:
    write_pictures(folder)
    rows = [{"image": str(folder / f"{i}.png"), "label": i % 2} for i in range(6)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content, words = mutate(
        noise.choice((["cat", "dog"], {"0": "cat", "1": "dog"}, {"id2label": {"0": "cat"}})), noise
    )
    data, more = text_of(content, noise)
    if noise.random() < 0.3:
        data, more = (
            noise.choice((b"cat\ndog\n", b"cat\ncat", b"cat", b"0,cat\n1,dog", b"{'0': 'cat'}", b'"cat"', b"\n")),
            "lines",
        )
    (folder / "names.txt").write_bytes(data)
    return f"{words} {more}"


def write_conversations(form: str, kind: str) -> Callable[[Path, random.Random], str]:
    def write(folder: Path, noise: random.Random) -> str:
        write_pictures(folder, 3)
        rows: list[dict[str, Any]] = []
        for i in range(3):
            image = str(folder / f"{i}.png")
            if form == "llava":
                turns = [{"from": "human", "value": "<image>\nwhat is it ?"}, {"from": "gpt", "value": "red squares"}]
                rows.append({"id": str(i), "image": f"{i}.png" if kind == "json" else image, "conversations": turns})
                continue
            user = [{"type": "image"}, {"type": "text", "text": "what is it ?"}]
            said = [{"type": "text", "text": "red"}] if form == "parts" else "red"
            asked = user if form == "parts" else "<image>what is it ?"
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
            rows.append({"messages": messages, "images": [image]})
        if kind != "json":
            return of_rows(rows, folder, noise, kind)
        content, told = rows, []
        for _ in range(noise.choice((1, 1, 2))):
            content, words = mutate(content, noise)
            told.append(words)
        data, words = text_of(content, noise)
        (folder / "data.json").write_bytes(data)
        return "; ".join([*told, words])

    return write


def write_questions(task: str, kind: str) -> Callable[[Path, random.Random], str]:
    def write(folder: Path, noise: random.Random) -> str:
        write_pictures(folder, 3)
        rows = []
        for i in range(3):
            row: dict[str, Any] = {"question": "what is it ?", "image": str(folder / f"{i}.png"), "answer": "yes"}
            if task == "multiple_choice":
                row |= {"choices": ["cup", "box"], "answer": i % 2, "hint": "x"}
            if task == "vqa":
                row["answer"] = ["a cup", "cup"]
            rows.append(row)
        return of_rows(rows, folder, noise, kind)

    return write


# ---- reading ----


def _options(folder: Path, **options: Any) -> dict[str, Any]:
    return {"dataset": str(folder), "size": 32, "augment": False, "held_out": 0.34, **options}


class AfterChecksError(Exception):
    """What failed after the checks had passed."""


def _train(name: str, **options: Any) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from eupe_hf import EupeImageProcessorPil
        from eupe_hf.training.tasks import TASKS

        task_class = TASKS[name]
        own = {key: str(folder / value) if key == "labels" else value for key, value in options.items()}
        task = task_class(task_class.data_class(**_options(folder, **own)), 0)
        try:
            train, evaluation = task.rows(EupeImageProcessorPil(size={"height": 32, "width": 32}), 16)
            for part in (train, evaluation):
                found = (
                    [part.make(*next_) for next_ in _some(part)]
                    if own.get("streaming") and part is train
                    else list(part)
                )
                _assert_trainable(found, len(task.data.names))
                task.collate(found)
            task.summary()
        except Exception as error:
            raise AfterChecksError from error

    return read


def _some(part: Any) -> list[Any]:
    stream = iter(part.rows)
    return [next(stream) for _ in range(8)]


def _assert_trainable(rows: list[Any], classes: int) -> None:
    assert rows
    for row in rows:
        pixels, labels = row["pixel_values"], row["labels"]
        assert pixels.shape == (3, 32, 32) and pixels.isfinite().all()
        if isinstance(labels, dict):
            boxes, ids = labels["boxes"], labels["class_labels"]
            assert boxes.shape == (len(ids), 4) and boxes.isfinite().all() and ((boxes >= 0) & (boxes <= 1)).all()
            assert ids.dtype == torch.int64 and ((ids >= 0) & (ids < classes)).all()
        elif labels.is_floating_point():
            assert labels.shape == (32, 32)
        else:
            assert labels.dtype == torch.int64 and labels.shape in ((), (32, 32))
            assert ((labels == 255) | ((labels >= 0) & (labels < classes))).all()


@functools.cache
def processor() -> Any:
    """Of a tiny VLM."""
    return make_vlm("vit", image_size=32)[1]


def _converse(file: str = "") -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from eupe_hf.training.conversations import ConversationArguments, ConversationCollator, load_conversations

        data = load_conversations(ConversationArguments(str(folder / file) if file else str(folder)), processor())
        try:
            assert len(data.train) == len(data.lengths)
            collate = ConversationCollator(processor())
            for i in range(len(data.train)):
                batch = collate([data.train[i]])
                assert (batch["labels"] != -100).any() and batch["input_ids"].shape[1] == data.lengths[i]
            data.summary()
        except Exception as error:
            raise AfterChecksError from error

    return read


@functools.cache
def _evaluate_vlm() -> dict[str, Any]:
    return runpy.run_path(str(TASKS.parent / "examples" / "evaluate_vlm.py"))


def _ask(task: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        from eupe_hf.data.rows import Rows

        script = _evaluate_vlm()
        words = ["--model", "x", "--task", task, "--dataset", str(folder), "--split", "train"]
        data, questions = script["load_questions"](script["parse"](words))
        rows = Rows(data, {"image": "image"})
        for question, row in zip(questions, data, strict=True):
            assert isinstance(question.prompt, str) and question.truth
            del row
        for i in range(len(rows)):
            if data[i]["image"] is not None:
                rows[i]

    return read


@dataclass(frozen=True)
class Format:
    """How a data set is written, mutated, and how it is read."""

    write: Callable[[Path, random.Random], str]
    read: Callable[[Path], None]


def _map(i: int) -> Any:
    return [[(i + x) % 2 for x in range(SIDE[0])] for _ in range(SIDE[1])]


def _mask(i: int) -> Any:
    return {"bytes": png(Image.new("L", SIDE, i % 2)), "path": None}


def _metres(i: int) -> Any:
    return [[1.5 + i for _ in range(SIDE[0])] for _ in range(SIDE[1])]


def _stream(column: str) -> dict[str, Any]:
    return {"streaming": True, "eval_split": "train", "label_column": column, "labels": "names.txt"}


def streamed(write: Callable[[Path, random.Random], str]) -> Callable[[Path, random.Random], str]:
    def also(folder: Path, noise: random.Random) -> str:
        (folder / "names.txt").write_text("cup\nbox\n")
        return write(folder, noise)

    return also


FORMATS: dict[str, Format] = {
    "class_folder": Format(write_class_folder, _train("classification")),
    "class_jsonl": Format(table("jsonl", lambda i: i % 2, "label"), _train("classification")),
    "class_names_jsonl": Format(table("jsonl", lambda i: "ab"[i % 2], "label"), _train("classification")),
    "class_parquet": Format(table("parquet", lambda i: i % 2, "label"), _train("classification")),
    "class_csv": Format(write_csv, _train("classification")),
    "class_stream": Format(
        streamed(table("jsonl", lambda i: i % 2, "label")), _train("classification", **_stream("label"))
    ),
    "names": Format(write_names, _train("classification", labels="names.txt")),
    "mask_jsonl": Format(table("jsonl", _map, "label"), _train("segmentation")),
    "mask_parquet": Format(table("parquet", _mask, "label"), _train("segmentation")),
    "depth_jsonl": Format(table("jsonl", _metres, "depth_map"), _train("depth")),
    "objects_jsonl": Format(table("jsonl", objects, "objects"), _train("detection")),
    "objects_parquet": Format(table("parquet", objects, "objects"), _train("detection")),
    "object_list_jsonl": Format(table("jsonl", object_list, "objects"), _train("detection")),
    "objects_stream": Format(streamed(table("jsonl", objects, "objects")), _train("detection", **_stream("objects"))),
    "llava_json": Format(write_conversations("llava", "json"), _converse("data.json")),
    "messages_json": Format(write_conversations("text", "json"), _converse("data.json")),
    "parts_json": Format(write_conversations("parts", "json"), _converse("data.json")),
    "messages_jsonl": Format(write_conversations("text", "jsonl"), _converse()),
    "parts_parquet": Format(write_conversations("parts", "parquet"), _converse()),
    "llava_parquet": Format(write_conversations("llava", "parquet"), _converse()),
    "yes_no_jsonl": Format(write_questions("yes_no", "jsonl"), _ask("yes_no")),
    "choices_jsonl": Format(write_questions("multiple_choice", "jsonl"), _ask("multiple_choice")),
    "choices_parquet": Format(write_questions("multiple_choice", "parquet"), _ask("multiple_choice")),
    "vqa_jsonl": Format(write_questions("vqa", "jsonl"), _ask("vqa")),
}  # fmt: skip


def read(name: str, seed: int, folder: Path) -> Callable[[], None]:
    """Write a changed data set into an empty folder; what reads it."""
    form = FORMATS[name]
    form.write(folder, random.Random(f"{name} {seed}"))
    return functools.partial(form.read, folder)
