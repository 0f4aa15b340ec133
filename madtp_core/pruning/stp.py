"""Static token pruning: the tokens that the class token attends to most stay, the others go.

Source: the baseline STP of MADTP (CVPR 2024; supplement, Table 7), with the importance that EViT (ICLR 2022)
introduced. Neither document says whether STP merges what it drops; here it does not, `evit` does.
"""

from __future__ import annotations

from torch import Tensor

from madtp_core.attention import CLASS_ROW, Signals
from madtp_core.pruning.base import PruneStep
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tokens import Tokens


class StpPruner(ScheduledPruner):
    """Top-k by class attention, the mean over heads; in a text the protected token's attention."""

    needs = frozenset({CLASS_ROW})
    appends_merged = False

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        return class_attention(signals)


def class_attention(signals: Signals) -> Tensor:
    """The protected token's attention to the others, mean over heads: [B, N]."""
    assert signals.class_row is not None
    return signals.class_row[:, :, 1:].mean(1)
