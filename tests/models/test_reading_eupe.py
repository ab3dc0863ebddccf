# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""JSON files and safetensors headers from outside: what they hold, or one sentence with the file and the field."""

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from eupe_hf.models.reading_eupe import (
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    CheckpointError,
    StoredTensor,
    check_path,
    file_beside,
    get_field,
    read_header,
    read_json,
)


def nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


def test_object_is_read_as_it_is(tmp_path: Path) -> None:
    values = {"model_type": "eupe", "depths": [3, 3, 9, 3], "id2label": {"0": "Käse"}, "eps": 1e-5, "none": None}
    (tmp_path / "config.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    assert read_json(tmp_path / "config.json") == values
    (tmp_path / "deep.json").write_text(nested(MAX_DEPTH))
    assert read_json(tmp_path / "deep.json")["a"]


REFUSED = {
    "empty": (b"", "is not valid JSON"),
    "cut short": (b'{"a": [1, 2', "is not valid JSON"),
    "not UTF-8": (b'{"a": "\xff\xfe"}', "is not valid JSON"),
    "list": (b"[1]", r"must hold a JSON object, got a list"),
    "number": (b"7", r"must hold a JSON object, got a whole number \('7'\)"),
    "null": (b"null", "must hold a JSON object, got null"),
    "a name twice": (b'{"a": 1, "a": 2}', "'a' stands in it twice"),
    "a name twice, below": (b'{"x": [{"b": 1, "b": 1}]}', "'b' stands in it twice"),
    "a little too deep": (nested(MAX_DEPTH + 1).encode(), f"too deep: at most {MAX_DEPTH} levels"),
    "a thousand deep": (b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b"}", f"too deep: at most {MAX_DEPTH} levels"),
    "a million deep": (b"[" * 1_000_000, f"too deep: at most {MAX_DEPTH} levels"),
    "a number of many digits": (b'{"a": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_other_content_is_refused_by_the_name_of_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 400


def test_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte, of which nothing is on the disk
    with pytest.raises(CheckpointError, match=r"1,099,511,627,776 bytes; at most 100 are read"):
        read_json(tmp_path / "large.json", max_bytes=100)


@pytest.mark.skipif(sys.platform == "win32", reason="has no pipes in its file system")
@pytest.mark.parametrize("read", [read_json, read_header])
def test_pipe_and_device_are_refused_without_waiting(read: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            read(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("missing", "loop", ""):
        with pytest.raises(OSError):
            read(tmp_path / name)


# ---- fields ----

FIELDS = [
    ("text", str), (7, int), (7, float), (0.5, float), (True, bool), ({"a": 1}, dict), ([1, "a"], list),
    (["a"], list[str]), ([], list[str]), ({"a": "b"}, dict[str, str]), ({}, dict[str, str]),
    ([[1.5, 2]], list[list[float]]),
]  # fmt: skip
WRONG = [
    (7, str, "must be text, got a whole number ('7')"),
    (True, int, "must be a whole number, got true or false ('True')"),
    (1.0, int, "must be a whole number, got a number ('1.0')"),
    ("1", float, "must be a number, got text ('1')"),
    (1, bool, "must be true or false, got a whole number ('1')"),
    ([], dict, "must be an object, got a list"),
    ({}, list, "must be a list, got an object"),
    (["a", 1], list[str], "must be a list whose entries are text, got a list with entries of other types"),
    ({"a": None}, dict[str, str], "must be an object whose entries are text, got an object with entries"),
    ([True], list[int], "must be a list whose entries are a whole number"),
    ("ab", list[str], "must be a list whose entries are text, got text ('ab')"),
]


@pytest.mark.parametrize(("value", "kind"), FIELDS)
def test_field_of_the_right_type_is_returned(value: Any, kind: Any) -> None:
    assert get_field({"a": value}, "a", kind, "x.json", required=True) == value


@pytest.mark.parametrize(("value", "kind", "message"), WRONG)
def test_field_of_another_type_is_refused_by_file_and_name(value: Any, kind: Any, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        get_field({"a": value}, "a", kind, "x.json")
    assert str(caught.value).startswith(f"x.json: 'a' {message}")


def test_missing_field_is_none_unless_required() -> None:
    assert get_field({}, "a", str, "x.json") is None
    assert get_field({"a": None}, "a", str, "x.json") is None
    for values, found in (({}, "nothing"), ({"a": None}, "null")):
        with pytest.raises(CheckpointError, match=f"x.json: 'a' must be text, got {found}"):
            get_field(values, "a", str, "x.json", required=True)


# ---- names and paths ----


def test_name_of_a_file_leads_to_the_folder_it_was_read_in(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    assert file_beside("model-00001-of-00002.safetensors", index) == tmp_path / "model-00001-of-00002.safetensors"
    for name in ("../other.safetensors", "/etc/passwd", "sub/x", "..", ".", "", "..\\x", "C:\\x", "C:x", "a\0b"):
        with pytest.raises(CheckpointError, match=r"index\.json: .*is not the name of a file beside it"):
            file_beside(name, index)


def test_path_that_is_not_utf_8_is_refused_in_ascii(tmp_path: Path) -> None:
    assert check_path(tmp_path / "Käse") == tmp_path / "Käse"
    with pytest.raises(CheckpointError, match=r"mod\\xff.* cannot be used: its bytes are not UTF-8") as caught:
        check_path(os.fsdecode(b"/tmp/mod\xff"))
    assert str(caught.value).isascii()


# ---- headers ----


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64), "c": torch.zeros(0, 5).bfloat16()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert read_header(tmp_path / "model.safetensors") == {
        "a": StoredTensor("F32", (2, 3)),
        "b": StoredTensor("I64", ()),
        "c": StoredTensor("BF16", (0, 5)),
    }


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BROKEN = {
    "empty": (b"", "truncated or damaged"),
    "seven bytes": (b"1234567", "truncated or damaged"),
    "longer than the file": (safetensors({}, length=1 << 60), "truncated or damaged"),
    "no JSON": (safetensors(b"{{{{"), "is not valid JSON"),
    "a list": (safetensors([]), "must hold a JSON object"),
    "an entry of another type": (safetensors({"a": [1]}), "'a' must be an object, got a list"),
    "no shape": (safetensors({"a": {**ENTRY, "shape": None}}, b"1234"), "'shape' must be a list whose entries are"),
    "a shape of text": (safetensors({"a": {**ENTRY, "shape": ["1"]}}, b"1234"), "'shape' must be a list"),
    "a number as dtype": (safetensors({"a": {**ENTRY, "dtype": 3}}, b"1234"), "'dtype' must be text"),
    "a byte too few": (safetensors({"a": ENTRY}, b"123"), "truncated or damaged: download it again"),
    "a byte too many": (safetensors({"a": ENTRY}, b"12345"), "truncated or damaged: download it again"),
    "a name twice": (safetensors(b'{"a": 1, "a": 2}'), "'a' stands in it twice"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_header_is_refused_by_the_name_of_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(file)
    assert str(file) in str(caught.value)


def test_header_of_too_many_tensors_is_refused_at_once(tmp_path: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})
    header = "{" + ",".join(f'"{i}":{entry}' for i in range(80_000)) + "}"
    (tmp_path / "model.safetensors").write_bytes(safetensors(header.encode()))
    start = time.process_time()
    with pytest.raises(CheckpointError, match=f"at most {MAX_HEADER_BYTES:,} are read"):
        read_header(tmp_path / "model.safetensors")
    assert time.process_time() - start < 0.1
