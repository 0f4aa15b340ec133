"""MADTP's Dynamic Token Pruning: a threshold learned through the alignment tokens decides how many stay.

Source: "MADTP: Multimodal Alignment-Guided Dynamic Token Pruning for Accelerating Vision-Language
Transformer", CVPR 2024, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from madtp_core.attention import CLASS_ROW, GUIDANCE, HEAD_NORMS, RECEIVED, Signals
from madtp_core.pruning.base import Pruner, PruneStep, real_tokens
from madtp_core.pruning.scores import threshold, token_importance
from madtp_core.tokens import Tokens


class MadtpPruner(Pruner):
    """Needs every token whose importance exceeds its row's threshold; prune temperature 0 keeps all."""

    needs = frozenset({RECEIVED, CLASS_ROW, HEAD_NORMS, GUIDANCE})

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance = madtp_importance(tokens, signals, step)
        assert step.guidance is not None
        mask, temperature = real_tokens(tokens), step.prune_temperature
        theta = threshold(importance, step.guidance, temperature.clamp_min(1e-6), mask)
        above = importance > theta.unsqueeze(1)  # strict
        needed = (above if mask is None else above & mask).sum(1)
        return importance, torch.where(temperature > 0, needed, tokens.lengths() - 1)


def madtp_importance(tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
    """TIS [B, N] of one block from its signals and guidance, class token left out."""
    assert signals.received is not None and signals.class_row is not None and signals.head_norms is not None
    assert step.guidance is not None
    return token_importance(
        signals.received[:, 1:],
        step.guidance,
        signals.class_row[:, :, 1:],
        signals.head_norms[:, :, 1:],
        real_tokens(tokens),
    )
