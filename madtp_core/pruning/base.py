"""The seam every pruning method fills, and the keep-and-merge step that most of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.errors import UnknownNameError
from madtp_core.pruning.scores import EPS
from madtp_core.tokens import Tokens

MAX_KEEP = "max_keep"
PER_INSTANCE = "per_instance"
KEEP_MODES = (MAX_KEEP, PER_INSTANCE)


@dataclass(frozen=True, eq=False)
class PruneStep:
    """Where the loop stands when it asks a pruner.

    guidance: A [B, N, K] float32 of the block's input, class token left out. prune_temperature: [B], 0 dense.
    state: this forward's own scratch for methods that accumulate over blocks.
    """

    branch: str
    block: int
    keep_mode: str
    prune_temperature: Tensor
    guidance: Tensor | None = None
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pruned:
    """A block's remaining tokens, and per row [B] what it needed and kept (class and merged left out)."""

    tokens: Tokens
    needed: Tensor
    kept: Tensor


class Pruner(ABC):
    """A pruning method: says which signals it needs, scores the tokens and counts how many each row needs."""

    needs: frozenset[str] = frozenset()

    @abstractmethod
    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        """Importance [B, N] float32 and needed tokens [B] int64, class token left out."""

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        """Drop the tokens of one block and append the merged one."""
        importance, needed = self.decide(tokens, signals, step)
        return keep_and_merge(tokens, importance, needed, step.keep_mode)


def check_keep_mode(keep_mode: str) -> str:
    """Return keep_mode, or raise UnknownNameError."""
    if keep_mode not in KEEP_MODES:
        raise UnknownNameError("keep mode", keep_mode, KEEP_MODES)
    return keep_mode


def real_tokens(tokens: Tokens) -> Tensor | None:
    """The mask behind the protected token: [B, N] or None."""
    return None if tokens.mask is None else tokens.mask[:, 1:]


def keep_and_merge(tokens: Tokens, importance: Tensor, needed: Tensor, keep_mode: str) -> Pruned:
    """Keep each row's most important tokens in their order and merge the others into one behind them.

    importance [B, N] float32, needed [B] int64. max_keep: every row keeps as many as the neediest one.
    per_instance: every row keeps its own number. A row that would keep nothing, or drop fewer than two, is
    left as it is and counts as needing all it has. Equal scores keep the earlier token.
    Differs from the reference: kept tokens stay in order; negative scores (see `token_attention_score`) weigh
    nothing in the merge, and if all dropped ones do, they merge into their mean.
    """
    available = tokens.lengths() - 1  # [B]
    quota = needed.max().expand_as(needed) if keep_mode == MAX_KEEP else needed
    prunes = (quota >= 1) & (available - quota > 1)
    kept = torch.where(prunes, quota, available)
    needed = torch.where(prunes, needed, available)
    if not bool(prunes.any()):
        return Pruned(tokens, needed, kept)

    padded, mask = tokens.unpack(), real_tokens(tokens)
    ranked = importance if mask is None else importance.masked_fill(~mask, float("-inf"))
    rank = ranked.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # [B, N]
    keep = rank < kept.unsqueeze(1)
    drop = ~keep if mask is None else ~keep & mask

    weights = importance.clamp_min(0) * drop
    total = weights.sum(1, keepdim=True)
    weights = torch.where(total > 0, weights / (total + EPS), drop / drop.sum(1, keepdim=True).clamp_min(1))
    merged = (weights.unsqueeze(1).to(padded.hidden.dtype) @ padded.hidden[:, 1:]).squeeze(1)  # [B, C]
    merged_size = (padded.size[:, 1:] * drop).sum(1)

    width = int(kept.max())
    index = (~keep).to(torch.uint8).argsort(dim=1, stable=True)[:, :width] + 1  # kept ones first, in order
    index = torch.cat([torch.zeros_like(index[:, :1]), index], 1)
    is_real = torch.arange(width + 1, device=kept.device) <= kept.unsqueeze(1)
    remaining = padded.select(index, None if bool(is_real.all()) else is_real)
    remaining = remaining.append_merged(merged, merged_size, None if bool(prunes.all()) else prunes)
    return Pruned(remaining.pack() if tokens.is_packed else remaining, needed, kept)
