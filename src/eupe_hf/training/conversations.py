# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Conversations about images to train on: LLaVA's JSON or `datasets`, checked and measured before the first step.

Needs `pip install 'eupe-hf[train]'`.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from eupe_hf.data.checks import readable, skip
from eupe_hf.data.loading import evenly, load_split, read_json
from eupe_hf.data.rows import UnreadableError, file_below, image_size, read_image
from eupe_hf.data.splits import hold_out
from eupe_hf.evaluation.results import EvaluationResult
from eupe_hf.extras import require
from eupe_hf.models.processing_eupe_llava import EupeLlavaProcessor

from .options import public


IGNORED = -100  # transformers' label of tokens that are not learned
_ROLES = {"human": "user", "gpt": "assistant"}  # LLaVA's words
_MEASURED = 1000  # conversations that are tokenized at once to count their tokens


@dataclass
class ConversationArguments:
    """What to train on: LLaVA's JSON, or conversations that `datasets` reads."""

    dataset: str = field(metadata={"help": "a JSON file in LLaVA's format, JSON lines, parquet, a Hub id or a folder"})
    image_folder: str | None = field(
        default=None, metadata={"help": "folder of images given by path; default: beside the JSON file"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "configuration, if there are several"})
    train_split: str = field(default="train", metadata={"help": "split to train on"})
    held_out: float = field(default=0.0, metadata={"help": "share to measure the loss on at the end"})
    max_length: int = field(default=2048, metadata={"help": "tokens, images included; longer ones are left out"})
    limit: int | None = field(default=None, metadata={"help": "take this many conversations, evenly spaced"})
    strict: bool = field(default=False, metadata={"help": "refuse faulty conversations instead of skipping them"})
    check: bool = field(default=True, metadata={"help": "open every image once before the first step"})

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"--held_out must be a share from 0 to below 1, got {self.held_out}.")
        for name in ("max_length", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}.")


class Conversations(Dataset):
    """Conversations in transformers' form, each with its images.

    Args:
        data: Records: `messages` with `role` and `content`, which is a string or a list of parts of the types "text"
            and "image"; or LLaVA's `conversations` with `from` and `value`. `images` or `image`, one or several, as
            `datasets` has them undecoded, or as paths.
        folder: Where images given by path lie. A path that leads out of it is a fault of the conversation. By default
            the working directory, and objects have the paths that `datasets` gave them.
        image_token: What stands for an image in a string.
        decode: Open the images.
        rows: Numbers of the records, by default all.

    Example:

    ```python
    >>> from eupe_hf.training.conversations import Conversations

    >>> turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cat."}]
    >>> messages, images = Conversations([{"conversations": turns}])[0]
    >>> messages[1]
    {'role': 'assistant', 'content': [{'type': 'text', 'text': 'A cat.'}]}

    ```
    """

    def __init__(
        self, data: Any, folder: Path | str = "", image_token: str = "<image>", decode: bool = True, rows: Any = None
    ):
        self.data, self.folder, self.image_token, self.decode = data, Path(folder), image_token, decode
        self.rows = range(len(data)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[list[dict[str, Any]], list[Any]]:
        record = self.data[self.rows[row]]
        try:
            messages = _messages(record, self.image_token)
            images = _images(record, self.folder)
            _check(messages, len(images))
        except ValueError as error:
            raise UnreadableError(f"R{self.name(row)[1:]}: {error}") from error
        if self.decode:
            images = [read_image(image, f"The image of {self.name(row)}") for image in images]
        return messages, images

    def select(self, rows: Sequence[int]) -> "Conversations":
        """A part of the conversations."""
        chosen = [self.rows[row] for row in rows]
        return Conversations(self.data, self.folder, self.image_token, self.decode, chosen)

    def name(self, row: int) -> str:
        """What messages call a conversation: its number, and its id."""
        number = self.rows[row]
        name = self.data[number].get("id")
        return f"row {number}" if name is None else f"row {number}, id {reprlib.repr(name)}"


def _messages(record: Mapping[str, Any], image_token: str) -> list[dict[str, Any]]:
    key = "conversations" if record.get("conversations") else "messages"
    speaker, said = ("from", "value") if key == "conversations" else ("role", "content")
    turns = record.get(key) or []
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"{key!r} must be a list of turns, got {reprlib.repr(turns)}.")
    messages = []
    for turn in turns:
        role, content = turn.get(speaker), turn.get(said)
        if role is None or content is None:
            raise ValueError(f"each turn must have {speaker!r} and {said!r}.")
        if not isinstance(role, str):
            raise ValueError(f"{speaker!r} must be text, got {reprlib.repr(role)}.")
        messages.append({"role": _ROLES.get(role, role), "content": _parts(content, said, image_token)})
    return messages


