"""MADTP's Dynamic Token Pruning: a threshold learned through the alignment tokens decides how many stay.

Source: "MADTP: Multimodal Alignment-Guided Dynamic Token Pruning for Accelerating Vision-Language
Transformer", CVPR 2024, section 3.3; the ablation of its terms is Table 8 of the supplement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from madtp_core.attention import CLASS_ROW, GUIDANCE, HEAD_NORMS, RECEIVED, Signals
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import Pruner, PruneStep, real_tokens
from madtp_core.pruning.scores import CLS, SELF, TERMS, TOKEN, threshold, token_importance
from madtp_core.tokens import Tokens

_NEEDS = {SELF: {RECEIVED}, TOKEN: {GUIDANCE}, CLS: {CLASS_ROW, HEAD_NORMS}}


class MadtpPruner(Pruner):
    """Needs every token whose importance exceeds its row's threshold; prune temperature 0 keeps all.

    terms: which of `self`, `token` and `cls` the importance is the mean of. The threshold reads the alignment
    tokens whatever the terms, so there is no MADTP without guidance: "alignment off" of an ablation is the
    training without the alignment loss (alpha 0), where only the task's loss shapes the alignment tokens,
    through the weights of the merge. Without alignment tokens altogether the method is `static` or `stp`.
    """

    def __init__(self, *, terms: Sequence[str] = TERMS) -> None:
        self.terms = check_terms(terms)
        self.needs = importance_needs(self.terms) | {GUIDANCE}

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance = madtp_importance(tokens, signals, step, self.terms)
        assert step.guidance is not None
        mask, temperature = real_tokens(tokens), step.prune_temperature
        theta = threshold(importance, step.guidance, temperature.clamp_min(1e-6), mask)
        above = importance > theta.unsqueeze(1)  # strict
        needed = (above if mask is None else above & mask).sum(1)
        return importance, torch.where(temperature > 0, needed, tokens.lengths() - 1)

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring | None:
        return alignment


def check_terms(terms: Sequence[str]) -> frozenset[str]:
    """The terms of token importance as a set; raises UnknownNameError, or ConfigError for none."""
    if isinstance(terms, str) or not terms:
        raise ConfigError(f"terms must be a list of at least one of {', '.join(TERMS)}, got {terms!r}")
    for term in terms:
        if term not in TERMS:
            raise UnknownNameError("term", term, TERMS)
    return frozenset(terms)


def importance_needs(terms: Collection[str]) -> frozenset[str]:
    """The signals that these terms read: without `self` no block forms its whole map for them."""
    return frozenset().union(*(_NEEDS[term] for term in terms))


def madtp_importance(
    tokens: Tokens, signals: Signals, step: PruneStep, terms: Collection[str] = TERMS
) -> Tensor:
    """TIS [B, N] of one block from its signals and guidance, class token left out."""
    return token_importance(
        None if signals.received is None else signals.received[:, 1:],
        step.guidance,
        None if signals.class_row is None else signals.class_row[:, :, 1:],
        None if signals.head_norms is None else signals.head_norms[:, :, 1:],
        real_tokens(tokens),
        terms,
    )
