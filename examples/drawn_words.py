# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions of drawn scenes, and questions about them, in several phrasings.

    >>> from drawn_scenes import SceneGenerator
    >>> from drawn_words import captions, questions
    >>> scene = SceneGenerator().scene(1)
    >>> captions(scene)[1]
    'There is a yellow disc and a green triangle.'
    >>> question = questions(scene)[0]
    >>> question.text, question.answer, question.sentence
    ('How many objects are there?', 'two', 'There are two objects.')

Every caption is true, and every question has one answer: "the disc" is asked about only where there is one disc.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from drawn_scenes import COLOURS, SHAPES, Scene, SceneObject


NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
CAPTIONS = ("{listed}", "There {are} {listed}.", "A picture of {listed}.", "{Listed} on the floor.")
PHRASINGS = {
    "count": (
        "How many {objects} are there?",
        "How many {objects} can you see?",
        "What is the number of {objects} in the picture?",
        "Count the {objects}.",
    ),
    "colour": (
        "What colour is the {shape}?",
        "Which colour does the {shape} have?",
        "What is the colour of the {shape}?",
        "Name the colour of the {shape}.",
    ),
    "shape": (
        "What shape is the {colour} object?",
        "Which shape does the {colour} object have?",
        "What is the shape of the {colour} object?",
        "Name the shape of the {colour} object.",
    ),
    "exists": (
        "Is there {one} in the picture?",
        "Can you see {one}?",
        "Does the picture show {one}?",
        "Do you see {one} anywhere?",
    ),
    "side": (
        "Is the {first} left or right of the {second}?",
        "Is the {first} to the left or to the right of the {second}?",
        "On which side of the {second} is the {first}, left or right?",
        "Seen from the {second}, is the {first} on the left or on the right?",
    ),
    "nearest": (
        "Which object is nearest?",
        "What is the nearest object?",
        "Which object is closest to the camera?",
        "What stands closest to you?",
    ),
}
SENTENCES = {
    "count": "There {are} {number} {counted}.",
    "colour": "The {shape} is {colour}.",
    "shape": "The {colour} object is a {shape}.",
    "yes": "Yes, there is {one}.",
    "no": "No, there is no {name}.",
    "side": "The {first} is {side} of the {second}.",
    "nearest": "The {name} is nearest.",
}
_APART = 0.1  # of the side: objects that are closer have no left and right
_NEARER = 0.5  # metres: a nearest object is nearer by this, at least


@dataclass(frozen=True)
class Question:
    """A question with one answer.

    Args:
        kind: A key of `PHRASINGS`.
        phrasing: Which of its phrasings, from 0: hold one out to measure phrasings that training never showed.
        text: The question.
        answer: In a word, or a colour and a shape.
        sentence: The same answer as a sentence.
    """

    kind: str
    phrasing: int
    text: str
    answer: str
    sentence: str


def captions(scene: Scene) -> list[str]:
    """Captions that are true of a scene.

    Returns:
        What is there, once for each of `CAPTIONS`; then, where the scene has them, which object is left of which (in
        two phrasings for each pair) and which is nearest.
    """
    listed, count = listing(scene), len(scene.objects)
    if not count:
        listed = "nothing"
    are = "are" if listed.startswith(NUMBERS[2:]) else "is"
    found = [form.format(listed=listed, Listed=_capital(listed), are=are) for form in CAPTIONS]
    for first, second in _sides(scene):
        if _centre(first) < _centre(second):
            found.append(f"{_one(first.name)} to the left of {_one(second.name)}")
            found.append(f"The {first.name} is left of the {second.name}.")
    if nearest := _nearest(scene):
        found.append(f"The nearest object is {_one(nearest.name)}.")
    return found


def listing(scene: Scene) -> str:
    """What is there, far to near: "two red squares and a blue disc"."""
    counts = Counter(thing.name for thing in scene.objects)
    groups = [_one(name) if count == 1 else f"{NUMBERS[count]} {name}s" for name, count in counts.items()]
    return " and ".join([", ".join(groups[:-1]), groups[-1]] if len(groups) > 1 else groups)


def questions(scene: Scene) -> list[Question]:
    """Every question about a scene, in every phrasing of its kind.

    "Is there" asks for each name in the scene and for as many that are not there but could be: never for combinations
    of colour and shape that the split of the scene holds out. A scene that shows all there could be is not asked.
    """
    return [
        Question(kind, number, form.format(**words), answer, SENTENCES[ending].format(**words))
        for kind, ending, answer, words in _facts(scene)
        for number, form in enumerate(PHRASINGS[kind])
    ]


def _facts(scene: Scene) -> Iterator[tuple[str, str, str, dict[str, str]]]:
    """Kind of question, kind of sentence, answer, and the words for both."""
    names = Counter(thing.name for thing in scene.objects)
    shapes = {shape: sum(thing.shape == shape for thing in scene.objects) for shape in SHAPES}
    colours = Counter(thing.colour for thing in scene.objects)
    absent_colours = [colour for colour in COLOURS if colour not in colours]
    asked = {"object": len(scene.objects), **shapes, **names}
    asked.update({f"{colour} object": count for colour, count in colours.items()})
    asked[f"{absent_colours[scene.index % len(absent_colours)]} object"] = 0
    for name, count in asked.items():
        words = {"objects": f"{name}s", "number": NUMBERS[count], "are": "are", "counted": f"{name}s"}
        if count == 1:
            words.update(are="is", counted=name)
        yield "count", "count", NUMBERS[count] if count else "zero", words
    for thing in scene.objects:
        words = {"shape": thing.shape, "colour": thing.colour}
        if shapes[thing.shape] == 1:
            yield "colour", "colour", thing.colour, words
        if colours[thing.colour] == 1:
            yield "shape", "shape", thing.shape, words
    absent = [f"{colour} {shape}" for colour, shape in scene.combinations if f"{colour} {shape}" not in names]
    for place, name in enumerate(names if absent else ()):
        yield "exists", "yes", "yes", {"one": _one(name)}
        other = absent[(5 * scene.index + place) % len(absent)]
        yield "exists", "no", "no", {"one": _one(other), "name": other}
    for first, second in _sides(scene):
        side = "left" if _centre(first) < _centre(second) else "right"
        yield "side", "side", side, {"first": first.name, "second": second.name, "side": side}
    if nearest := _nearest(scene):
        yield "nearest", "nearest", nearest.name, {"name": nearest.name}


def _sides(scene: Scene) -> Iterator[tuple[SceneObject, SceneObject]]:
    """Ordered pairs of visible objects with names of their own that stand apart sideways."""
    names = Counter(thing.name for thing in scene.objects)
    alone = [thing for thing in scene.objects if names[thing.name] == 1 and thing.box]
    for first in alone:
        for second in alone:
            if first is not second and abs(_centre(first) - _centre(second)) >= _APART * len(scene.instances):
                yield first, second


def _nearest(scene: Scene) -> SceneObject | None:
    """The nearest of at least two objects, if it is clearly nearer."""
    if len(scene.objects) > 1 and scene.objects[-2].distance - scene.objects[-1].distance >= _NEARER:
        return scene.objects[-1]
    return None


def _centre(thing: SceneObject) -> float:
    return (thing.box[0] + thing.box[2]) / 2


def _one(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
