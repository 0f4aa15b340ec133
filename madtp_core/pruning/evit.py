"""EViT: the most attentive tokens stay, the inattentive ones fuse into one.

Source: "Not All Patches Are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR
2022, sections 3.2 and 3.3, and its public code. Defined for images; in a text the protected token takes the
class token's part.
"""

from __future__ import annotations

from torch import Tensor

from madtp_core.attention import CLASS_ROW, Signals
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import MergeScoring, Pruned, PruneStep, keep_and_merge
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.pruning.stp import class_attention
from madtp_core.tokens import Tokens


class EvitPruner(ScheduledPruner):
    """Top-k by class attention; the fused token is the others' sum weighted by it, as in equation 4.

    Differs from the source: every block prunes (there 4, 7 and 10 of 12), as in the comparison of IVTP's
    supplement; kept tokens stay in order; a row drops at least two.
    """

    needs = frozenset({CLASS_ROW})

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        return class_attention(signals)

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        attention, needed = self.decide(tokens, signals, step)
        return keep_and_merge(tokens, attention, needed, step.keep_mode, as_mean=False)

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring:
        return MergeScoring()
