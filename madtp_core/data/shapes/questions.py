"""Questions about one scene, with answers that follow from it: eight families, several phrasings each."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from madtp_core.data.shapes.census import ATTRIBUTES, VALUES, Census, Description, describe
from madtp_core.data.shapes.scene import COLOURS, MAX_OBJECTS, SHAPES, SIZES, TEXTURES, Scene, SceneObject

ANSWERS: Final = ("yes", "no", *map(str, range(MAX_OBJECTS + 1)), *COLOURS, *SHAPES, *SIZES, *TEXTURES)
MIN_OFFSET: Final = 12  # units, half a cell: nearer centres stand neither left nor right of each other
MAX_WORDS: Final = 14
_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class Question:
    """A question in lower case, its one right answer, its family, and the descriptions it names in order."""

    text: str
    answer: str
    family: str
    about: tuple[Description, ...]


_Asked = tuple[str, str, tuple[Description, ...]]  # text, answer and descriptions
_Builder = Callable[[Census, random.Random], _Asked | None]

_PHRASINGS: Final = {
    "colour": (
        "what color is the {}?",
        "what is the color of the {}?",
        "which color does the {} have?",
    ),
    "shape": (
        "what shape is the {}?",
        "what is the shape of the {}?",
        "which shape does the {} have?",
    ),
    "size": (
        "what size is the {}?",
        "is the {} small or large?",
        "how big is the {}?",
    ),
    "texture": (
        "what texture does the {} have?",
        "what pattern does the {} have?",
        "how is the {} filled?",
    ),
    "count": (
        "how many {} are there?",
        "how many {} do you see?",
        "what is the number of {}?",
    ),
    "existence": (
        "is there {}?",
        "does the image contain {}?",
        "can you see {}?",
    ),
    "more": (
        "are there more {} than {}?",
        "does the image show more {} than {}?",
    ),
    "fewer": (
        "are there fewer {} than {}?",
        "does the image show fewer {} than {}?",
    ),
    "equal": (
        "are there as many {} as {}?",
        "is the number of {} equal to the number of {}?",
    ),
    "left": ("is the {} left of the {}?", "is the {} to the left of the {}?"),
    "right": ("is the {} right of the {}?", "is the {} to the right of the {}?"),
    "above": ("is the {} above the {}?", "is the {} higher than the {}?"),
    "below": ("is the {} below the {}?", "is the {} lower than the {}?"),
}


def questions(
    scene: Scene, rng: random.Random, count: int, weights: Mapping[str, float] | None = None
) -> list[Question]:
    """Return `count` questions whose families are drawn uniformly among those the scene allows.

    weights: how often each family is tried first, instead; above zero, families left out count 1. A text is
    asked twice only where the scene offers too few; every text has at most 14 words.
    """
    census = Census(scene)
    asked: dict[str, Question] = {}
    for _ in range(_ATTEMPTS * count):
        if len(asked) == count:
            break
        question = _ask(census, rng, weights)
        asked.setdefault(question.text, question)
    distinct = list(asked.values())
    return distinct + [rng.choice(distinct) for _ in range(count - len(distinct))]


def _ask(census: Census, rng: random.Random, weights: Mapping[str, float] | None) -> Question:
    for family in _in_turn(rng, weights):
        asked = _BUILDERS[family](census, rng)
        if asked is not None:
            text, answer, about = asked
            return Question(text, answer, family, about)
    raise AssertionError("every scene has objects to count")


def _in_turn(rng: random.Random, weights: Mapping[str, float] | None) -> list[str]:
    """Every family once, those of greater weight rather earlier (Efraimidis and Spirakis, 2006)."""
    if weights is None:
        return rng.sample(FAMILIES, len(FAMILIES))
    return sorted(FAMILIES, key=lambda family: -(rng.random() ** (1 / weights.get(family, 1.0))))


def _phrase(kind: str, rng: random.Random, *parts: str) -> str:
    texts = [phrasing.format(*parts) for phrasing in _PHRASINGS[kind]]
    return rng.choice([text for text in texts if len(text.split()) <= MAX_WORDS])


def _ask_attribute(attribute: str) -> _Builder:
    """Build questions for one attribute of an object that its other attributes single out."""

    def ask(census: Census, rng: random.Random) -> _Asked | None:
        objects = census.scene.objects
        for thing in rng.sample(objects, len(objects)):
            reference = census.reference(thing, rng, without=attribute)
            if reference is not None:
                return _phrase(attribute, rng, reference.singular), getattr(thing, attribute), (reference,)
        return None

    return ask


def _ask_count(census: Census, rng: random.Random) -> _Asked:
    named = rng.choice(((), ("colour",), ("shape",), ("size",), ("texture",), ("colour", "shape")))
    description = describe(census.example(rng), named)
    return _phrase("count", rng, description.plural), str(census.count(description)), (description,)


def _ask_existence(census: Census, rng: random.Random) -> _Asked:
    absent = _absent(census, rng, tuple(rng.sample(ATTRIBUTES, rng.choice((1, 2, 2, 2, 3, 3, 4)))))
    named = absent.attributes  # settled before the answer is, so that they do not tell it
    if rng.random() < 0.5:
        found = describe(rng.choice(census.scene.objects), named)
        return _phrase("existence", rng, found.indefinite), "yes", (found,)
    for _ in range(_ATTEMPTS):  # at best, the scene has every word of it, but on different objects
        mixed = Description(**{a: getattr(rng.choice(census.scene.objects), a) for a in named})
        if not census.count(mixed):
            return _phrase("existence", rng, mixed.indefinite), "no", (mixed,)
    return _phrase("existence", rng, absent.indefinite), "no", (absent,)


def _ask_comparison(census: Census, rng: random.Random) -> _Asked | None:
    wanted = rng.random() < 0.5
    kind = rng.choice(("more", "fewer", "equal"))
    for _ in range(_ATTEMPTS):
        first, second = (describe(census.example(rng), (rng.choice(ATTRIBUTES),)) for _ in range(2))
        left, right = census.count(first), census.count(second)
        if first == second or not left + right:
            continue
        if {"more": left > right, "fewer": left < right, "equal": left == right}[kind] == wanted:
            return _phrase(kind, rng, first.plural, second.plural), _yes(wanted), (first, second)
    return None


def _ask_relation(census: Census, rng: random.Random) -> _Asked | None:
    wanted = rng.random() < 0.5
    objects = census.scene.objects
    for _ in range(_ATTEMPTS if len(objects) > 1 else 0):
        one, other = rng.sample(objects, 2)
        true_relations = relations(one, other)
        first, second = census.reference(one, rng), census.reference(other, rng)
        if true_relations and first and second:
            relation = rng.choice(true_relations)
            said = relation if wanted else _OPPOSITE[relation]
            return _phrase(said, rng, first.singular, second.singular), _yes(wanted), (first, second)
    return None


def relations(one: SceneObject, other: SceneObject) -> list[str]:
    """Return how `one` clearly stands to `other`: `left` or `right`, `above` or `below`, both or neither."""
    found = []
    if abs(one.x - other.x) >= MIN_OFFSET:
        found.append("left" if one.x < other.x else "right")
    if abs(one.y - other.y) >= MIN_OFFSET:
        found.append("above" if one.y < other.y else "below")
    return found


def _absent(census: Census, rng: random.Random, named: tuple[str, ...]) -> Description:
    """Return a description that nothing answers to, with more attributes than `named` where needed."""
    while True:
        for _ in range(_ATTEMPTS):
            description = Description(**{a: rng.choice(VALUES[a]) for a in named})
            if not census.count(description):
                return description
        named = (*named, rng.choice([a for a in ATTRIBUTES if a not in named]))


def _yes(claim: bool) -> str:
    return "yes" if claim else "no"


_OPPOSITE: Final = {"left": "right", "right": "left", "above": "below", "below": "above"}
_BUILDERS: Final[dict[str, _Builder]] = {
    "colour": _ask_attribute("colour"),
    "shape": _ask_attribute("shape"),
    "size": _ask_attribute("size"),
    "texture": _ask_attribute("texture"),
    "count": _ask_count,
    "existence": _ask_existence,
    "comparison": _ask_comparison,
    "relation": _ask_relation,
}
FAMILIES: Final = tuple(_BUILDERS)
