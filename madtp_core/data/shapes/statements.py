"""Statements over two scenes side by side, true or false as wanted (the task of NLVR2)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, NamedTuple

from madtp_core.data.shapes.captions import NUMBER_WORDS, counted
from madtp_core.data.shapes.census import ATTRIBUTES, Census, Description, describe
from madtp_core.data.shapes.scene import Scene

_ATTEMPTS: Final = 20

# What is said, and when it is true of `left` and `right` objects and the `number` that is named.
_CLAIMS: Final[dict[str, Callable[[int, int, int], bool]]] = {
    "the left image contains more {plural} than the right image": lambda left, right, _: left > right,
    "the right image contains more {plural} than the left image": lambda left, right, _: right > left,
    "there are fewer {plural} in the left image than in the right image": lambda left, right, _: left < right,
    "there are fewer {plural} in the right image than in the left image": lambda left, right, _: right < left,
    "both images contain the same number of {plural}": lambda left, right, _: left == right,
    "both images contain {indefinite}": lambda left, right, _: left > 0 and right > 0,
    "neither image contains {indefinite}": lambda left, right, _: left + right == 0,
    "at least one image contains {indefinite}": lambda left, right, _: left + right > 0,
    "only the left image contains {indefinite}": lambda left, right, _: left > 0 and right == 0,
    "only the right image contains {indefinite}": lambda left, right, _: right > 0 and left == 0,
    "there are exactly {counted} in total": lambda left, right, number: left + right == number,
    "the two images together contain exactly {counted}": lambda left, right, number: left + right == number,
    "exactly {counted} can be seen in the left image": lambda left, _, number: left == number,
    "exactly {counted} can be seen in the right image": lambda _, right, number: right == number,
}


class Statement(NamedTuple):
    """A sentence about two images, whether it holds, and which objects it speaks of."""

    text: str
    holds: bool
    about: Description


def statement(left: Scene, right: Scene, rng: random.Random) -> tuple[str, bool]:
    """Return a statement about two images, and whether it holds; half of them do."""
    return statement_about(left, right, rng)[:2]


def statement_about(left: Scene, right: Scene, rng: random.Random) -> Statement:
    """Return a statement about two images; half of them hold.

    Its truth is drawn first, then the claim, and then objects to speak of that make it so: hence each
    claim is true about as often as false, and words alone do not give the truth away.
    """
    censuses = Census(left), Census(right)
    wanted = rng.random() < 0.5
    while True:
        claim, holds = rng.choice(list(_CLAIMS.items()))
        for _ in range(_ATTEMPTS):
            named = rng.sample(ATTRIBUTES, rng.choice((1, 1, 2, 2, 3)))
            description = describe(rng.choice(censuses).example(rng), tuple(named))
            on_left, on_right = (census.count(description) for census in censuses)
            number = rng.choice((on_left, on_right, on_left + on_right)) + rng.choice((-1, 0, 0, 1))
            if 1 <= number < len(NUMBER_WORDS) and holds(on_left, on_right, number) == wanted:
                text = claim.format(
                    plural=description.plural,
                    indefinite=description.indefinite,
                    counted=counted(description, number),
                )
                return Statement(text, wanted, description)
