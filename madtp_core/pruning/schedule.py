"""Kept counts per block that spend a wanted share of a branch's multiply-adds: plain integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, BranchTrace, Scoring

BranchMacs = Callable[[BranchTrace, Scoring | None], int]

TOLERANCE = 0.01  # of the wanted share; one token of an image, where that is more
_BISECTIONS = 32


@dataclass(frozen=True)
class BranchGeometry:
    """What a schedule must know of a branch.

    macs: multiply-adds of one of its sequences, from its trace and the method's own scoring. head_width: D.
    grid: patches of an image as (rows, columns); None for a text, whose length varies by request. whole_macs:
    as macs before parameters were pruned from the model; None where none were.
    """

    macs: BranchMacs
    blocks: int
    head_width: int
    grid: tuple[int, int] | None = None
    whole_macs: BranchMacs | None = None

    @property
    def tokens(self) -> int | None:
        """Unpruned tokens, class token left out, where every sequence has as many."""
        return None if self.grid is None else self.grid[0] * self.grid[1]

    def flops_ratio(self, trace: BranchTrace, scoring: Scoring | None) -> float:
        """Multiply-adds spent, scoring included, as a share of the same sequence's with nothing pruned."""
        return self.macs(trace, scoring) / (self.whole_macs or self.macs)(trace.unpruned(), None)


@dataclass(frozen=True)
class PruningGeometry:
    """What a pruner is built for: the branches that it prunes, by name, and MAG where the model has it."""

    branches: Mapping[str, BranchGeometry]
    alignment: AlignmentGeometry | None = None


def geometric_counts(tokens: int, keep_rates: Sequence[float]) -> tuple[int, ...]:
    """Kept counts, one a block, where a block keeps a share of what enters it: at least one.

    kept_b = round(tokens * rate_0 * ... * rate_b): a threshold near the mean importance drops a share, too,
    not a number. The class token and the merged token, which both stay, are left out.
    """
    return tuple(max(1, round(tokens * share)) for share in accumulate(keep_rates, mul))


def scheduled_trace(
    tokens: int,
    counts: Sequence[int],
    appends_merged: bool = True,
    fewest_kept: Callable[[int], int] = lambda entering: 1,
) -> BranchTrace:
    """What a forward keeps that needs counts[b] tokens behind block b.

    As in `keep_and_merge`, a block whose drops would not shorten the row drops none. fewest_kept: entering
    tokens -> those that one block of the method can reduce them to.
    """
    entering, tokens_in, kept = tokens, [], []
    for count in counts:
        needed = max(count, fewest_kept(entering))
        prunes = entering - needed > appends_merged
        tokens_in.append(entering)
        kept.append(needed if prunes else entering)
        entering = needed + appends_merged if prunes else entering
    return BranchTrace(tokens, tuple(tokens_in), tuple(kept), tuple(kept), appends_merged)


def flops_ratio(macs: BranchMacs, trace: BranchTrace, scoring: Scoring | None) -> float:
    """Multiply-adds spent, those of scoring included, as a share of the same sequence's unpruned."""
    return macs(trace, scoring) / macs(trace.unpruned(), None)


def nearest_rate(spent: Callable[[float], float], target: float) -> float:
    """The keep rate in [0, 1] whose spent share, rising with it in steps, is nearest to the target."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < target else (low, middle)
    return min(low, high, key=lambda rate: abs(spent(rate) - target))


def check_reached(
    spent: Callable[[float], float], rate: float, target: float, tokens: int, tolerance: float = TOLERANCE
) -> None:
    """Raise ConfigError where the nearest rate misses the target by more than this share of it.

    One of so many tokens is a miss that is always allowed.
    """
    nearest = spent(rate)
    if abs(nearest - target) > max(tolerance * target, 1 / tokens):
        raise ConfigError(
            f"no schedule spends {target:g} of the dense multiply-adds within {tolerance:.0%}, the "
            f"nearest {nearest:.4f}; ask for a ratio from {spent(0.0):.2f} to {spent(1.0):.2f}"
        )
