"""Recall of a ranking in which candidates may tie."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
from numpy.typing import NDArray


def recall_at(k: int, scores: Sequence[float] | NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """The chance that one of the right candidates stands among the first k, ties broken at random.

    scores, right: [candidates]. So a model that scores everything alike gets what guessing gets, not 0 or 1.
    """
    values = np.asarray(scores)
    if not right.any():
        return 0.0
    best = values[right].max()
    free = k - int((values > best).sum())  # places left for those that tie with the best right one
    if free <= 0:
        return 0.0
    tied = int((values == best).sum())
    wrong = tied - int((values[right] == best).sum())
    return 1.0 if free > wrong else 1.0 - comb(wrong, free) / comb(tied, free)
