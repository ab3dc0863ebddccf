# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations to train on: one batch whatever the format, labels on answers alone, faults found before the start."""

import json
import os
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from drawn_counts import QUESTION, save_parts, save_pictures
from odd_pictures import BAD, GOOD
from PIL import Image

from eupe_hf import EupeLlavaForConditionalGeneration, EupeLlavaProcessor
from eupe_hf.training import conversations as training_conversations
from eupe_hf.training.conversations import (
    ConversationArguments,
    ConversationCollator,
    Conversations,
    load_conversations,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with conversations, and the processor of a VLM."""
    folder = tmp_path_factory.mktemp("conversations")
    save_parts(folder)
    save_pictures(folder / "pictures", 8, seed=0)
    _, processor = EupeLlavaForConditionalGeneration.from_vision_text(folder / "tower", folder / "text", image_size=64)
    processor.save_pretrained(folder / "processor")
    return folder


@pytest.fixture
def processor(folder: Path) -> EupeLlavaProcessor:
    return EupeLlavaProcessor.from_pretrained(folder / "processor")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def turn(speaker: str, value: str) -> dict[str, str]:
    return {"from": speaker, "value": value}


def asked(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"conversations": [turn("human", question), turn("gpt", answer)], **fields}


def written(path: Path, records: Any) -> str:
    path.write_text(json.dumps(records))
    return str(path)


def text(processor: EupeLlavaProcessor, ids: torch.Tensor) -> str:
    return processor.decode(ids).replace(" ", "")


# ---- batches ----


def test_labels_are_on_answers_and_the_tokens_that_end_them(folder: Path, processor: EupeLlavaProcessor) -> None:
    turns = [turn("system", "what is it"), turn("human", f"<image>\n{QUESTION}"), turn("gpt", "2 red squares")]
    turns += [turn("human", "and blue ?"), turn("gpt", "3")]
    rows = Conversations([{"conversations": turns, "image": "0.png"}, asked("what ?", "4")], folder / "pictures")
    batch = ConversationCollator(processor)([rows[0], rows[1]])
    labels, ids = batch["labels"], batch["input_ids"]
    assert text(processor, ids[0][labels[0] != -100]) == "2redsquares</s>3</s>"
    assert text(processor, ids[1][labels[1] != -100]) == "4</s>"
    assert torch.equal(labels[labels != -100], ids[labels != -100]) and batch["pixel_values"].shape == (1, 3, 64, 64)
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist(), reverse=True)
    assert (labels[batch["attention_mask"] == 0] == -100).all()


def same_conversations(folder: Path, form: str, tmp_path: Path) -> str:
    """The pictures' conversations in another format."""
    count = 8
    images = [str(folder / "pictures" / f"{i}.png") for i in range(count)]
    user = {"strings": f"<image>\n{QUESTION}", "parts": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    rows = []
    for i in range(count):
        if form == "llava columns":
            rows.append({**asked(f"<image>\n{QUESTION}", str(i % 5)), "image": images[i]})
        else:
            answer = [{"type": "text", "text": str(i % 5)}] if form == "parts" else str(i % 5)
            messages = [{"role": "user", "content": user[form]}, {"role": "assistant", "content": answer}]
            rows.append({"messages": messages, "images": [images[i]]})
    data = datasets.Dataset.from_list(rows)
    if form == "llava columns":
        data = data.cast_column("image", datasets.Image())
    elif form == "strings":
        data = data.cast_column("images", datasets.List(datasets.Image()))
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "data")
    return str(tmp_path / "data")


@pytest.mark.parametrize("form", ["strings", "parts", "llava columns"])
def test_all_formats_give_the_same_batches(
    folder: Path, processor: EupeLlavaProcessor, tmp_path: Path, form: str
) -> None:
    llava = load_conversations(ConversationArguments(str(folder / "pictures" / "conversations.json")), processor)
    arguments = ConversationArguments(same_conversations(folder, form, tmp_path))
    if form == "parts":  # holds absolute paths
        with pytest.raises(ValueError, match=r"None of 8 rows .* is not a file below"):
            load_conversations(arguments, processor)
        arguments.image_folder = str(folder)
    other = load_conversations(arguments, processor)
    assert other.lengths == llava.lengths and len(other.train) == 8
    collate = ConversationCollator(processor)
    expected, found = (collate([data.train[i] for i in range(8)]) for data in (llava, other))
    assert found.keys() == expected.keys() == {"input_ids", "attention_mask", "pixel_values", "labels"}
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_places_of_images_are_those_of_llava() -> None:
    said = [f"{QUESTION}\n<image>", "<image>\n<image>\nwhat ?", "what is <image> and <image> ?"]
    rows = Conversations([asked(value, "2", image=["a.png"] * value.count("<image>")) for value in said], decode=False)
    kinds = [[part.get("text", "IMAGE") for part in rows[i][0][0]["content"]] for i in range(3)]
    assert kinds == [["IMAGE", QUESTION], ["IMAGE", "IMAGE", "what ?"], ["what is", "IMAGE", "and", "IMAGE", "?"]]


@pytest.mark.parametrize(
    "name", ["../secret.png", "{root}/secret.png", "file://{root}/secret.png", "github://a:b@c/d.png"]
)
def test_image_outside_the_folder_is_not_opened(processor: EupeLlavaProcessor, tmp_path: Path, name: str) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    record = asked("<image> what ?", "2", image=name.format(root=tmp_path))
    path = written(tmp_path / "data" / "data.json", [record])
    with pytest.raises(ValueError, match=r"is not a file below .*data, and is not opened"):
        load_conversations(ConversationArguments(path, strict=True), processor)
    inside = asked("<image> what ?", "2", image=str(tmp_path / "secret.png"))
    path = written(tmp_path / "data.json", [inside])
    assert len(load_conversations(ConversationArguments(path, strict=True), processor).train) == 1


# ---- lengths ----


@pytest.mark.parametrize("size", [{"height": 64, "width": 32}, {"shortest_edge": 48}])
def test_lengths_are_those_of_the_batches(
    folder: Path, processor: EupeLlavaProcessor, tmp_path: Path, size: dict[str, int]
) -> None:
    processor.image_processor = type(processor.image_processor)(size=size)
    for i, shape in enumerate([(64, 64), (100, 50), (50, 170)]):
        Image.new("RGB", shape).save(tmp_path / f"{i}.png")
    records = [asked("<image> what ?", "2", image=f"{i}.png") for i in range(3)]
    records += [asked("what ?", "2 and 3"), asked("<image><image> what ?", "2", image=["1.png", "2.png"])]
    arguments = ConversationArguments(written(tmp_path / "data.json", records))
    data = load_conversations(arguments, processor)
    collate = ConversationCollator(processor)
    assert data.lengths == [collate([data.train[i]])["input_ids"].shape[1] for i in range(5)]
    assert len(set(data.lengths)) == (3 if "height" in size else 5)


def test_lengths_are_counted_without_opening_images(
    folder: Path, processor: EupeLlavaProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    read = training_conversations.read_image

    def read_and_count(*args: Any) -> Any:
        opened.append(args)
        return read(*args)

    monkeypatch.setattr(training_conversations, "read_image", read_and_count)
    path = str(folder / "pictures" / "conversations.json")
    assert load_conversations(ConversationArguments(path, check=False), processor).lengths == [27] * 8
    assert len(opened) == 1  # to look at the labels of the first
    load_conversations(ConversationArguments(path), processor)
    assert len(opened) == 1 + 8 + 1


def test_too_long_conversations_are_left_out_whole(
    processor: EupeLlavaProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [asked("what ?", f"2{' and 3' * i}", id=f"chat-{i}") for i in range(5)]
    records[0]["conversations"][1]["value"] = " "
    path = written(tmp_path / "data.json", records)
    data = load_conversations(ConversationArguments(path, max_length=12), processor)
    assert [data.train.name(i) for i in range(len(data.train))] == ["row 1, id 'chat-1'", "row 2, id 'chat-2'"]
    assert data.lengths == [10, 12]
    assert "Skipped 2 of 4 rows. Row 3, id 'chat-3' has 14 tokens, more than 12." in caplog.text
    shorter = load_conversations(ConversationArguments(path, max_length=12), processor, context=10)
    assert shorter.lengths == [10]
    records[0]["conversations"][1]["value"] = "2"
    written(tmp_path / "data.json", records)
    with pytest.raises(ValueError, match=r"^2 of 5 rows cannot be used. Row 3, .* 14 tokens, more than 12\. Row 4, "):
        load_conversations(ConversationArguments(path, max_length=12, strict=True), processor)


# ---- faults ----

FAULTS = {
    "role": (
        asked("what ?", "2") | {"conversations": [turn("bot", "2")]},
        "the role 'bot' is unknown: it must be one",
    ),
    "no answer": ({"conversations": [turn("human", "what ?")]}, "there is no turn of the assistant to learn."),
    "nothing": ({"messages": []}, "there is no turn of the assistant to learn."),
    "empty answer": (asked("what ?", " \n"), "a turn of the assistant is empty."),
    "image in answer": (asked("what ?", "<image>", image="0.png"), "a turn of the assistant holds an image"),
    "too few images": (asked("<image> <image>", "2", image="0.png"), "hold 2 image places, and there are 1 images."),
    "too many images": (asked("what ?", "2", image="0.png"), "hold 0 image places, and there are 1 images."),
    "no value": ({"conversations": [{"from": "human"}]}, "each turn must have 'from' and 'value'."),
    "part": ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "must be a text or an image, got"),
    "messages of a number": ({"messages": 5}, "'messages' must be a list of turns, got 5."),
    "messages of text": ({"messages": "hello"}, "'messages' must be a list of turns, got 'hello'."),
    "turns of a number": ({"conversations": [5]}, "'conversations' must be a list of turns, got [5]."),
    "no turn": ({"messages": [None]}, "'messages' must be a list of turns, got [None]."),
    "listed role": ({"messages": [{"role": ["user"], "content": "a"}]}, "'role' must be text, got ['user']."),
    "content of a number": (
        {"messages": [{"role": "user", "content": 5}]},
        "'content' must be text or a list of parts",
    ),
    "content of texts": (
        {"messages": [{"role": "user", "content": ["a"]}]},
        "'content' must be text or a list of parts",
    ),
    "content of none": (
        {"messages": [{"role": "user", "content": [None]}]},
        "'content' must be text or a list of parts",
    ),
    "part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "a part of the type text must have 'text', got 5.",
    ),
    "listed type": ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "must be a text or an image, got"),
    "image of a number": (asked("<image>", "2", image=5), "an image must be a path, or an object with 'bytes' or"),
    "image of none": (asked("<image>", "2", image=[None]), "an image must be a path, or an object with 'bytes' or"),
    "image without a file": (
        asked("<image>", "2", image={"bytes": "x"}),
        "is no file: it must have either 'bytes' or",
    ),
    "path of a number": (asked("<image>", "2", image={"path": 5}), "is no file: it must have either 'bytes' or"),
    "token in text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a <image>"}]}]},
        "'<image>' stands in a part that is text: give a part of the type image.",
    ),
    "no file": (asked("<image>", "2", image="none.png"), r"none.png) cannot be read: "),
    "no image": (asked("<image>", "2", image="data.json"), r"data.json) cannot be read: "),
}