def _parts(content: Any, said: str, image_token: str) -> list[dict[str, Any]]:
    """A message as transformers' chat templates take it."""
    if not isinstance(content, str):
        if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
            raise ValueError(f"{said!r} must be text or a list of parts, got {reprlib.repr(content)}.")
        for part in content:
            kind, text = part.get("type"), part.get("text") if part.get("type") == "text" else ""
            if kind not in ("text", "image"):
                shown = reprlib.repr(kind)
                raise ValueError(f"a part of a message must be a text or an image, got the type {shown}.")
            if not isinstance(text, str):
                raise ValueError(f"a part of the type text must have 'text', got {reprlib.repr(text)}.")
            if image_token in text:
                raise ValueError(f"{image_token!r} stands in a part that is text: give a part of the type image.")
        return [{"type": "text", "text": p["text"]} if p["type"] == "text" else {"type": "image"} for p in content]
    pieces = content.split(image_token)
    if len(pieces) == 1:
        return [{"type": "text", "text": content}]
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(pieces):  # the template breaks the line after an image
        parts += [{"type": "image"}] * (index > 0) + [{"type": "text", "text": piece.strip()}] * bool(piece.strip())
    # LLaVA's code puts the image before the question, also where the data has it after
    return sorted(parts, key=lambda part: part["type"] == "text") if len(pieces) == 2 else parts


def _images(record: Mapping[str, Any], folder: Path) -> list[Any]:
    """Images as `read_image` takes them. Where there is a folder, every path is the name of a file below it."""
    given = record.get("images") if record.get("images") is not None else record.get("image")
    images = [] if given is None else given if isinstance(given, (list, tuple)) else [given]
    if wrong := [image for image in images if not isinstance(image, (str, dict))]:
        raise ValueError(
            f"an image must be a path, or an object with 'bytes' or 'path', got {reprlib.repr(wrong[0])}."
        )
    return [_placed(image, folder) for image in images]


def _placed(image: Any, folder: Path) -> Any:
    if isinstance(image, str):
        return {"bytes": None, "path": file_below(image, folder)}
    if folder == Path() or image.get("bytes") is not None or not isinstance(image.get("path"), str):
        return image  # as `datasets` has it, or a fault that `read_image` names
    return {"bytes": None, "path": file_below(image["path"], folder)}


def _check(messages: list[dict[str, Any]], images: int) -> None:
    known = ("system", "user", "assistant")
    if unknown := [message["role"] for message in messages if message["role"] not in known]:
        raise ValueError(
            f"the role {reprlib.repr(unknown[0])} is unknown: it must be one of {', '.join([*known, *_ROLES])}."
        )
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError("there is no turn of the assistant to learn.")
    for answer in answers:
        if any(part["type"] == "image" for part in answer):
            raise ValueError("a turn of the assistant holds an image: it must be text.")
        if not any(part["text"].strip() for part in answer):
            raise ValueError("a turn of the assistant is empty.")
    places = sum(part["type"] == "image" for message in messages for part in message["content"])
    if places != images:
        raise ValueError(f"the messages hold {places} image places, and there are {images} images.")


@dataclass
class ConversationData:
    """Conversations, as the Trainer takes a task: to train on, with the tokens of each, and held out, if any."""

    arguments: ConversationArguments
    train: Conversations
    lengths: list[int]
    evaluation: Conversations | None
    shown: tuple[str, ...] = ()  # all scores

    @property
    def parts(self) -> dict[str, "ConversationData"]:
        """As of a run with one task."""
        return {"": self}

    def summary(self) -> list[str]:
        """What the data holds."""
        mean = sum(self.lengths) / len(self.lengths)
        return [f"{len(self.train)} conversations to train on, {mean:.0f} tokens on average."]

    def result(self) -> EvaluationResult:
        """What is evaluated, without scores."""
        data, rows = self.arguments, self.train if self.evaluation is None else self.evaluation
        split = data.train_split if self.evaluation is None else f"{data.held_out} of {data.train_split}"
        config = data.dataset_config
        return EvaluationResult("conversation", "", public(data.dataset), split, len(rows), {}, dataset_config=config)

    def settings(self) -> dict[str, Any]:
        """What results and card say of the options of the data."""
        return {"max_length": self.arguments.max_length}

    def use(self, folder: str) -> str:
        """How to use what was trained."""
        return f"python examples/chat_vlm.py --model {folder} --image PHOTO talks to it."


