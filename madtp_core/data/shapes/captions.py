"""Five captions of one scene, from its count down to how two of its objects stand to each other."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Final

from madtp_core.data.shapes.census import ATTRIBUTES, Description, describe
from madtp_core.data.shapes.questions import relations
from madtp_core.data.shapes.scene import Scene, layout_hash

NUMBER_WORDS: Final = (
    *("no", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
_BACKGROUND_WORDS: Final = {
    "plain": "plain",
    "gradient": "shaded",
    "stripes": "lined",
    "noise": "grainy",
    "confetti": "speckled",
}
_RELATION_WORDS: Final = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_LISTED_COLOURS: Final = 4
_LISTED_OBJECTS: Final = 3


def captions(scene: Scene) -> tuple[str, str, str, str, str]:
    """Return five captions, all true of the scene and always the same for it.

    In this order: how many objects on what background, the number of each shape, the number of the
    commonest colours, up to three objects in full, and the relation of two objects.
    """
    rng = random.Random(layout_hash(scene))
    background = f"a {_BACKGROUND_WORDS[scene.background.kind]} background"
    return (
        f"{counted(Description(), scene.num_objects)} on {background}",
        _listed(_tally(scene, "shape")),
        _listed(_tally(scene, "colour")[:_LISTED_COLOURS]),
        _few_objects(scene, rng),
        _one_relation(scene, rng),
    )


def counted(description: Description, number: int) -> str:
    """Return a number of objects in words, such as `two red stars` or `no circles`."""
    return f"{NUMBER_WORDS[number]} {description.singular if number == 1 else description.plural}"


def _tally(scene: Scene, attribute: str) -> list[str]:
    """Return how many objects share each value of an attribute, the commonest value first."""
    tally = Counter(describe(thing, (attribute,)) for thing in scene.objects)
    return [counted(description, number) for description, number in tally.most_common()]


def _few_objects(scene: Scene, rng: random.Random) -> str:
    chosen = rng.sample(scene.objects, min(_LISTED_OBJECTS, scene.num_objects))
    return _listed([describe(thing, ATTRIBUTES).indefinite for thing in chosen])


def _one_relation(scene: Scene, rng: random.Random) -> str:
    pairs = [(one, other) for one in scene.objects for other in scene.objects if relations(one, other)]
    if not pairs:  # a single object: distinct cells always differ by half a cell
        return f"nothing but {describe(scene.objects[0], ('size', 'colour', 'shape')).indefinite}"
    one, other = rng.choice(pairs)
    relation = _RELATION_WORDS[rng.choice(relations(one, other))]
    first, second = (describe(thing, ("colour", "shape")).indefinite for thing in (one, other))
    return f"{first} {relation} {second}"


def _listed(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
