"""A figure against its bar, and the arithmetic that leads to figures: pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """One bar. figure, bar: as they are printed. is_met: None where a figure is only stated."""

    what: str
    figure: str
    bar: str
    is_met: bool | None

    def __str__(self) -> str:
        return f"{self.what}: {self.figure} (bar: {self.bar}): {self.said}"

    @property
    def said(self) -> str:
        """How the bar stands, in words."""
        return {True: "met", False: "not met", None: "stated"}[self.is_met]


def window_means(values: Sequence[float], window: int) -> list[float]:
    """Means of consecutive windows that do not overlap; the rest is left out, of few values all are one."""
    if len(values) < window:
        return [float(np.mean(values))]
    ends = range(window, len(values) + 1, window)
    return [float(np.mean(values[end - window : end])) for end in ends]


def largest_miss(means: Sequence[float], target: float) -> float:
    """The mean that is furthest from the target, as its relative error with its sign."""
    return max((mean / target - 1 for mean in means), key=abs)


def steady_rate_per_s(finished_s: Sequence[float], margin: int) -> float:
    """Answers a second, those left out that a start or an end may have hurried or delayed.

    finished_s: times of all answers in any order. margin: answers left out at each end, at most a quarter.
    """
    ordered = sorted(finished_s)
    margin = min(margin, len(ordered) // 4)
    first, last = ordered[margin], ordered[-1 - margin]
    return (len(ordered) - 1 - 2 * margin) / (last - first)
