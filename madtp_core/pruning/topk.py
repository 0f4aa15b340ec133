"""TopK: the tokens most similar to the class token stay, the others go.

Source: the baseline TopK of "IVTP: Instruction-guided Visual Token Pruning" (ECCV 2024; supplement, section
2), repeated in every block. Defined for images; in a text the protected token takes the class token's part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import PruneStep
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tokens import Tokens


class TopkPruner(ScheduledPruner):
    """Top-k by cosine similarity to the class token, of the hidden states behind the block's attention."""

    appends_merged = False

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        hidden = tokens.unpack().hidden.float()  # [B, 1 + N, C]
        return F.cosine_similarity(hidden[:, 1:], hidden[:, :1], dim=-1)

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring:
        return CosineScoring()


@dataclass(frozen=True)
class CosineScoring:
    """A product with the class token for every token; norms are not counted, as nowhere else."""

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        return entering * width
