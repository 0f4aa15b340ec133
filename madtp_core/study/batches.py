"""What max-keep keeps when requests are batched in one order or another, from what each needs alone.

In a block every sequence of a batch keeps as many tokens as the neediest one needs. For the first block that
is exact. Later blocks are an approximation: there, a request that had to keep more needs another number than
alone. `study.really_run` says how good it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.pruning import VISION
from madtp_core.study.observe import Observation

Floats = NDArray[np.float64]
Rows = Sequence[int]

WINDOW_BATCHES: Final = 8  # how far ahead of its arrival a request may be sorted


def windows(count: int, batch_size: int) -> list[Rows]:
    """Arrivals in groups that are sorted at once, only whole ones; at least one."""
    size = min(WINDOW_BATCHES * batch_size, count)
    return [range(start, start + size) for start in range(0, count - size + 1, size)]


def sorted_batches(arrivals: Rows, key: Floats | None, batch_size: int) -> list[list[int]]:
    """Batches of requests in arrival order, or sorted within windows by a key of each request."""
    batches = []
    for window in windows(len(arrivals), batch_size):
        rows = [arrivals[place] for place in window]
        if key is not None:
            rows.sort(key=lambda row: float(key[row]))
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return batches


def needed_over_kept(requests: Sequence[Observation], batches: Iterable[Rows]) -> float:
    """Tokens needed / tokens kept over all blocks, if every batch runs through as it is."""
    needed = kept = 0
    for rows in batches:
        own_needed, own_kept = _counts([requests[row] for row in rows])
        needed, kept = needed + own_needed, kept + own_kept
    return needed / kept


def regrouped(
    requests: Sequence[Observation], arrivals: Rows, batch_size: int, blocks: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Batches for the first blocks of the image tower, and those for all that follows.

    The first are in arrival order; then each window is sorted by what the last of these blocks needed.
    """
    so_far = np.array([request.image_need(blocks - 1) for request in requests])
    return sorted_batches(arrivals, None, batch_size), sorted_batches(arrivals, so_far, batch_size)


def needed_over_kept_regrouped(
    requests: Sequence[Observation], arrivals: Rows, batch_size: int, blocks: int
) -> float:
    """Tokens needed / tokens kept, if requests change batches after so many blocks of the image tower."""
    before, after = regrouped(requests, arrivals, batch_size, blocks)
    needed = kept = 0
    for batches, first, last in ((before, 0, blocks), (after, blocks, None)):
        for rows in batches:
            own_needed, own_kept = _counts([requests[row] for row in rows], first, last)
            needed, kept = needed + own_needed, kept + own_kept
    return needed / kept


def _counts(requests: Sequence[Observation], first: int = 0, last: int | None = None) -> tuple[int, int]:
    """Tokens needed and kept by one batch.

    first, last: blocks of the image tower that count; whatever runs after it counts with its last block.
    """
    needed = kept = 0
    for kind in requests[0].sequences:
        every = [sequence for request in requests for sequence in request.sequences[kind]]
        dense = np.array([tokens for tokens, _ in every])[:, None]  # [sequences, 1]
        needs = np.array([per_block for _, per_block in every])  # [sequences, blocks]
        if kind == VISION:
            needs = needs[:, first:last]
        elif last is not None:
            continue
        needed += int(needs.sum())
        kept += int(np.minimum(needs.max(0, keepdims=True), dense).sum())
    return needed, kept
