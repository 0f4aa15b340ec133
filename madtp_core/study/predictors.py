"""How well figures of a request order requests by their need: rank correlation on held-out requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.rank_correlation import spearman

Floats = NDArray[np.float64]

_FOLDS: Final = 5
_RIDGE: Final = 1.0  # on standardised figures: as much as one request says
_RESAMPLES: Final = 400


@dataclass(frozen=True)
class Correlation:
    """Spearman's, with the bounds of its 95 % interval (percentile bootstrap over requests)."""

    spearman: float
    low: float
    high: float


def correlation(predicted: Floats, need: Floats, seed: int = 0) -> Correlation:
    """How well predictions order the needs."""
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(need), len(need)) for _ in range(_RESAMPLES))
    low, high = np.percentile([spearman(predicted[rows], need[rows]) for rows in draws], (2.5, 97.5))
    return Correlation(spearman(predicted, need), float(low), float(high))


def held_out(figures: Floats, need: Floats, seed: int = 0) -> Floats:
    """What ridge regression on the figures says of each request, fitted on the requests of other folds.

    figures: [requests, figures]; need: [requests]. A recursive least squares that forgets nothing ends at the
    same weights.
    """
    fold = np.random.default_rng(seed).permutation(len(need)) % _FOLDS
    predicted = np.empty(len(need))
    for held in range(_FOLDS):
        known, asked = fold != held, fold == held
        predicted[asked] = _ridge(figures[known], need[known], figures[asked])
    return predicted


def _ridge(known: Floats, need: Floats, asked: Floats) -> Floats:
    centre, spread = known.mean(0), known.std(0)
    varies = spread > 1e-9  # a caption has no text: its columns are constant
    scaled, wanted = ((each - centre)[:, varies] / spread[varies] for each in (known, asked))
    weights = np.linalg.solve(
        scaled.T @ scaled + _RIDGE * np.eye(scaled.shape[1]), scaled.T @ (need - need.mean())
    )
    predicted: Floats = need.mean() + wanted @ weights
    return predicted
