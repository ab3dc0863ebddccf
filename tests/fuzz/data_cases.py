# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Changed data of the recipes: COCO's JSON, conversations, class names, rows of data sets, label and depth maps.

One thing is changed. What was not touched must come out of the recipe's own rows as before, bit for bit; what was
touched is the same value in another form, is left out, or is refused by its name.
"""

import functools
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data_files
import datasets
import numpy as np
import torch
from campaign import UnmadeError, WrongError, building, scratch
from hypothesis import strategies as st
from json_changes import DEEP, JSON, changed
from PIL import Image

from eupe_hf import EupeImageProcessorPil
from eupe_hf.data.splits import read_names
from eupe_hf.evaluation.vlm import read_question
from eupe_hf.training.conversations import ConversationArguments, ConversationCollator, load_conversations
from eupe_hf.training.tasks import TASKS


_COUNT, _SIDE = 6, 32
_RECIPES = {"classification": "label", "segmentation": "label", "depth": "depth_map", "detection": "objects"}


def prepare() -> None:
    """Before the first case of a process."""
    datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()


@dataclass(frozen=True)
class Data:
    """Data with one change.

    Args:
        what: The kind, one of `CHECKS`.
        value: What is put in place.
        do: "set", "delete", "add" or "twice".
        where: A number from 0 to 1 that picks a place in JSON, or a row.
        task: The recipe.
        one: Whether one row changes, or all.
    """

    what: str
    value: Any = None
    do: str = "set"
    where: float = 0.5
    task: str = "segmentation"
    one: bool = True


def _picture(index: int) -> Image.Image:
    noise = np.random.default_rng(index)
    return Image.fromarray(noise.integers(0, 256, (_SIDE, _SIDE, 3), dtype=np.uint8))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _map(index: int) -> np.ndarray:
    return np.random.default_rng(50 + index).integers(0, 2, (_SIDE, _SIDE)).astype(np.uint8)


# ---- JSON ----


def _written(path: Path, content: Any) -> None:
    content = DEEP if content == "DEEP" else content
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


# ---- the recipes' rows ----


def _samples(task: str, **options: Any) -> dict[str, Any]:
    """What a recipe trains and evaluates on, by the file or the number of the row."""
    arguments = TASKS[task].data_class(size=_SIDE, held_out=0.34, augment=False, **options)
    recipe = TASKS[task](arguments, seed=0)
    found = {}
    for part in recipe.rows(EupeImageProcessorPil(size={"height": _SIDE, "width": _SIDE}), 16):
        for row in range(len(part)):
            found[Path(part.rows.name(row)).name] = part[row]
    names = list(recipe.data.names)
    return {"names": names, "rows": {key: _named(sample, names) for key, sample in found.items()}}


def _named(sample: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Boxes with the names of their classes, whatever their numbers."""
    labels = sample["labels"]
    if isinstance(labels, dict):
        boxes = sorted(
            (names[int(label)], *(round(float(side), 5) for side in box))
            for label, box in zip(labels["class_labels"], labels["boxes"], strict=True)
        )
        return {"pixel_values": sample["pixel_values"], "labels": boxes}
    return {"pixel_values": sample["pixel_values"], "labels": labels}


def _is_same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(-5), b.nan_to_num(-5))
    return bool(a == b)


def _untouched(found: dict[str, Any], base: dict[str, Any], touched: set[str], may_rename: bool = False) -> None:
    """Every row that was not touched is there, with its picture and its label."""
    for name, sample in base["rows"].items():
        if name in touched:
            continue
        if name not in found["rows"]:
            raise WrongError(f"{name} is left out, and was not touched")
        for key, value in sample.items():
            if not may_rename and not _is_same(found["rows"][name][key], value):
                raise WrongError(f"{key} of {name} changed, and was not touched: {found['rows'][name][key]}")


@functools.cache
def _coco() -> dict[str, Any]:
    """Boxes of two of three categories; one image has none."""
    boxes = [[2, 3, 10, 12], [0, 0, 20, 9], [4, 4, 24, 20], [7, 1, 9, 30], [11, 12, 13, 14]]
    return {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 32, "height": 32} for i in range(_COUNT)],
        "annotations": [
            {"id": i, "image_id": 10 + i, "bbox": box, "category_id": (3, 7)[i % 2], "iscrowd": 0, "area": 9.5}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": 3, "name": "disc", "supercategory": "x"}, {"id": 7, "name": "square"}],
    }


