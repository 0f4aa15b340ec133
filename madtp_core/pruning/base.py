"""The seam every pruning method fills, and the keep-and-merge step that most of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
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
    device = tokens.position.device
    available = [int(length) - 1 for length in tokens.lengths().tolist()]
    needs, keeps = _quotas(needed.tolist(), available, keep_mode)
    needed, kept = torch.tensor(needs, device=device), torch.tensor(keeps, device=device)  # [B]
    prunes = [keep < count for keep, count in zip(keeps, available, strict=True)]
    if not any(prunes):
        return Pruned(tokens, needed, kept)

    padded, width = tokens.unpack(), max(keeps)
    importance = F.pad(importance, (1, 0), value=float("inf"))  # [B, 1 + N]: the protected token comes first
    if padded.mask is not None:
        importance = importance.masked_fill(~padded.mask, float("-inf"))
    order = importance.argsort(dim=1, descending=True, stable=True)
    is_kept = torch.arange(padded.width, device=device) <= kept.unsqueeze(1)  # in that order
    keep = torch.empty_like(is_kept).scatter_(1, order, is_kept)
    drop = ~keep if padded.mask is None else padded.mask & ~keep

    weights = importance.clamp_min(0).where(drop, 0.0)
    weights = weights.where(weights.sum(1, keepdim=True) > 0, drop.float())
    weights = weights / (weights.sum(1, keepdim=True) + EPS)
    merged = (weights[:, None, 1:].to(padded.hidden.dtype) @ padded.hidden[:, 1:]).squeeze(1)  # [B, C]
    merged_size = (padded.size * drop).sum(1)

    index = keep.argsort(dim=1, descending=True, stable=True)[:, : width + 1]  # kept ones first, in order
    is_real = None if min(keeps) == width else is_kept[:, : width + 1]
    rows = None if all(prunes) else torch.tensor(prunes, device=device)
    remaining = padded.select(index, is_real).append_merged(merged, merged_size, rows)
    return Pruned(remaining.pack() if tokens.is_packed else remaining, needed, kept)


def _quotas(needed: list[int], available: list[int], keep_mode: str) -> tuple[list[int], list[int]]:
    """What each row needs and keeps: all it has where it would keep none or drop fewer than two."""
    quotas = [max(needed)] * len(needed) if keep_mode == MAX_KEEP else needed
    rows = zip(needed, quotas, available, strict=True)
    pairs = [
        (need, quota) if quota >= 1 and count - quota > 1 else (count, count) for need, quota, count in rows
    ]
    return [need for need, _ in pairs], [keep for _, keep in pairs]
