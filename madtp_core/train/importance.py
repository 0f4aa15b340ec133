"""MADTP's token importance as a loss: patches of objects shall matter more than background."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.pruning import VISION, PruneStep
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tokens import Tokens


class WatchedMadtp(MadtpPruner):
    """MADTP that remembers a forward's importance of image tokens, for a loss on it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor]] = []  # position and importance [B, N] of each vision block

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance, needed = super().decide(tokens, signals, step)
        if step.branch == VISION:
            self._seen.append((tokens.position[:, 1:], importance))
        return importance, needed

    def importance_loss(self, is_object: Tensor, margin: float) -> Tensor:
        """How far objects' patches fall short of margin times the importance of background, in logarithms.

        is_object [B, patches] bool. The mean over blocks and rows of relu(log(margin * background / object)),
        both the mean importance of such a token; a row without one of them counts 0. Forgets the forward.
        Nothing is asked beyond the margin: where background has no importance left, a lone image is pruned to
        the same few tokens at every temperature. Merged tokens count as neither.
        """
        losses = []
        for position, importance in self._seen:
            patch = position - 1  # the class token is position 0, a merged one -1
            is_patch, on_object = patch >= 0, is_object.gather(1, patch.clamp_min(0))
            weight = importance.clamp_min(0)
            mean_of = [_row_mean(weight, is_patch & chosen) for chosen in (on_object, ~on_object)]
            has_both = (is_patch & on_object).any(1) & (is_patch & ~on_object).any(1)
            short = math.log(margin) + mean_of[1].clamp_min(1e-6).log() - mean_of[0].clamp_min(1e-6).log()
            losses.append((short.relu() * has_both).mean())
        self._seen.clear()
        return torch.stack(losses).mean()


def _row_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of each row's chosen values, 0 for none: [B, N] -> [B]."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp_min(1)
