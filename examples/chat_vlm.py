# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Talk with a vision-language model about images, in the terminal.

    python examples/chat_vlm.py --model my-vlm --image photo.jpg
    python examples/chat_vlm.py --model my-vlm --image left.jpg right.jpg --question "What differs?"

Without --question, every line that you type or pipe in is a question, and the model remembers the conversation.
"/image FILE" adds an image, "/new" starts over, and an empty line or the end of the input leaves.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer
from transformers import logging as transformers_logging

from eupe_hf.loading import pick_device
from eupe_hf.models.image_processing_eupe_reading import open_image


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="example: python examples/chat_vlm.py --model my-vlm --image a.jpg"
    )
    add = parser.add_argument
    add("--model", required=True, help="a VLM or an adapter of one: a folder or a Hub id")
    add("--image", nargs="*", default=[], help="files or URLs of the images for the first question")
    add("--question", help="asks only this, and leaves")
    add("--size", type=int, help="side in pixels that images are resized to (default: the processor's)")
    add("--max-new-tokens", "--max_new_tokens", type=int, default=256, help="of each answer (default: 256)")
    add("--device", help="such as cpu or cuda:1 (default: the accelerator if there is one)")
    args = parser.parse_args(arguments)
    for name in ("size", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    return args


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Loads the model and its processor."""
    if not Path(args.model).exists() and len(Path(args.model).parts) != 2:  # a name on the Hub is USER/NAME
        raise ValueError(f"There is no model at {args.model}: pass a folder or a Hub id.")
    device = pick_device(args.device)
    model = AutoModelForImageTextToText.from_pretrained(args.model).eval().to(device)
    processor = AutoProcessor.from_pretrained(args.model)
    if args.size is not None:
        processor.image_processor.size = {"height": args.size, "width": args.size}
    return model, processor


def answer(model: Any, processor: Any, messages: list[dict[str, Any]], max_new_tokens: int) -> dict[str, Any]:
    """Prints the answer to the last message word by word, and returns it as a message."""
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with torch.inference_mode():  # greedy: the same question gets the same answer
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
    said = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"role": "assistant", "content": [{"type": "text", "text": said}]}


def question(text: str, images: list[PIL.Image.Image]) -> dict[str, Any]:
    """Makes a message of a question and the new images that it is about."""
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def typed_lines() -> Iterator[str]:
    """Yields the lines of the standard input up to an empty one, with a prompt if it is a terminal."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line


def one_line(error: Exception) -> str:
    """Puts the message of an error on one line."""
    message = str(error).partition("Model type should be one of")[0]  # transformers lists a hundred classes
    return " ".join(message.split())


def main(arguments: list[str] | None = None) -> None:
    """Runs the chat."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # 1. Read the options and the images: what is wrong with them shows before the model is loaded.
        args = parse(arguments)
        images = [open_image(path, "The image") for path in args.image]

        # 2. Load the model.
        model, processor = load(args)

        # 3. Answer one question and leave.
        if args.question is not None:
            answer(model, processor, [question(args.question, images)], args.max_new_tokens)
            return
    except (OSError, ValueError) as error:
        sys.exit(f"chat_vlm.py: {one_line(error)}")

    # 4. Or answer line by line. After an error the chat goes on with the next line.
    messages: list[dict[str, Any]] = []
    for line in typed_lines():
        command, _, rest = line.partition(" ")
        try:
            if command == "/image":
                images.append(open_image(rest.strip(), "The image"))
            elif command == "/new":
                messages, images = [], []
            else:
                asked = [*messages, question(line, images)]
                messages, images = [*asked, answer(model, processor, asked, args.max_new_tokens)], []
        except ValueError as error:  # an unreadable image, or more than the model can take
            print(one_line(error))


if __name__ == "__main__":
    main()
