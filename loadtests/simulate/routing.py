"""To which replica of a fleet a request goes."""

from __future__ import annotations

import random
from typing import Protocol

import numpy as np

from loadtests.errors import LoadTestError
from loadtests.simulate.workload import Array

ROUTINGS = ("random", "round-robin", "least-tokens", "difficulty")


class Routing(Protocol):
    """Chooses a replica by the request's predicted need and the predicted tokens inside every replica."""

    def __call__(self, predicted: float, tokens_inside: Array) -> int: ...


class ByDifficulty:
    """Replicas stand along the axis of difficulty, each with an equal share of the work.

    A request goes to the least loaded of those next to its place: near enough to find mates like itself, far
    enough that no queue grows while its neighbour's is empty. sample: predictions seen before.
    """

    def __init__(self, sample: Array, replicas: int, neighbours: int) -> None:
        self._sorted = np.sort(sample)
        work = np.cumsum(self._sorted)
        self._places = work / work[-1] * replicas
        self._neighbours = min(neighbours, replicas)

    def __call__(self, predicted: float, tokens_inside: Array) -> int:
        at = min(int(np.searchsorted(self._sorted, predicted)), len(self._sorted) - 1)
        first = int(self._places[at] - self._neighbours / 2 + 0.5)
        first = min(max(first, 0), len(tokens_inside) - self._neighbours)
        return first + int(np.argmin(tokens_inside[first : first + self._neighbours]))


def make_routing(name: str, sample: Array, replicas: int, seed: int) -> Routing:
    """A routing by its name; raises LoadTestError for one that is not known."""
    if name == "random":
        rng = random.Random(seed)
        return lambda predicted, tokens_inside: rng.randrange(replicas)
    if name == "round-robin":
        count = iter(range(1 << 62))
        return lambda predicted, tokens_inside: next(count) % replicas
    if name == "least-tokens":
        return lambda predicted, tokens_inside: int(np.argmin(tokens_inside))
    if name == "difficulty":
        return ByDifficulty(sample, replicas, neighbours=max(2, replicas // 8))
    raise LoadTestError(f"unknown routing {name!r}; known: {', '.join(ROUTINGS)}")
