"""Requests of the simulator: when they come, what they need, and what a predictor says of it. Seeded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtests.arrivals import Segment, arrival_times_s
from loadtests.errors import LoadTestError

Array = NDArray[np.float64]

EASY, HARD = (0.26, 0.025), (0.52, 0.04)  # mean and deviation of the need
HARD_SHARES = {"90:10": 0.1, "easy": 0.0, "hard": 1.0}
UNIFORM = (0.15, 0.65)
MIXES = ("uniform", *HARD_SHARES)
LEAST_NEED, MOST_NEED = 0.05, 0.95


@dataclass(frozen=True)
class Workload:
    """Requests in the order of their arrival.

    arrival_s: [N]. needs: [N, blocks], share of the tokens at prune temperature 0. predicted: [N].
    """

    arrival_s: Array
    needs: Array
    predicted: Array

    def __len__(self) -> int:
        return len(self.arrival_s)


def draw_needs(mix: str, count: int, blocks: int, block_noise: float, rng: np.random.Generator) -> Array:
    """Needs [count, blocks]: each request has one of its own, from which blocks depart by a factor e^noise.

    Raises LoadTestError for an unknown mix.
    """
    if mix == "uniform":
        own = rng.uniform(*UNIFORM, count)
    elif mix in HARD_SHARES:
        is_hard = rng.random(count) < HARD_SHARES[mix]
        own = np.where(is_hard, rng.normal(*HARD, count), rng.normal(*EASY, count))
    else:
        raise LoadTestError(f"unknown mix {mix!r}; known: {', '.join(MIXES)}")
    noise = rng.normal(0.0, block_noise, (count, blocks)) if blocks > 1 else np.zeros((count, 1))
    return np.clip(own[:, None] * np.exp(noise), LEAST_NEED, MOST_NEED)


def predict(needs: Array, rank_correlation: float, rng: np.random.Generator) -> Array:
    """Predictions [N] of the needs [N] with their distribution and about this rank correlation (Spearman's).

    A Gaussian copula: Spearman's r is Pearson's 2 sin(pi r / 6) of the normal scores.
    """
    if rank_correlation >= 1:
        return needs.copy()
    pearson = 2 * math.sin(math.pi * rank_correlation / 6)
    order = np.argsort(needs, kind="stable")
    scores = np.empty(len(needs))
    scores[order] = np.sort(rng.standard_normal(len(needs)))
    noisy = pearson * scores + math.sqrt(1 - pearson**2) * rng.standard_normal(len(needs))
    predicted = np.empty(len(needs))
    predicted[np.argsort(noisy, kind="stable")] = needs[order]
    return predicted


def draw_workload(
    mix: str,
    segments: list[Segment],
    rank_correlation: float,
    *,
    blocks: int,
    block_noise: float,
    seed: int,
) -> Workload:
    """A Poisson stream that follows the segments' rates; equal seeds give equal workloads."""
    arrival_s = np.array(arrival_times_s(segments, cv=1.0, seed=seed))
    rng = np.random.default_rng(seed)
    needs = draw_needs(mix, len(arrival_s), blocks, block_noise, rng)
    return Workload(arrival_s, needs, predict(needs.mean(1), rank_correlation, rng))
