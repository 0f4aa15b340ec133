"""MADTP's token importance as a loss: patches of objects shall matter more than background."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.pruning import VISION, PruneStep
from madtp_core.pruning.base import real_tokens
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Seen:
    """What a vision block decided by: position, importance, mask (or None) [B, N], guidance [B, N, K]."""

    position: Tensor
    importance: Tensor
    guidance: Tensor
    mask: Tensor | None


class WatchedMadtp(MadtpPruner):
    """MADTP that remembers what it decided by in a forward's vision blocks, for losses on it."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[Seen] = []

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance, needed = super().decide(tokens, signals, step)
        if step.branch == VISION:
            assert step.guidance is not None
            self._seen.append(Seen(tokens.position[:, 1:], importance, step.guidance, real_tokens(tokens)))
        return importance, needed

    def seen(self) -> list[Seen]:
        """The forward's vision blocks, forgotten hereby."""
        seen, self._seen = self._seen, []
        return seen


def importance_loss(seen: Sequence[Seen], is_object: Tensor, margin: float) -> Tensor:
    """How far patches of objects and of background fail to stand apart in importance, in logarithms.

    is_object [B, patches] bool. Of an object's patch: relu(log(margin * mean of background / its own)), of a
    patch of background: relu(log(margin * its own / mean of objects)); the mean of each kind, then of both,
    of rows and blocks. A row without one of them counts 0; merged tokens count as neither.
    """
    losses = []
    for block in seen:
        patch = block.position - 1  # the class token is position 0, a merged one -1
        is_patch, on_object = patch >= 0, is_object.gather(1, patch.clamp_min(0))
        objects, background = is_patch & on_object, is_patch & ~on_object
        weight = block.importance.clamp_min(1e-6)
        log = weight.log()
        mean_of = [
            _row_mean(weight, kind).clamp_min(1e-6).log().unsqueeze(1) for kind in (objects, background)
        ]
        short = _row_mean((math.log(margin) + mean_of[1] - log).relu(), objects)
        long = _row_mean((math.log(margin) + log - mean_of[0]).relu(), background)
        has_both = objects.any(1) & background.any(1)
        losses.append(((short + long) / 2 * has_both).mean())
    return torch.stack(losses).mean()


def spread_loss(seen: Sequence[Seen]) -> Tensor:
    """How unevenly the alignment tokens of a block look at its tokens, taken together, in nats.

    The divergence of mean over j of softmax_i(A_ij / sqrt(d_k)) from the even spread, the mean of rows and
    blocks. Where all of them look at the same few tokens, the threshold cannot fall below the importance of
    these: a lone image is pruned as much at the smallest prune temperature as at a middling one.
    """
    losses = []
    for block in seen:
        logits = block.guidance / math.sqrt(block.guidance.shape[-1])
        if block.mask is not None:
            logits = logits.masked_fill(~block.mask.unsqueeze(-1), float("-inf"))
        looks = logits.softmax(1).mean(-1)  # [B, N]
        entropy = -(looks * looks.clamp_min(1e-12).log()).sum(1)
        count = block.mask.sum(1) if block.mask is not None else torch.tensor(looks.shape[1])
        losses.append((count.log() - entropy).mean())
    return torch.stack(losses).mean()


def _row_mean(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of each row's chosen values, 0 for none: [B, N] -> [B]."""
    return (values * chosen).sum(1) / chosen.sum(1).clamp_min(1)