FAULTS |= {
    f"{path} as an image": (asked("<image>", "2", image=path), f"{path!r} is not a file below ")
    for path in ("/etc/hostname", "../0.png", "pictures/../../0.png", "file:///../../../etc/hostname")
}
FAULTS |= {
    "address as an image": (asked("<image>", "2", image="github://org:repo@main/a.png"), "is not a file below "),
    "object as an image": (
        asked("<image>", "2", image={"bytes": None, "path": "/etc/hostname"}),
        "is not a file below ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_conversations_are_named_and_skipped_or_refused(
    folder: Path, processor: EupeLlavaProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    record, words = FAULTS[fault]
    Image.open(folder / "pictures" / "0.png").save(tmp_path / "0.png")
    records = [asked("what ?", "2"), {**record, "id": "faulty"}, asked("<image> what ?", "3", image="0.png")]
    path = written(tmp_path / "data.json", records)
    data = load_conversations(ConversationArguments(path), processor)
    assert [data.train.rows[i] for i in range(len(data.train))] == [0, 2]
    assert "Skipped 1 of 3 rows." in caplog.text and words in caplog.text and "ow 1, id 'faulty'" in caplog.text
    with pytest.raises(ValueError, match=rf"^1 of 3 rows cannot be read\. .*{re.escape(words)}"):
        load_conversations(ConversationArguments(path, strict=True), processor)
    written(tmp_path / "data.json", records[1:2])
    with pytest.raises(ValueError, match=rf"^None of 1 rows can be read\. .*{re.escape(words)}"):
        load_conversations(ConversationArguments(path), processor)


def test_ids_are_named_as_they_are(processor: EupeLlavaProcessor, tmp_path: Path) -> None:
    path = written(tmp_path / "data.json", [asked("what ?", "", id="Chat-A"), asked("what ?", "2")])
    with pytest.raises(ValueError, match="Row 0, id 'Chat-A': a turn of the assistant is empty"):
        load_conversations(ConversationArguments(path, strict=True), processor)


def test_json_lines_are_conversations_too(folder: Path, processor: EupeLlavaProcessor, tmp_path: Path) -> None:
    Image.open(folder / "pictures" / "0.png").save(tmp_path / "0.png")
    records = [asked("<image> what ?", "2", image="0.png"), asked("<image> what ?", "3", image="0.png")]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    data = load_conversations(ConversationArguments(str(tmp_path / "data.jsonl")), processor)
    same = load_conversations(ConversationArguments(written(tmp_path / "data.json", records)), processor)
    assert data.lengths == same.lengths and len(data.train) == 2


def test_every_picture_is_trained_on_or_named(
    processor: EupeLlavaProcessor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, content in (GOOD | BAD).items():
        (tmp_path / name).write_bytes(content)
    path = written(tmp_path / "data.json", [asked("<image>", "2", image=name) for name in GOOD | BAD])
    data = load_conversations(ConversationArguments(path), processor)
    assert len(data.train) == len(GOOD) and all(name in caplog.text for name in BAD)
    batch = ConversationCollator(processor)([data.train[i] for i in range(len(GOOD))])
    assert batch["pixel_values"].shape == (len(GOOD), 3, 64, 64) and bool(batch["pixel_values"].isfinite().all())


def test_only_regular_files_are_images(processor: EupeLlavaProcessor, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for a writer
    path = written(tmp_path / "data.json", [asked("<image>", "2", image="pipe.png")])
    with pytest.raises(ValueError, match=r"pipe\.png\) cannot be read: not a regular file"):
        load_conversations(ConversationArguments(path), processor)


def test_pictures_with_malformed_metadata_and_turned_ones_are_measured(
    processor: EupeLlavaProcessor, tmp_path: Path
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, exif in (("a.png", b"garbage!"), ("b.png", turned)):
        Image.new("RGB", (64, 128)).save(tmp_path / name, exif=exif)
    processor.image_processor.do_resize = False
    path = written(tmp_path / "data.json", [asked("<image>", "2", image=name) for name in ("a.png", "b.png")])
    data = load_conversations(ConversationArguments(path), processor)
    sizes = [tuple(ConversationCollator(processor)([row])["pixel_values"].shape[-2:]) for row in data.train]
    assert sizes == [(128, 64), (64, 128)] and data.lengths[0] == data.lengths[1]


def test_links_lead_where_their_owner_put_them(processor: EupeLlavaProcessor, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    absolute = str(tmp_path / "data" / "linked" / "a.png")
    path = written(tmp_path / "data" / "a.json", [asked("<image>", "2", image=i) for i in ("linked/a.png", absolute)])
    assert len(load_conversations(ConversationArguments(path, strict=True), processor).train) == 2


def test_what_is_not_a_data_set_is_refused(processor: EupeLlavaProcessor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold a list of conversations, as LLaVA's data does"):
        load_conversations(ConversationArguments(written(tmp_path / "a.json", {"a": 1})), processor)
    with pytest.raises(ValueError, match=r"must hold a list of conversations, as LLaVA's data does; row 1 is 5\."):
        load_conversations(ConversationArguments(written(tmp_path / "a.json", [asked("what ?", "2"), 5])), processor)
    (tmp_path / "b.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"b\.json is JSON that is nested too deep"):
        load_conversations(ConversationArguments(str(tmp_path / "b.json")), processor)
    (tmp_path / "b.json").write_text("[{")
    with pytest.raises(ValueError, match=r"b\.json is not a JSON file: "):
        load_conversations(ConversationArguments(str(tmp_path / "b.json")), processor)
    datasets.Dataset.from_list([{"image": "a", "label": 0}]).save_to_disk(tmp_path / "c")
    with pytest.raises(ValueError, match="has no column 'messages' or 'conversations'; it has image, label"):
        load_conversations(ConversationArguments(str(tmp_path / "c")), processor)
    with pytest.raises(ValueError, match="--held_out must be a share from 0 to below 1"):
        ConversationArguments("a", held_out=1.0)
    with pytest.raises(ValueError, match="--max_length must be at least 1, got 0"):
        ConversationArguments("a", max_length=0)


def test_template_that_marks_no_answers_is_refused(folder: Path, processor: EupeLlavaProcessor) -> None:
    template = processor.chat_template
    processor.chat_template = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert processor.chat_template != template
    with pytest.raises(ValueError, match="does not mark what the assistant says"):
        load_conversations(ConversationArguments(str(folder / "pictures" / "conversations.json")), processor)


def test_held_out_part_and_limit_divide_the_conversations(folder: Path, processor: EupeLlavaProcessor) -> None:
    path = str(folder / "pictures" / "conversations.json")
    data = load_conversations(ConversationArguments(path, held_out=0.25), processor)
    assert len(data.train) == len(data.lengths) == 6 and len(data.evaluation) == 2
    assert sorted([*data.train.rows, *data.evaluation.rows]) == list(range(8))
    limited = load_conversations(ConversationArguments(path, limit=4), processor)
    assert [limited.train.name(i)[-2] for i in range(4)] == ["0", "2", "4", "6"] and limited.evaluation is None
