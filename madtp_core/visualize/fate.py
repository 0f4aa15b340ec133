"""What becomes of every token of a sequence, watched where it is decided: at the pruner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_core.attention import Signals
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning import Pruned, Pruner, PruneStep
from madtp_core.tokens import Tokens

KEPT, DROPPED = -1, -2


class State(IntEnum):
    """What a token is after a block.

    JOINED: kept, and others were merged into it. MERGED_NOW: merged by this block. MERGED_AGAIN: in an older
    merged token that this block merged once more. MERGED_BEFORE: in an older one that stays. DROPPED: nothing
    stands for it.
    """

    KEPT = 0
    JOINED = 1
    MERGED_NOW = 2
    MERGED_AGAIN = 3
    MERGED_BEFORE = 4
    DROPPED = 5


@dataclass(frozen=True, eq=False)
class Fate:
    """Where every original token of one sequence is after every block.

    home [blocks, N] int: KEPT for a token that is still itself, b for one that is part of what block b
    merged, DROPPED for one that nothing stands for. joined [blocks, N] bool: itself, but others are in it.
    protected: the class token's place among the N.
    """

    branch: str
    home: NDArray[np.int64]
    joined: NDArray[np.bool_]
    protected: int = 0

    @property
    def blocks(self) -> int:
        return len(self.home)

    def states(self, block: int) -> NDArray[np.int64]:
        """What each token is after a block, as `State`, the protected one left out: [N - 1]."""
        home = self.home[block]
        before = self.home[block - 1] if block else np.full_like(home, KEPT)
        states = np.full_like(home, State.MERGED_BEFORE)
        states[home == block] = State.MERGED_AGAIN
        states[(home == block) & (before == KEPT)] = State.MERGED_NOW
        states[home == DROPPED] = State.DROPPED
        states[home == KEPT] = State.KEPT
        states[self.joined[block]] = State.JOINED
        return np.delete(states, self.protected)

    def kept(self, block: int) -> int:
        """Original tokens that are still themselves after a block, the protected one left out."""
        return int((self.states(block) <= State.JOINED).sum())


def untouched(branch: str, tokens: int, blocks: int) -> Fate:
    """The fate of a dense sequence: tokens counts the protected one."""
    shape = blocks, tokens
    return Fate(branch, np.full(shape, KEPT), np.zeros(shape, dtype=np.bool_))


class WatchingPruner(Pruner):
    """Prunes as another pruner does and remembers what became of every token.

    Sequences stand in the order in which they began; those of one batch stand side by side.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner
        self.needs, self.appends_merged = pruner.needs, pruner.appends_merged
        self._watched: list[_Row] = []
        self._running: list[_Row] = []

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pruner.decide(tokens, signals, step)

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        pruned = self.pruner(tokens, signals, step)
        before, after = tokens.unpack(), pruned.tokens.unpack()
        if step.block == 0:
            self._running = [_Row(step.branch, before, row) for row in range(before.batch_size)]
            self._watched += self._running
        for index, row in enumerate(self._running):
            row.follow(before, after, index, step.block, self.appends_merged)
        return pruned

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring | None:
        return self.pruner.scoring(alignment)

    def fates(self) -> list[Fate]:
        """One a sequence that was pruned."""
        return [row.fate() for row in self._watched]


class _Row:
    """One sequence on its way through the blocks; inside[j]: the original tokens in its j-th token."""

    def __init__(self, branch: str, tokens: Tokens, row: int) -> None:
        self.branch = branch
        _, positions, _ = _real(tokens, row)
        self.protected = positions[0]
        self.inside: list[tuple[int, ...]] = [(position,) for position in positions]
        self.home = np.full(max(positions) + 1, KEPT)
        self.homes: list[NDArray[np.int64]] = []
        self.joined: list[NDArray[np.bool_]] = []

    def follow(self, before: Tokens, after: Tokens, row: int, block: int, appends_merged: bool) -> None:
        """Find what of the row's tokens is left, and who stands for the others."""
        old_hidden, old_positions, old_sizes = _real(before, row)
        new_hidden, new_positions, new_sizes = _real(after, row)
        place = {position: index for index, position in enumerate(old_positions) if position >= 0}
        merged = [index for index, position in enumerate(old_positions) if position < 0]
        origins: list[int | None] = []  # the old token that each new one is
        for hidden, position in zip(new_hidden, new_positions, strict=True):
            origins.append(place.get(position) if position >= 0 else _same(hidden, old_hidden, merged))
        last = origins[-1]  # in a causal row a new merged token stands at the place of one that it holds
        if appends_merged and after.is_causal and last is not None:
            origins[-1] = last if torch.equal(new_hidden[-1], old_hidden[last]) else None
        gone = set(range(len(old_positions))) - set(origins)
        lost = tuple(token for index in sorted(gone) for token in self.inside[index])
        self.inside = [lost if origin is None else self.inside[origin] for origin in origins]

        self.home = self.home.copy()
        self.home[list(lost)] = block if sum(new_sizes) > sum(old_sizes) - 0.5 else DROPPED
        self.homes.append(self.home)
        hosts = [p for p, size in zip(new_positions, new_sizes, strict=True) if p >= 0 and size > 1.5]
        self.joined.append((self.home == KEPT) & np.isin(np.arange(len(self.home)), hosts))

    def fate(self) -> Fate:
        return Fate(self.branch, np.stack(self.homes), np.stack(self.joined), self.protected)


def _real(tokens: Tokens, row: int) -> tuple[torch.Tensor, list[int], list[float]]:
    """Features, positions and sizes of a row's real tokens."""
    count = int(tokens.lengths()[row])
    position, size = tokens.position[row, :count].tolist(), tokens.size[row, :count].tolist()
    return tokens.hidden[row, :count], position, size


def _same(hidden: torch.Tensor, among: torch.Tensor, indices: Sequence[int]) -> int | None:
    """The merged token of before that this one is: what is kept is copied bit for bit."""
    return next((index for index in indices if torch.equal(among[index], hidden)), None)
