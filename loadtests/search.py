"""The highest rate that still meets an objective: bracketing by doubling, then bisecting. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bracket:
    """`met` is the highest rate that was seen to meet the objective, `missed` the lowest seen to miss it.

    `met` is 0 and `missed` infinite where none was seen.
    """

    met: float
    missed: float


def highest_rate(
    meets: Callable[[float], bool], *, start: float, tolerance: float = 0.05, max_trials: int = 16
) -> Bracket:
    """Find the highest rate that meets an objective of which lower rates are easier.

    Doubles or halves from `start` until one rate meets it and one does not, then bisects geometrically until
    the two are within `tolerance` of each other. `meets` is asked at most `max_trials` times.
    """
    met, missed = 0.0, math.inf
    rate = start
    for _ in range(max_trials):
        if meets(rate):
            met = max(met, rate)
        else:
            missed = min(missed, rate)
        if met and missed <= met * (1 + tolerance):
            break
        if missed == math.inf:
            rate = met * 2
        elif not met:
            rate = missed / 2
        else:
            rate = math.sqrt(met * missed)
    return Bracket(met, missed)
