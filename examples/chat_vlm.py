# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Talk with a vision-language model about images, in the terminal.

    python examples/chat_vlm.py --model my-vlm --image photo.jpg
    python examples/chat_vlm.py --model my-vlm --image left.jpg right.jpg --question "What differs?"

Without --question every line that is typed, or comes from a pipe, is a question; the model remembers what was said.
"/image FILE" shows it another image, "/new" starts over, an empty line or the end of the input leaves.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer
from transformers import logging as transformers_logging

from eupe_hf.data.rows import read_image


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="example: python examples/chat_vlm.py --model my-vlm --image a.jpg"
    )
    parser.add_argument("--model", required=True, help="a VLM, or an adapter of one: a folder or an id on the Hub")
    parser.add_argument("--image", nargs="*", default=[], help="photographs that the first question is about")
    parser.add_argument("--question", help="ask this alone, and leave")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="of each answer (default: 256)")
    return parser.parse_args(arguments)


def open_image(path: str) -> PIL.Image.Image:
    """The image, or a `ValueError` that says why not."""
    return read_image({"path": path, "bytes": None}, "The image")


class Chat:
    """A conversation, its images, and the model that takes part in it."""

    def __init__(self, model: str, images: list[PIL.Image.Image], max_new_tokens: int):
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.model = AutoModelForImageTextToText.from_pretrained(model).eval().to(device)
        self.processor, self.max_new_tokens = AutoProcessor.from_pretrained(model), max_new_tokens
        self.messages: list[dict[str, Any]] = []
        self.new_images = images  # those that the next question is about

    def ask(self, question: str) -> None:
        """Print the answer word by word, and remember it."""
        parts = [{"type": "image", "image": image} for image in self.new_images] + [{"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": parts}]
        inputs = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        streamer = TextStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        # the same answer each time
        output = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, streamer=streamer)
        answer = self.processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        self.messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        self.new_images = []

    def follow(self, lines: Iterable[str]) -> None:
        """Take questions and commands until an empty line; what is wrong with one is said, and the next is taken."""
        for line in map(str.strip, lines):
            command, _, rest = line.partition(" ")
            try:
                if not line:
                    return
                if command == "/image":
                    self.new_images.append(open_image(rest.strip()))
                elif command == "/new":
                    self.messages, self.new_images = [], []
                else:
                    self.ask(line)
            except ValueError as error:  # an image that cannot be read, or more than the model can take
                print(" ".join(str(error).split()))


def typed_lines() -> Iterable[str]:
    """Lines of the standard input, with a prompt where somebody types them."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def main(arguments: list[str] | None = None) -> None:
    """Load the model, show it the images, answer."""
    args = parse_arguments(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        if args.max_new_tokens < 1:
            raise ValueError(f"--max_new_tokens must be at least 1, got {args.max_new_tokens}.")
        images = [open_image(path) for path in args.image]
        if not Path(args.model).exists() and len(Path(args.model).parts) != 2:  # a name on the Hub is USER/NAME
            raise ValueError(f"There is no model at {args.model}.")
        chat = Chat(args.model, images, args.max_new_tokens)
        if args.question is not None:
            chat.ask(args.question)
            return
    except (OSError, ValueError) as error:
        message = str(error).partition("Model type should be one of")[0]  # transformers lists a hundred classes
        sys.exit(f"chat_vlm.py: {' '.join(message.split())}")
    chat.follow(typed_lines())


if __name__ == "__main__":
    main()
