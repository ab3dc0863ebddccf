# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Scenes whose answers are known: coloured discs, squares and triangles on a floor before a wall.

    >>> from drawn_scenes import SceneGenerator
    >>> scene = SceneGenerator(side=96, seed=0, split="train").scene(7)
    >>> scene.picture.size, scene.parts.shape, scene.depth.shape
    ((96, 96), (96, 96), (96, 96))
    >>> [thing.name for thing in scene.objects]  # far to near
    ['pink disc', 'cyan disc', 'pink disc']

Scene 7 of seed 0 is the same on every machine, whatever you draw before it: pixels come from integers and from exact
floating-point operations alone. A larger `side` shows the same scene in more pixels. `drawn_words.py` has captions and
questions, and `save_drawn_scenes.py` writes scenes as data sets. Only numpy and Pillow are needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from drawn_pixels import FAR, HORIZON, NEAR, Backdrop, Layout, render, visible_shares
from PIL import Image


COLOURS = {
    "red": (205, 30, 40),
    "orange": (245, 130, 20),
    "yellow": (245, 220, 50),
    "green": (30, 150, 55),
    "cyan": (50, 210, 220),
    "blue": (35, 70, 220),
    "purple": (135, 40, 175),
    "pink": (250, 150, 205),
}
SHAPES = ("disc", "square", "triangle")
PARTS = {0: "wall", 1: "floor", 2: "disc", 3: "square", 4: "triangle"}  # classes of `Scene.parts`
SPLITS = ("train", "validation", "test", "unseen")
SIDES = (64, 512)  # pixels, the smallest and the largest
_VISIBLE = 0.6  # share of each object that the others leave visible, at least
_LEAST = 0.12  # of the side: the width of the smallest object at scale 1


