"""What all static methods share: how many tokens stay is known beforehand, only which ones is not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.errors import ConfigError
from madtp_core.pruning.base import Pruner, PruneStep
from madtp_core.pruning.schedule import (
    TOLERANCE,
    PruningGeometry,
    check_reached,
    geometric_counts,
    nearest_rate,
    scheduled_trace,
)
from madtp_core.tokens import Tokens

KeepRates = float | Sequence[float]


class ScheduledPruner(Pruner):
    """Needs as many tokens as its schedule says; a prune temperature above 0 switches it on for a request.

    Exactly one option says how many. flops_ratio: the share of the dense multiply-adds of every branch that a
    sequence of it spends, the method's own scoring included, so that methods compare at equal cost. It is
    resolved to one keep rate for every number of tokens, from the model's geometry: an image within
    `TOLERANCE`, a short text to the nearest share that whole tokens reach. keep_rate: branch name -> the
    share of the tokens entering a block that it keeps, one for all blocks or one each. kept: branch name ->
    one count a block. A branch that keep_rate or kept does not name keeps all.
    """

    tolerance = TOLERANCE

    def __init__(
        self,
        *,
        geometry: PruningGeometry | None = None,
        flops_ratio: float | None = None,
        keep_rate: Mapping[str, KeepRates] | None = None,
        kept: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        given = {"flops_ratio": flops_ratio, "keep_rate": keep_rate, "kept": kept}
        if sum(value is not None for value in given.values()) != 1:
            raise ConfigError(f"static pruning takes one of {', '.join(given)}, got {given}")
        if flops_ratio is not None and geometry is None:
            raise ConfigError("flops_ratio needs a model's geometry; give keep_rate where there is none")
        if flops_ratio is not None and not 0 < flops_ratio <= 1:
            raise ConfigError(f"flops_ratio must be in (0, 1], got {flops_ratio}")
        if kept is not None and (not kept or any(count < 1 for counts in kept.values() for count in counts)):
            raise ConfigError(f"static pruning needs positive kept counts per branch, got {dict(kept)!r}")
        self.geometry = geometry or PruningGeometry({})
        self.flops_ratio = flops_ratio
        self.keep_rate = {branch: _checked_rates(rates) for branch, rates in (keep_rate or {}).items()}
        self.kept = {branch: tuple(counts) for branch, counts in (kept or {}).items()}
        self._resolved: dict[tuple[str, int, int], tuple[int, ...]] = {}
        for name, branch in self.geometry.branches.items():
            if branch.tokens is not None:  # a share out of reach is refused here, not at the first request
                self.counts(name, branch.tokens, branch.blocks)

    @abstractmethod
    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        """Importance [B, N] float32, class token left out."""

    def prunes_at(self, block: int, blocks: int) -> bool:
        """Whether the method drops tokens in this block."""
        return True

    def fewest_kept(self, entering: int) -> int:
        """How few of the entering tokens one block of the method can leave."""
        return 1

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        return self.score(tokens, signals, step), self.needed(tokens, step)

    def needed(self, tokens: Tokens, step: PruneStep) -> Tensor:
        """What the schedule asks for, all tokens where it is switched off or leaves the block out: [B] int64.

        A row's schedule follows from the tokens that it began with, so it does not depend on batch mates.
        """
        available = tokens.lengths() - 1
        began = step.state.setdefault("began", available.tolist())
        if not self.prunes_at(step.block, step.blocks):
            return available
        counts = [self.counts(step.branch, count, step.blocks)[step.block] for count in began]
        scheduled = torch.tensor(counts, device=available.device).minimum(available)
        return torch.where(step.prune_temperature > 0, scheduled, available)

    def counts(self, branch: str, tokens: int, blocks: int) -> tuple[int, ...]:
        """Kept tokens behind each block of a row that begins with so many.

        Raises ConfigError for a schedule of another number of blocks, or a branch without a geometry.
        """
        key = branch, tokens, blocks
        if key not in self._resolved:
            self._resolved[key] = self._resolve(branch, tokens, blocks)
        return self._resolved[key]

    def _resolve(self, branch: str, tokens: int, blocks: int) -> tuple[int, ...]:
        if self.flops_ratio is not None:
            return self._spending(self.flops_ratio, branch, tokens, blocks)
        if branch in self.keep_rate:
            rates = self.keep_rate[branch]
            rates = (rates,) * blocks if isinstance(rates, float) else rates
            _check_length(branch, rates, blocks)
            return self._at_rates(rates, tokens)
        if branch in self.kept:
            _check_length(branch, self.kept[branch], blocks)
            return tuple(min(count, tokens) for count in self.kept[branch])
        return (tokens,) * blocks

    def _at_rates(self, rates: Sequence[float], tokens: int) -> tuple[int, ...]:
        """Kept counts where every block in which the method prunes keeps its share of what enters it."""
        blocks = len(rates)
        kept = [rate if self.prunes_at(block, blocks) else 1.0 for block, rate in enumerate(rates)]
        return geometric_counts(tokens, kept)

    def _spending(self, target: float, branch: str, tokens: int, blocks: int) -> tuple[int, ...]:
        if branch not in self.geometry.branches:
            raise ConfigError(f"no geometry of the {branch} branch: flops_ratio cannot be resolved for it")
        geometry = self.geometry.branches[branch]
        scoring = self.scoring(self.geometry.alignment)

        def spent(rate: float) -> float:
            counts = self._at_rates((rate,) * blocks, tokens)
            trace = scheduled_trace(tokens, counts, self.appends_merged, self.fewest_kept)
            return geometry.flops_ratio(trace, scoring)

        rate = nearest_rate(spent, target)
        if tokens == geometry.tokens:
            check_reached(spent, rate, target, tokens, self.tolerance)
        return self._at_rates((rate,) * blocks, tokens)


def _checked_rates(rates: KeepRates) -> float | tuple[float, ...]:
    values = (rates,) if isinstance(rates, int | float) else tuple(rates)
    if not values or any(not 0 < value <= 1 for value in values):
        raise ConfigError(f"keep rates must be in (0, 1], got {rates}")
    return float(rates) if isinstance(rates, int | float) else values


def _check_length(branch: str, schedule: Sequence[float], blocks: int) -> None:
    if len(schedule) != blocks:
        raise ConfigError(f"the {branch} schedule is for {len(schedule)} blocks, the branch has {blocks}")