def load_conversations(
    arguments: ConversationArguments, processor: EupeLlavaProcessor, context: int | None = None, seed: int = 0
) -> ConversationData:
    """Read and check conversations, and count their tokens, which opens images for `--check` alone.

    Args:
        arguments: Options.
        processor: Of the model.
        context: Tokens that the language model takes.
        seed: Of the held-out part.

    Raises:
        ValueError: No usable conversation, a chat template that does not mark what the assistant says, and, with
            `--strict`, a faulty conversation or one that is too long.
    """
    rows = Conversations(*_records(arguments), processor.image_token)
    options = processor.image_processor
    is_one_size = bool(options.do_resize and options.size.height) or options.do_center_crop
    rows.decode = arguments.check or not is_one_size
    rows, sizes = readable(rows, arguments.strict, lambda name, cells: _sizes(cells[1], is_one_size))
    rows.decode = True
    lengths = _lengths(rows, sizes, processor)
    limit = min(arguments.max_length, context or arguments.max_length)
    problems = [
        f"R{rows.name(row)[1:]} has {length:,} tokens, more than {limit:,}." if length > limit else None
        for row, length in enumerate(lengths)
    ]
    kept = skip(problems, arguments.strict, "used")
    rows, lengths = rows.select(kept), [lengths[row] for row in kept]
    if (ConversationCollator(processor)([rows[0]])["labels"] == IGNORED).all():
        raise ValueError(
            "The chat template of the processor does not mark what the assistant says with {% generation %}: use the "
            "one that from_vision_text gives."
        )
    held_out = hold_out(None, len(rows), arguments.held_out, seed)
    if not held_out.any():
        return ConversationData(arguments, rows, lengths, None)
    kept, held = (~held_out).nonzero()[0].tolist(), held_out.nonzero()[0].tolist()
    return ConversationData(arguments, rows.select(kept), [lengths[row] for row in kept], rows.select(held))


def _records(arguments: ConversationArguments) -> tuple[Any, Path]:
    """The records, and the folder of images given by path."""
    path = Path(arguments.dataset)
    if arguments.image_folder and not Path(arguments.image_folder).is_dir():
        raise ValueError(f"--image_folder {arguments.image_folder} is not a folder.")
    named = arguments.image_folder or (path.parent if path.is_file() else None)
    folder = Path() if named is None else Path(named).absolute()
    if not path.is_file() or path.suffix in (".jsonl", ".parquet"):
        loaded = load_split(arguments.dataset, arguments.train_split, {}, arguments.dataset_config, arguments.limit)
        return _undecoded(loaded), folder
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise ValueError(f"{path} must hold a list of conversations, as LLaVA's data does.")
    if wrong := [row for row, record in enumerate(records) if not isinstance(record, dict)]:
        shown = reprlib.repr(records[wrong[0]])
        raise ValueError(f"{path} must hold a list of conversations, as LLaVA's data does; row {wrong[0]} is {shown}.")
    return evenly(records, arguments.limit), folder


def _undecoded(data: Any) -> Any:
    """The data set with its images as bytes or paths, so that an unreadable one can be named."""
    datasets = require("datasets")
    if not {"messages", "conversations"} & set(data.column_names):
        raise ValueError(
            f"The data set has no column 'messages' or 'conversations'; it has {', '.join(data.column_names)}."
        )
    for column in {"image", "images"} & set(data.column_names):
        feature = data.features[column]
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            data = data.cast_column(column, datasets.List(datasets.Image(decode=False)))
    return data


def _sizes(images: list[Any], is_one_size: bool) -> list[tuple[int, int]]:
    """Height and width of images; where the processor gives all one size, any will do."""
    if is_one_size:
        return [(1, 1)] * len(images)
    return [image_size(image) for image in images]


def _lengths(rows: Conversations, sizes: list[list[tuple[int, int]]], processor: EupeLlavaProcessor) -> list[int]:
    """Tokens of each conversation, as the collator makes them."""
    lengths: list[int] = []
    plain = Conversations(rows.data, rows.folder, rows.image_token, decode=False, rows=rows.rows)
    for start in logging.tqdm(range(0, len(plain), _MEASURED), desc="counting tokens"):
        chosen = range(start, min(start + _MEASURED, len(plain)))
        texts = processor.apply_chat_template([plain[row][0] for row in chosen])
        begins = processor.tokenizer.bos_token is not None and texts[0].startswith(processor.tokenizer.bos_token)
        ids = processor.tokenizer(texts, add_special_tokens=not begins)["input_ids"]
        for row, tokens in zip(chosen, ids, strict=True):
            counts = processor._get_num_multimodal_tokens(sizes[row] or None).num_image_tokens or []
            lengths.append(len(tokens) + sum(counts) - len(counts))
    return lengths


class ConversationCollator:
    """Conversations as a batch: padded on the right, with labels on what the assistant says alone.

    That includes the token that ends a turn. Nothing is ever truncated.
    """

    def __init__(self, processor: EupeLlavaProcessor):
        self.processor = processor

    def __call__(self, rows: Sequence[tuple[list[dict[str, Any]], list[PIL.Image.Image]]]) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask`, `labels` (B, tokens), and `pixel_values` of all images of the batch."""
        batch = self.processor.apply_chat_template(
            [_with_images(messages, images) for messages, images in rows],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right"},
        )
        is_said = batch.pop("assistant_masks").bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~is_said, IGNORED)}


def _with_images(messages: list[dict[str, Any]], images: Sequence[PIL.Image.Image]) -> list[dict[str, Any]]:
    left = iter(images)
    return [
        {**message, "content": [{**p, "image": next(left)} if p["type"] == "image" else p for p in message["content"]]}
        for message in messages
    ]
