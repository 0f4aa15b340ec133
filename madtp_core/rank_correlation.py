"""Spearman's rank correlation, equal values sharing their mean rank. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def ranks(values: Floats) -> Floats:
    """Places from 0 on, equal values sharing the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(count) - count
    shared: Floats = (first + (count - 1) / 2)[place]
    return shared


def spearman(one: Floats, other: Floats) -> float:
    """Rank correlation; 0 where either is constant."""
    a, b = (ranks(values) - (len(values) - 1) / 2 for values in (one, other))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0
