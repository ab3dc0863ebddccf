# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Save drawn scenes in the forms that the recipes read.

    python examples/save_drawn_scenes.py --output scenes --count 400

The folder then has, for each split:

- `SPLIT/images` with `SPLIT/masks` and `SPLIT/depth`: for segmentation, and for depth in metres;
- `SPLIT.json`: COCO's boxes, for detection;
- `SPLIT-captions.jsonl`: an image and its captions a line;
- `SPLIT-conversations.json`: questions and answers as LLaVA's JSON, for a VLM;
- `classes/SPLIT/NAME`: scenes with one object, in class folders by colour and shape;
- `video-SPLIT`: `frames` and `masks` of two objects of one colour that cross.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from drawn_scenes import SHAPES, SPLITS, Scene, SceneGenerator
from drawn_words import captions, questions
from PIL import Image


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example: python examples/save_drawn_scenes.py --output scenes --count 20 --side 128",
    )
    parser.add_argument("--output", type=Path, default=Path("scenes"), help="folder to write (default: scenes)")
    parser.add_argument("--count", type=int, default=400, help="scenes of each split (default: 400)")
    parser.add_argument("--side", type=int, default=96, help="side of the pictures in pixels (default: 96)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=["train", "validation"], help="what to draw")
    return parser.parse_args()


def save_class_folders(scenes: Iterable[Scene], folder: Path, label: Callable[[Scene], str]) -> None:
    """Save pictures as `folder/LABEL/00000.png`."""
    for scene in scenes:
        target = folder / label(scene)
        target.mkdir(parents=True, exist_ok=True)
        scene.picture.save(target / f"{scene.index:05}.png")


def save_maps(scenes: Iterable[Scene], folder: Path) -> None:
    """Save `images/00000.png`, `masks/00000.png` with the classes of `PARTS`, and `depth/00000.npy` in metres."""
    for name in ("images", "masks", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        scene.picture.save(folder / "images" / f"{scene.index:05}.png")
        Image.fromarray(scene.parts).save(folder / "masks" / f"{scene.index:05}.png")
        np.save(folder / "depth" / f"{scene.index:05}.npy", scene.depth)


def save_boxes(scenes: Iterable[Scene], file: Path, images: str) -> None:
    """Save COCO's JSON: boxes as left, top, width and height in pixels, one category per shape.

    Args:
        scenes: The scenes, whose pictures `save_maps` saves.
        file: The JSON file.
        images: The folder of the pictures, as seen from the file.
    """
    content: dict[str, list[dict]] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(SHAPES)]
    for scene in scenes:
        width, height = scene.picture.size
        name = f"{images}/{scene.index:05}.png"
        content["images"].append({"id": scene.index, "file_name": name, "width": width, "height": height})
        for thing in scene.objects:
            left, top, right, bottom = thing.box
            entry = {"id": len(content["annotations"]), "image_id": scene.index, "category_id": thing.label}
            size = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            content["annotations"].append({**entry, **size, "iscrowd": 0, "colour": thing.colour})
    file.write_text(json.dumps(content))


def save_captions(scenes: Iterable[Scene], file: Path, images: str) -> None:
    """Save a JSON line per picture: `file_name` and all `captions`."""
    lines = [{"file_name": f"{images}/{scene.index:05}.png", "captions": captions(scene)} for scene in scenes]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def save_conversations(scenes: Iterable[Scene], file: Path, images: str, turns: int = 4, seed: int = 0) -> None:
    """Save LLaVA's JSON: some questions about each picture, answered in a word or a sentence.

    A question that wants a word says so: "Answer in a word."
    """
    records = []
    for scene in scenes:
        noise = np.random.default_rng((seed, scene.index))
        asked = questions(scene)
        said = []
        for place in noise.permutation(len(asked))[:turns]:
            question, brief = asked[place], noise.integers(2)
            text = f"{question.text} Answer in a word." if brief else question.text
            picture = "" if said else "<image>\n"
            said.append({"from": "human", "value": picture + text})
            said.append({"from": "gpt", "value": question.answer if brief else question.sentence})
        name = f"{images}/{scene.index:05}.png"
        records.append({"id": f"{file.stem} {scene.index}", "image": name, "conversations": said})
    file.write_text(json.dumps(records))


def save_video(frames: Iterable[Scene], folder: Path) -> None:
    """Save `frames/00000.png` and `masks/00000.png`, where each object has the same number in every frame."""
    for name in ("frames", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        frame.picture.save(folder / "frames" / f"{number:05}.png")
        Image.fromarray(frame.instances).save(folder / "masks" / f"{number:05}.png")


def main() -> None:
    """Draw each split and save it in every form."""
    arguments = parse_arguments()
    for split in arguments.splits:
        # 1. Draw
        generator = SceneGenerator(arguments.side, arguments.seed, split)
        scenes = [*generator.scenes(arguments.count)]
        single = SceneGenerator(arguments.side, arguments.seed, split, objects=(1, 1))

        # 2. Save
        save_maps(scenes, arguments.output / split)
        images = f"{split}/images"
        save_boxes(scenes, arguments.output / f"{split}.json", images)
        save_captions(scenes, arguments.output / f"{split}-captions.jsonl", images)
        save_conversations(scenes, arguments.output / f"{split}-conversations.json", images, seed=arguments.seed)
        classes = arguments.output / "classes" / split
        save_class_folders(single.scenes(arguments.count), classes, lambda scene: scene.objects[0].name)
        save_video(generator.video(0, crossing=True), arguments.output / f"video-{split}")
        print(f"Saved {arguments.count} scenes of the split {split} in {arguments.output}")


if __name__ == "__main__":
    main()