def held_out_combinations(fold: int = 0) -> frozenset[tuple[str, str]]:
    """Colours and shapes that only the split "unseen" has: one shape of every second colour.

    Args:
        fold: 0 to 5. The six folds together hold out each of the 24 combinations once.
    """
    chosen = [*COLOURS][fold % 2 :: 2]
    return frozenset((colour, SHAPES[(i + fold // 2) % len(SHAPES)]) for i, colour in enumerate(chosen))


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Args:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        distance: Metres from the camera.
        box: Left, top, right and bottom in pixels, around the visible pixels; right and bottom are exclusive. `None`
            if others hide the object, which happens only in videos.
    """

    shape: str
    colour: str
    distance: float
    box: tuple[int, int, int, int] | None

    @property
    def name(self) -> str:
        """Colour and shape: "red square"."""
        return f"{self.colour} {self.shape}"

    @property
    def label(self) -> int:
        """The number of the shape in `SHAPES`."""
        return SHAPES.index(self.shape)


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture and what is true of it.

    Args:
        picture: RGB, `side` x `side`.
        instances: (side, side) uint8: 0, or i + 1 where `objects[i]` is visible.
        depth: (side, side) float32, metres.
        objects: The objects, far to near.
        index: The number of the scene in its split.
        combinations: Colours and shapes that this split can show.
    """

    picture: Image.Image
    instances: np.ndarray
    depth: np.ndarray
    objects: tuple[SceneObject, ...]
    index: int
    combinations: tuple[tuple[str, str], ...]

    @cached_property
    def parts(self) -> np.ndarray:
        """(side, side) uint8: the class of each pixel, a key of `PARTS`."""
        background = np.arange(len(self.instances)) >= round(HORIZON * len(self.instances))
        shapes = np.array([0, *(thing.label + 2 for thing in self.objects)], np.uint8)
        return np.where(self.instances > 0, shapes[self.instances], background[:, None].astype(np.uint8))

    @cached_property
    def colours(self) -> np.ndarray:
        """(side, side) uint8: 0 for the background, else 1 + the number of the colour in `COLOURS`."""
        names = list(COLOURS)
        return np.array([0, *(1 + names.index(thing.colour) for thing in self.objects)], np.uint8)[self.instances]


class SceneGenerator:
    """Draws scenes and videos, each from its number alone.

    Args:
        side: Side of the pictures in pixels, 64 to 512.
        seed: Each seed gives other scenes, 0 or larger.
        split: "train", "validation" and "test" never show the held-out combinations of colour and shape; "unseen"
            shows nothing else.
        objects: The smallest and the largest number of objects in a scene, 0 to 6.
        fold: Which combinations are held out, see `held_out_combinations`.
        scale: Factor of the objects' sizes. At 1, with up to three objects, an object is 0.12 to 0.6 of the side wide.
        texture: Strength of the textures of wall and floor; 0 leaves them plain.
        noise: The largest change of a pixel's value by noise, 0 to 255.

    Raises:
        ValueError: An option out of its range, or objects of less than 3 pixels.

    Example:

    ```python
    >>> generator = SceneGenerator(side=128, split="unseen", objects=(1, 1))
    >>> {thing.name for scene in generator.scenes(50) for thing in scene.objects} <= {
    ...     f"{colour} {shape}" for colour, shape in held_out_combinations()
    ... }
    True
    >>> frames = generator.video(0, frames=4, crossing=True)
    >>> len(frames), frames[0].objects[0].colour == frames[0].objects[1].colour
    (4, True)

    ```
    """

    def __init__(
        self,
        side: int = 96,
        seed: int = 0,
        split: str = "train",
        *,
        objects: tuple[int, int] = (1, 3),
        fold: int = 0,
        scale: float = 1.0,
        texture: float = 1.0,
        noise: int = 8,
    ):
        smallest = side * scale * _LEAST * _room(objects[1])
        checks = {
            f"seed must be at least 0, got {seed}": seed >= 0,
            f"side must be {SIDES[0]} to {SIDES[1]} pixels, got {side}": SIDES[0] <= side <= SIDES[1],
            f"split must be one of {', '.join(SPLITS)}, got {split!r}": split in SPLITS,
            f"objects must be two ascending numbers from 0 to 6, got {objects}": 0 <= objects[0] <= objects[1] <= 6,
            f"fold must be 0 to 5, got {fold}": fold in range(6),
            f"scale must be above 0 and at most 1.5, got {scale}": 0 < scale <= 1.5,
            f"an object could be {smallest:.1f} pixels wide: take a larger side or scale": smallest >= 3,
            f"texture must be 0 to 2, got {texture}": 0 <= texture <= 2,
            f"noise must be 0 to 255, got {noise}": 0 <= noise <= 255,
        }
        if failed := [message for message, passed in checks.items() if not passed]:
            raise ValueError(f"{failed[0]}.")
        self.side, self.seed, self.split, self.objects = side, seed, split, objects
        self.scale, self.texture, self.noise = scale, texture, noise
        held_out = held_out_combinations(fold)
        every = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        self.combinations = tuple(pair for pair in every if (pair in held_out) == (split == "unseen"))

    def scene(self, index: int) -> Scene:
        """Draw scene `index`, from 0."""
        noise = self._generator(0, index)
        layouts, backdrop = self._layouts(noise), self._backdrop(noise)
        return self._draw(layouts, backdrop, index, noise)

    def scenes(self, count: int, start: int = 0) -> Iterator[Scene]:
        """Draw `count` scenes from number `start` on."""
        return (self.scene(index) for index in range(start, start + count))

    def video(self, index: int, frames: int = 40, crossing: bool = False) -> list[Scene]:
        """Draw a scene whose objects move sideways at constant speed and turn at the picture's edges.

        Args:
            index: The number of the video, from 0.
            frames: How many frames.
            crossing: Show two objects of one colour that pass each other, the near one before the far one.

        Returns:
            One scene per frame. The objects and their numbers in `instances` stay the same from frame to frame.
        """
        noise = self._generator(1, index)
        layouts = self._crossing(noise) if crossing else self._layouts(noise)
        backdrop, steps = self._backdrop(noise), noise.uniform(-1, 1, len(layouts))
        drawn = []
        for frame in range(frames):
            moved = []
            for place, (layout, step) in enumerate(zip(layouts, steps, strict=True)):
                room = 1 - layout.size
                way = (layout.left + step * frame / 40) % (2 * room)
                left = min(way, 2 * room - way)
                if crossing:
                    share = frame / max(1, frames - 1)
                    left = room * (0.05 + 0.9 * (share if place == 0 else 1 - share))
                moved.append(replace(layout, left=left))
            drawn.append(self._draw(moved, backdrop, index, self._generator(2, index, frame)))
        return drawn

    def _generator(self, *key: int) -> np.random.Generator:
        sequence = np.random.SeedSequence((self.seed, SPLITS.index(self.split), *key))
        return np.random.Generator(np.random.PCG64(sequence))

    def _layouts(self, noise: np.random.Generator) -> list[Layout]:
        """Objects far to near, drawn until the near ones leave enough of the far ones visible."""
        count = int(noise.integers(self.objects[0], self.objects[1] + 1))
        columns = max(3, count)
        while True:
            feet = np.sort(noise.uniform(0.15, 0.95, count))
            chosen = noise.integers(0, len(self.combinations), count)
            layouts = []
            for foot, column, pair in zip(feet, noise.permutation(columns)[:count], chosen, strict=True):
                centre = (column + noise.uniform(0.3, 0.7)) / columns
                layouts.append(self._layout(noise, self.combinations[pair], foot, centre, _room(count)))
            if all(seen >= _VISIBLE for seen in visible_shares(layouts)):
                return layouts

    def _crossing(self, noise: np.random.Generator) -> list[Layout]:
        first = self.combinations[noise.integers(0, len(self.combinations))]
        same = [pair for pair in self.combinations if pair[0] == first[0]]
        second = same[noise.integers(0, len(same))]
        while True:  # until the near one can hide at least half of the far one
            foot = noise.uniform(0.35, 0.5)
            feet = foot, foot + noise.uniform(0.1, 0.35) * min(1.0, self.scale)
            far, near = (self._layout(noise, *one, 0.5, 1.0) for one in zip((first, second), feet, strict=True))
            if visible_shares([far, near])[0] <= 0.5:
                return [far, replace(near, rgb=far.rgb)]

    def _layout(
        self, noise: np.random.Generator, pair: tuple[str, str], foot: float, centre: float, room: float
    ) -> Layout:
        distance = FAR + foot * (NEAR - FAR)
        size = min(0.9, 1.1 / distance * noise.uniform(0.8, 1.2) * self.scale * room)
        left = min(max(centre - size / 2, 0.0), 1 - size)
        light = noise.uniform(0.85, 1.05)
        rgb = tuple(light * value + noise.uniform(-10, 10) for value in COLOURS[pair[0]])
        return Layout(pair[1], pair[0], rgb, left, HORIZON + foot * (1 - HORIZON), size, distance)

    def _backdrop(self, noise: np.random.Generator) -> Backdrop:
        """Greyish tints, so that no wall has the colour of an object."""
        tints = noise.integers(70, 190, (2, 1)) + noise.integers(-18, 19, (2, 3))
        patterns = tuple(
            (*(int(noise.integers(*ends)) for ends in ((0, 4), (0, 3), (4, 13))), noise.uniform(-1, 1, (15, 15)))
            for _ in range(2)
        )
        return Backdrop(tints, noise.uniform(6, 22, 2) * self.texture, patterns)

    def _draw(self, layouts: list[Layout], backdrop: Backdrop, index: int, noise: np.random.Generator) -> Scene:
        pixels, instances, depth = render(layouts, backdrop, self.side, self.noise, noise)
        objects = tuple(
            SceneObject(layout.shape, layout.colour, layout.distance, _box(instances == number))
            for number, layout in enumerate(layouts, start=1)
        )
        return Scene(Image.fromarray(pixels), instances, depth, objects, index, self.combinations)


def _room(count: int) -> float:
    """Factor of the objects' sizes: many are smaller."""
    return 4 / max(4, count + 1)


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None
