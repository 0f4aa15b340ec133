"""A fixed number of kept tokens in every block, chosen by MADTP's importance, its whole scoring cost paid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from madtp_core.attention import CLASS_ROW, GUIDANCE, HEAD_NORMS, RECEIVED, Signals
from madtp_core.errors import ConfigError
from madtp_core.pruning.base import Pruner, PruneStep
from madtp_core.pruning.madtp import madtp_importance
from madtp_core.tokens import Tokens


class StaticPruner(Pruner):
    """Needs the scheduled count in every block; a branch without a schedule keeps all.

    kept: branch name -> one count a block, class and merged token left out.
    """

    needs = frozenset({RECEIVED, CLASS_ROW, HEAD_NORMS, GUIDANCE})

    def __init__(self, kept: Mapping[str, Sequence[int]]) -> None:
        if not kept or any(count < 1 for counts in kept.values() for count in counts):
            raise ConfigError(f"static pruning needs positive kept counts per branch, got {dict(kept)!r}")
        self.kept = {branch: tuple(counts) for branch, counts in kept.items()}

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        available = tokens.lengths() - 1
        counts = self.kept.get(step.branch)
        if counts is None:
            needed = available
        elif step.block >= len(counts):
            raise ConfigError(
                f"the {step.branch} schedule has {len(counts)} counts, none for block {step.block}"
            )
        else:
            needed = available.clamp(max=counts[step.block])
        needed = torch.where(step.prune_temperature > 0, needed, available)
        return madtp_importance(tokens, signals, step), needed