def _coco_folder(folder: Path, content: Any) -> None:
    (folder / "images").mkdir(parents=True)
    for i in range(_COUNT):
        _picture(i).save(folder / "images" / f"{i}.png")
    _written(folder / "annotations.json", content)


@functools.cache
def _base(task: str) -> dict[str, Any]:
    """The samples of unchanged data."""
    with scratch() as folder:
        if task == "coco":
            _coco_folder(folder / "data", _coco())
            return _samples("detection", dataset=str(folder / "data"))
        if task in ("segmentation", "depth"):
            _pairs(folder / "data", task)
            options = {"label_column": "label"} if task == "segmentation" else {}
            return _samples(task, dataset=str(folder / "data"), **options)
        _saved_rows(folder / "data", _rows(task.removesuffix(" rows")))
        return _samples(task.removesuffix(" rows"), dataset=str(folder / "data"))


def _check_coco(case: Data, folder: Path, names: list[str]) -> None:
    with building():
        base = _base("coco")
        whole = case.where < 0
        content, path = (case.value, ()) if whole else changed(_coco(), case)
        _coco_folder(folder / "data", content)
    names += ["annotations.json", str(folder / "data"), *(f"{i}.png" for i in range(_COUNT))]
    found = _samples("detection", dataset=str(folder / "data"))
    if not path or path == ("images",) or path == ("annotations",):
        return
    touched = set()
    if path[0] == "images" and len(path) > 1:
        touched = {f"{path[1]}.png"}
    if path[0] == "annotations" and len(path) > 1:
        touched = {f"{path[1]}.png"} | {
            f"{image - 10}.png" for image in [case.value] if isinstance(image, int) and path[-1] == "image_id"
        }
    _untouched(found, base, touched, may_rename=path[0] == "categories")


# ---- conversations ----


@functools.cache
def _talk() -> list[dict[str, Any]]:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "A dog."}]
    records = [
        {"id": "a", "image": "0.png", "conversations": turns}, {"id": "b", "image": "1.png", "conversations": turns},
        {"id": "c", "images": ["2.png"], "messages": messages}, {"id": "d", "messages": messages[1:]},
    ]  # fmt: skip
    return json.loads(json.dumps(records))  # nothing is shared: a change is in one place


def _check_talk(case: Data, folder: Path, names: list[str]) -> None:
    with building():
        canary = folder / "canary.png"
        _picture(9).save(canary)
        processor, records = data_files.processor(), _talk()
        content, path = (case.value, ()) if case.where < 0 else changed(records, case)
        (folder / "talk").mkdir()
        for i in range(3):
            _picture(i).save(folder / "talk" / f"{i}.png")
        content = json.loads(json.dumps(content).replace("CANARY", str(canary))) if _is_json(content) else content
        _written(folder / "talk" / "talk.json", content)
    names += ["talk.json", "row ", "Row "]
    data = load_conversations(
        ConversationArguments(dataset=str(folder / "talk" / "talk.json"), max_length=900), processor
    )
    kept = {data.train.rows[row]: data.train[row] for row in range(len(data.train))}
    ConversationCollator(processor)([data.train[row] for row in range(len(data.train))])
    if not path:
        return
    for number, record in enumerate(records):
        if number != path[0] and (case.do != "delete" or len(path) > 1):
            if number not in kept:
                raise WrongError(f"record {number} is left out, and was not touched")
            said = kept[number][0][-1]["content"][0]["text"]
            if said != (record.get("conversations") or record["messages"])[-1].get("value", "A dog."):
                raise WrongError(f"record {number} says {said!r}")


