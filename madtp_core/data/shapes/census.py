"""Partial descriptions of objects, and how many objects of a scene answer to each."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Final, NamedTuple

from madtp_core.data.shapes.scene import COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject

ATTRIBUTES: Final = ("size", "texture", "colour", "shape")  # the order in which English says them
VALUES: Final = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}
_UNSEEN: Final = 0.15  # how often an example has looks drawn from nowhere
_EXTRA_WORD: Final = 0.3  # how often a reference says more than it must


class Description(NamedTuple):
    """Attributes that an object may have; `None` stands for any value."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the attributes that it settles."""
        return tuple(name for name, value in zip(ATTRIBUTES, self, strict=True) if value is not None)

    @property
    def singular(self) -> str:
        """The description as words, such as `large red star` or `striped object`."""
        return " ".join([word for word in self[:3] if word] + [self.shape or "object"])

    @property
    def plural(self) -> str:
        return self.singular + ("es" if self.shape == "cross" else "s")

    @property
    def indefinite(self) -> str:
        """The singular with its article, such as `a red star` or `an orange object`."""
        return ("an " if self.singular[0] in "aeiou" else "a ") + self.singular

    def matches(self, thing: SceneObject) -> bool:
        """Whether an object answers to the description."""
        wanted = zip(ATTRIBUTES, self, strict=True)
        return all(value is None or value == getattr(thing, name) for name, value in wanted)


def describe(thing: SceneObject, attributes: tuple[str, ...]) -> Description:
    """Return the description that names exactly these attributes of an object."""
    return Description(**{attribute: getattr(thing, attribute) for attribute in attributes})


class Census:
    """A scene and the number of its objects that answer to any description, counted once."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._counts = Counter(d for thing in scene.objects for d in _descriptions_of(thing))

    def count(self, description: Description) -> int:
        return self._counts[description]

    def example(self, rng: random.Random) -> SceneObject:
        """Return an object to take looks from: mostly one of the scene, at times any other."""
        if rng.random() >= _UNSEEN:
            return rng.choice(self.scene.objects)
        return SceneObject(**{attribute: rng.choice(VALUES[attribute]) for attribute in ATTRIBUTES}, x=0, y=0)

    def reference(
        self, thing: SceneObject, rng: random.Random, without: str | None = None
    ) -> Description | None:
        """Return a description that only this object answers to, or `None` where there is none.

        Nothing in it can be dropped, except that some references carry one needless attribute.
        The attribute `without` is never named: it is what the question asks for.
        """
        allowed = [a for a in ATTRIBUTES if a != without]
        for length in range(len(allowed) + 1):
            unique = [
                chosen for chosen in combinations(allowed, length) if self.count(describe(thing, chosen)) == 1
            ]
            if unique:
                chosen = rng.choice(unique)
                spare = [a for a in allowed if a not in chosen]
                if spare and length < 3 and rng.random() < _EXTRA_WORD:
                    chosen = (*chosen, rng.choice(spare))
                return describe(thing, chosen)
        return None


def _descriptions_of(thing: SceneObject) -> Iterator[Description]:
    for size in (thing.size, None):
        for texture in (thing.texture, None):
            for colour in (thing.colour, None):
                for shape in (thing.shape, None):
                    yield Description(size, texture, colour, shape)
