# Copyright 2026 The eupe-hf authors. Licensed under the Apache License, Version 2.0.
"""Captions and questions of drawn scenes: true, with one answer, in every phrasing, in sound English."""

import doctest
import re
from collections import Counter

import pytest
from scenes_common import drawn_scenes, drawn_words


Scene, SceneGenerator, SceneObject = drawn_scenes.Scene, drawn_scenes.SceneGenerator, drawn_scenes.SceneObject
NUMBERS = {"a": 1, "an": 1, **{word: number for number, word in enumerate(drawn_words.NUMBERS)}, "zero": 0}
PAIR = r"(\w+ (?:disc|square|triangle))"


@pytest.fixture(scope="module", params=drawn_scenes.SPLITS[:1] + drawn_scenes.SPLITS[-1:])
def scenes(request: pytest.FixtureRequest) -> list[Scene]:
    return [*SceneGenerator(64, seed=1, split=request.param, objects=(1, 5)).scenes(80)]


def named(scene: Scene, name: str) -> SceneObject:
    """The one object that has this name."""
    (thing,) = [thing for thing in scene.objects if thing.name == name]
    return thing


def middle(thing: SceneObject) -> float:
    return (thing.box[0] + thing.box[2]) / 2


def count(scene: Scene, words: str) -> int:
    """How many objects "red discs", "discs", "red objects" or "objects" are."""
    words = [word.removesuffix("s") for word in words.split() if word not in ("object", "objects")]
    return sum(set(words) <= {thing.colour, thing.shape} for thing in scene.objects)


def test_the_docstrings_are_true() -> None:
    assert doctest.testmod(drawn_words).failed == 0


def test_captions_are_true(scenes: list[Scene]) -> None:
    seen: Counter[str] = Counter()
    for scene in scenes:
        for caption in drawn_words.captions(scene):
            if found := re.fullmatch(
                rf"(?:an? |The ){PAIR} (?:to the left|is left) of (?:an?|the) {PAIR}\.?", caption
            ):
                first, second = (named(scene, name) for name in found.groups())
                assert middle(first) < middle(second)
                seen["side"] += 1
            elif found := re.fullmatch(rf"The nearest object is an? {PAIR}\.", caption):
                assert min(scene.objects, key=lambda thing: thing.distance).name == found[1]
                seen["nearest"] += 1
            else:
                groups = re.findall(rf"\b([Aa]n?|two|three|four|five|Two|Three|Four|Five) {PAIR}", caption)
                told = {name: NUMBERS[number.lower()] for number, name in groups}
                assert told == Counter(thing.name for thing in scene.objects), caption
                seen["listed"] += 1
    assert seen["listed"] == 4 * len(scenes) and seen["side"] > 80 and seen["nearest"] > 10


def test_answers_are_right(scenes: list[Scene]) -> None:
    used: dict[str, set[int]] = {kind: set() for kind in drawn_words.PHRASINGS}
    answers: dict[str, Counter] = {kind: Counter() for kind in drawn_words.PHRASINGS}
    for scene in scenes:
        for question in drawn_words.questions(scene):
            used[question.kind].add(question.phrasing)
            answers[question.kind][question.answer] += 1
            check = globals()[f"check_{question.kind}"]
            check(scene, question.text, question.answer, question.sentence)
    assert used == {kind: set(range(len(forms))) for kind, forms in drawn_words.PHRASINGS.items()}
    assert set(answers["colour"]) == {colour for colour, _ in scenes[0].combinations}
    assert set(answers["shape"]) == set(drawn_scenes.SHAPES)
    assert answers["exists"]["yes"] == answers["exists"]["no"] and answers["side"]["left"] == answers["side"]["right"]
    assert {"zero", "one", "two", "three"} <= set(answers["count"])


def check_count(scene: Scene, text: str, answer: str, sentence: str) -> None:
    asked = re.search(r"(?:How many|number of|Count the) ((?:\w+ )?\w+s)\b", text)[1]
    verb, number, told = re.fullmatch(r"There (is|are) (\w+) (.+)\.", sentence).groups()
    assert NUMBERS[answer] == NUMBERS[number] == count(scene, asked) == count(scene, told)
    assert (verb == "is") == (NUMBERS[answer] == 1) == (not told.endswith("s"))


def check_colour(scene: Scene, text: str, answer: str, sentence: str) -> None:
    shape = re.search("disc|square|triangle", text)[0]
    assert [thing.colour for thing in scene.objects if thing.shape == shape] == [answer]
    assert sentence == f"The {shape} is {answer}."


def check_shape(scene: Scene, text: str, answer: str, sentence: str) -> None:
    colour = re.search(r"(\w+) object", text)[1]
    assert [thing.shape for thing in scene.objects if thing.colour == colour] == [answer]
    assert sentence == f"The {colour} object is a {answer}."


def check_exists(scene: Scene, text: str, answer: str, sentence: str) -> None:
    article, name = re.search(rf"\b(an?) {PAIR}", text).groups()
    assert (name in [thing.name for thing in scene.objects]) == (answer == "yes")
    assert tuple(name.split()) in scene.combinations  # no other split shows it
    assert (article == "an") == name.startswith("orange")
    told = {"yes": f"Yes, there is {article} {name}.", "no": f"No, there is no {name}."}
    assert sentence == told[answer]


def check_side(scene: Scene, text: str, answer: str, sentence: str) -> None:
    first, second = re.fullmatch(rf"The {PAIR} is {answer} of the {PAIR}\.", sentence).groups()
    assert {first, second} == set(re.findall(PAIR, text)) and len({first, second}) == 2
    asked = re.search(rf"(?:Is|is) the {PAIR}", text)[1]
    assert asked == first
    assert (middle(named(scene, first)) < middle(named(scene, second))) == (answer == "left")


def check_nearest(scene: Scene, text: str, answer: str, sentence: str) -> None:
    *others, nearest = sorted(scene.objects, key=lambda thing: -thing.distance)
    assert nearest.name == answer and sentence == f"The {answer} is nearest."
    assert others[-1].distance - nearest.distance >= 0.5


def test_an_empty_scene_has_words_too() -> None:
    scene = SceneGenerator(64, objects=(0, 0)).scene(2)
    assert drawn_words.captions(scene)[1] == "There is nothing."
    assert {question.answer for question in drawn_words.questions(scene)} == {"zero"}


def test_lists_are_sound_english() -> None:
    told = set()
    for scene in SceneGenerator(64, seed=2, objects=(3, 3)).scenes(400):
        told.add(re.sub(r"\w+ (disc|square|triangle)", "X", drawn_words.captions(scene)[1]))
    assert {"There is a X, a X and a X.", "There are two Xs and a X.", "There is a X and two Xs."} <= told