def _is_json(content: Any) -> bool:
    try:
        return bool(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return False


# ---- names, questions ----


def _check_names(case: Data, folder: Path, names: list[str]) -> None:
    with building():
        _written(folder / "labels.json", case.value)
    names += ["labels.json"]
    found = read_names(str(folder / "labels.json"))
    if not found or not all(isinstance(name, str) for name in found) or len(set(found)) < len(found):
        raise WrongError(f"class names {found!r}")
    given = case.value
    if isinstance(given, dict) and found != [str(given[key]) for key in sorted(given, key=int)]:
        raise WrongError(f"class names {found!r}")
    if isinstance(given, list) and (
        found != [str(name) for name in given] or any(isinstance(name, (list, dict)) for name in given)
    ):
        raise WrongError(f"class names {found!r}")


_QUESTIONS: dict[str, Any] = {
    "yes_no": {"question": "Is it?", "answer": "yes"},
    "multiple_choice": {"question": "Which?", "choices": ["x", "y"], "answer": 1, "hint": "h"},
    "vqa": {"question": "What?", "answer": ["a cat", "cat"]},
}


def _check_question(case: Data, folder: Path, names: list[str]) -> None:
    with building():
        task = sorted(_QUESTIONS)[int(case.where * 300) % 3]
        row = changed(_QUESTIONS[task], case)[0]
    names += ["answer", "option", "question", "choice", "hint"]
    columns = {key: key for key in _QUESTIONS[task]}
    question = read_question(task, row, columns)
    if task == "multiple_choice" and isinstance(row.get("choices"), str):
        raise WrongError(f"choices read letter by letter: {question.options}")
    if (
        question.truth not in (("yes", "no") if task == "yes_no" else question.options or (question.truth,))
        and len(question.truth) != 1
    ):
        raise WrongError(f"the answer is {question.truth!r}")


# ---- rows of a data set ----


def _rows(task: str) -> list[dict[str, Any]]:
    rows = []
    for i in range(_COUNT):
        row: dict[str, Any] = {"image": {"bytes": _png(_picture(i)), "path": f"{i}.png"}}
        if task == "classification":
            row["label"] = i % 2
        elif task == "segmentation":
            row["label"] = {"bytes": _png(Image.fromarray(_map(i))), "path": f"{i}.png"}
        elif task == "depth":
            row["depth_map"] = (_map(i) + 1.5).tolist()
        else:
            row["objects"] = {"bbox": [[2.0, 3.0, 10.0, 12.0]], "category": [i % 2], "iscrowd": [0]}
        rows.append(row)
    return rows


def _saved_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    datasets.Dataset.from_list(rows).save_to_disk(str(folder))


def _check_rows(case: Data, folder: Path, names: list[str]) -> None:
    with building():
        base = _base(f"{case.task} rows")
        rows = _rows(case.task)
        fields = [("image",), ("image", "bytes"), ("image", "path"), (_RECIPES[case.task],)]
        if case.task == "segmentation":
            fields += [("label", "bytes"), ("label", "path")]
        if case.task == "detection":
            fields += [("objects", key) for key in ("bbox", "category", "iscrowd")]
        field = fields[min(int(case.where * len(fields)), len(fields) - 1)]
        for row in rows[2:3] if case.one else rows:
            place = row[field[0]] if len(field) > 1 else row
            if case.do == "delete":
                del place[field[-1]]
            else:
                place[field[-1]] = case.value
        try:
            _saved_rows(folder / "data", rows)
        except Exception as error:  # Arrow has one type for a column: most changes of one row cannot be stored
            raise UnmadeError(str(error)) from error
    names += ["row ", "Row ", "rows ", str(folder / "data"), "column", *(f"{i}.png" for i in range(_COUNT))]
    found = _samples(case.task, dataset=str(folder / "data"))
    if field != ("image", "path") and case.one and field[0] != "label":
        # a row whose picture has no path has its number for a name
        _untouched(found, base, {"2.png"})


# ---- maps ----


def _pairs(folder: Path, task: str) -> None:
    targets = folder / ("masks" if task == "segmentation" else "depth")
    (folder / "images").mkdir(parents=True)
    targets.mkdir()
    for i in range(_COUNT):
        _picture(i).save(folder / "images" / f"{i}.png")
        if task == "segmentation":
            Image.fromarray(_map(i)).save(targets / f"{i}.png")
        else:
            np.save(targets / f"{i}.npy", (_map(i) + 1.5).astype(np.float32))


_INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i4", ">u2")
_OTHERS = (
    "float16", "float64", ">f4", "complex64", "U8", "S4", "M8[D]", "m8[s]", "O", "V3", "f4,i4", "beyond", "rgb",
    "cube", "nan", "negative", "small", "empty", "74 GB", "header", "truncated", "version", "mode 1", "mode P",
    "mode L", "mode I;16", "mode I", "mode F", "mode RGB", "zeros", "not npy", "array of one",
)  # fmt: skip


def _array_file(path: Path, how: str, values: np.ndarray) -> bool:
    """Write a map in another form as NAME.npy or NAME.png; whether the values are the same."""
    if how.startswith("mode"):
        mode = how.split()[1]
        image = Image.fromarray(values.astype(np.uint8))
        if mode == "1":
            image = Image.fromarray(values.astype(bool))
        elif mode == "P":
            image = Image.fromarray(values.astype(np.uint8), "L")
            image.putpalette([9, 9, 9, 200, 100, 0] + [0, 0, 0] * 254)
        elif mode == "I;16":
            image = Image.fromarray(values.astype(np.uint16))
        elif mode == "I":
            image = Image.fromarray(values.astype(np.int32))
        elif mode == "F":
            image = Image.fromarray(values.astype(np.float32))
        elif mode == "RGB":
            image = image.convert("RGB")
        image.save(path.with_suffix(".tiff" if mode == "F" else ".png"))
        return mode not in ("F", "RGB")
    special: dict[str, Callable[[], Any]] = {
        "U8": lambda: values.astype("U8"), "S4": lambda: values.astype("S4"), "O": lambda: values.astype(object),
        "M8[D]": lambda: values.astype("int64").astype("M8[D]"),
        "m8[s]": lambda: values.astype("int64").astype("m8[s]"),
        "V3": lambda: np.zeros(values.shape, "V3"), "f4,i4": lambda: np.zeros(values.shape, "f4,i4"),
        "beyond": lambda: np.where(values == 1, 2**63 + 5, 0).astype(np.uint64),
        "rgb": lambda: np.stack([values] * 3, -1), "cube": lambda: values[None],
        "nan": lambda: np.where(values == 1, np.nan, 1.0), "negative": lambda: -values.astype(np.int16),
        "small": lambda: values[:5, :5], "empty": lambda: values[:0], "array of one": lambda: np.array(3),
    }  # fmt: skip
    array = (
        special[how]() if how in special else values.astype(how) if how in _INTEGERS or how in _OTHERS[:4] else values
    )
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    content = file.getvalue()
    if how == "74 GB":
        content = content.replace(b"(32, 32)", b"(99999, 99999)"[:14]).replace(b"            ", b"      ", 1)
    elif how == "header":
        content = content[:10] + b"{'descr': __import__('os').mkdir('ran'), " + content[40:]
    elif how == "truncated":
        content = content[: len(content) // 2]
    elif how == "version":
        content = content[:6] + struct.pack("BB", 9, 9) + content[8:]
    elif how == "zeros":
        content = bytes(len(content))
    elif how == "not npy":
        content = b"nothing of the kind"
    path.with_suffix(".npy").write_bytes(content)
    return how in _INTEGERS


def _check_maps(case: Data, folder: Path, names: list[str]) -> None:
    with building():
        task = case.task if case.task in ("segmentation", "depth") else "segmentation"
        base = _base(task)
        _pairs(folder / "data", task)
        place = folder / "data" / ("masks" if task == "segmentation" else "depth") / "2"
        for old in place.parent.glob("2.*"):
            old.unlink()
        is_same = _array_file(place, case.value, _map(2))
    names += ["2.npy", "2.png", "2.tiff", "row 2", "Row 2"]
    found = _samples(task, dataset=str(folder / "data"))
    rename = {"2.npy", "2.png", "2.tiff"}
    mine = [key for key in found["rows"] if key in rename]
    _untouched(found, base, rename)
    if task == "segmentation" and is_same:
        if not mine:
            raise WrongError(f"a map of {case.value} is left out")
        if not torch.equal(found["rows"][mine[0]]["labels"], torch.from_numpy(_map(2).astype(np.int64))):
            raise WrongError(f"a map of {case.value} is {found['rows'][mine[0]]['labels'].unique()}")
        if found["rows"][mine[0]]["labels"].dtype != torch.int64:
            raise WrongError("labels of another type")


def _check_files(case: Data, folder: Path, names: list[str]) -> None:
    """Class folders, JSON lines, CSV, parquet and streams, as `data_files` changes them."""
    name, seed = case.value
    with building():
        (place := folder / "data").mkdir()
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        read = data_files.read(name, seed, place)
    names += [str(place), "row ", "Row ", "--", ".png", "names.txt"]
    read()


CHECKS: dict[str, Callable[[Data, Path, list[str]], None]] = {
    "coco": _check_coco, "talk": _check_talk, "names": _check_names, "question": _check_question, "rows": _check_rows,
    "maps": _check_maps, "files": _check_files,
}  # fmt: skip


def check(case: Data, names: list[str]) -> None:
    """Write the data, have the recipe read all of it, and compare."""
    with scratch() as folder:
        CHECKS[case.what](case, folder, names)
        if (folder / "ran").exists() or Path("ran").exists():
            raise WrongError("code of the file ran")


_BYTES: st.SearchStrategy[Any] = st.sampled_from([
    "DEEP", b"\xff\xfe\0", b"", b"{", b"null", b"[1, 2", b'{"a": 1e999}', b"[NaN]", b"\xef\xbb\xbf[]",
])  # fmt: skip
_PATHS: st.SearchStrategy[Any] = st.sampled_from([
    "../canary.png", "CANARY", "file://CANARY", "github://a:b@c/d.png", "http://0.0.0.0:9/x.png", "x.png", "",
    "zip://x::CANARY", "\0", "a" * 5000, "1.png",
])  # fmt: skip
_ANY = JSON | _PATHS
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "coco": _ANY | st.sampled_from([
        [0, 0, 0, 0], [1, 2, 3], [[1, 2, 3, 4]], [0.1, 0.1, 0.5, 0.5], "3", 3.0, None, 99,
    ]),
    "talk": _ANY | st.sampled_from([
        "<image>", "<image><image>", "human", "system", ["0.png", "1.png"], {"bytes": "x"},
    ]),
    "names": JSON | _BYTES | st.dictionaries(st.integers(0, 3).map(str), JSON)
    | st.lists(st.text(max_size=3) | JSON, max_size=4),
    "question": JSON | st.sampled_from(["['x', 'y']", "A", "b", "x", 0, 1, 5, True, "Yes", [], ["a"]]),
    # data sets name their pictures by any path: no canary there
    "rows": JSON | _PATHS.filter(lambda path: "canary" not in path.lower()) | st.sampled_from([
        {"bytes": "x", "path": None}, {"path": 5}, {}, b"", b"x", {"bytes": None, "path": None},
    ]),
    "maps": st.sampled_from(_INTEGERS + _OTHERS),
    "files": st.tuples(st.sampled_from(sorted(data_files.FORMATS)), st.integers(0, 10_000)),
}  # fmt: skip
_DO = st.sampled_from(["set", "set", "set", "delete", "add", "twice"])
CASES: st.SearchStrategy[Data] = st.sampled_from([*_VALUES, "coco", "talk"]).flatmap(
    lambda what: st.builds(
        Data, what=st.just(what), value=_VALUES[what], do=_DO,
        where=st.floats(0, 0.999), task=st.sampled_from(sorted(_RECIPES)), one=st.booleans(),
    )
)  # fmt: skip

KNOWN = [
    *(Data("files", (name, seed)) for name in data_files.FORMATS for seed in range(2)),
    *(Data("coco", "a" * 5000, where=place / 40) for place in (4, 19, 20, 33)), Data("rows", "a" * 5000, where=0.1),
    *(Data("maps", how, task=task) for how in (*_INTEGERS, *_OTHERS) for task in ("segmentation", "depth")),
    *(Data("coco", value, where=-1) for value in ("DEEP", [], {}, None, b"\xff", {"images": []})),
    *(Data("talk", value, where=-1) for value in (
        "DEEP", [], {}, [1], [{}], [{"messages": 3}], [{"messages": [None]}],
    )),
    *(Data("talk", path, where=0.26) for path in ("../canary.png", "CANARY", "file://CANARY", "github://a:b@c/d.png")),
    *(Data("names", value) for value in (["a", ["b"]], [{"a": 1}, "b"], [None, "a"], {"0": ["a"]}, {"x": "a"}, "DEEP",
      b"\xff\xfe", ["a", "a"], 5, [1, 2], {"0": "a", "1": "b"})),
    *(Data("question", "['x', 'y']", where=where) for where in (0.4, 0.41, 0.42, 0.25, 0.27)),
    *(Data("rows", value, task=task, where=where, one=one) for task in sorted(_RECIPES) for where in (0.1, 0.9)
      for one in (False, True) for value in ({"bytes": "x"}, {"path": 5}, {}, None, "x", 3)),
]  # fmt: skip
