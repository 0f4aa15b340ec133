"""MADTP's importance on a fixed schedule: which tokens stay is learned, how many is not.

Source: the step of MADTP (CVPR 2024) from static pruning with guidance to dynamic pruning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from madtp_core.attention import GUIDANCE, Signals
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import MergeScoring, PruneStep
from madtp_core.pruning.madtp import check_terms, importance_needs, madtp_importance
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.pruning.scores import TERMS
from madtp_core.tokens import Tokens


class StaticPruner(ScheduledPruner):
    """Top-k by token importance, the dropped merge as in MADTP; terms as there.

    Without the term `token` it needs no alignment tokens.
    """

    def __init__(self, *, terms: Sequence[str] = TERMS, **schedule: Any) -> None:
        self.terms = check_terms(terms)
        self.needs = importance_needs(self.terms)
        super().__init__(**schedule)

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        return madtp_importance(tokens, signals, step, self.terms)

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring:
        return ImportanceScoring(alignment if GUIDANCE in self.needs else None)


@dataclass(frozen=True)
class ImportanceScoring:
    """Token attention where a term reads it, and the merge; no threshold."""

    alignment: AlignmentGeometry | None

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        attention = 0 if self.alignment is None else self.alignment.attention_macs(branch, entering, width)
        return attention + MergeScoring().macs(branch, entering, kept, width)
