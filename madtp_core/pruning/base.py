"""The seam every pruning method fills, and the three ways in which they part with tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.errors import UnknownNameError
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.scores import EPS
from madtp_core.tokens import MERGED, Merged, Tokens

VISION, TEXT = "vision", "text"
BRANCHES = (VISION, TEXT)
MAX_KEEP = "max_keep"
PER_INSTANCE = "per_instance"
KEEP_MODES = (MAX_KEEP, PER_INSTANCE)


@dataclass(frozen=True, eq=False)
class PruneStep:
    """Where the loop stands when it asks a pruner.

    block counts from 0 to blocks - 1. guidance: A [B, N, K] float32 of the block's input, class token left
    out. prune_temperature: [B], 0 dense. state: this forward's own scratch for methods that accumulate over
    blocks.
    """

    branch: str
    block: int
    blocks: int
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
    """A pruning method: says which signals it needs, scores the tokens and counts how many each row needs.

    appends_merged: whether a block that drops tokens adds one that stands for them.
    """

    needs: frozenset[str] = frozenset()
    appends_merged: bool = True

    @abstractmethod
    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        """Importance [B, N] float32 and needed tokens [B] int64, class token left out."""

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        """Drop the tokens of one block and, where the method does, append one that stands for them."""
        importance, needed = self.decide(tokens, signals, step)
        reduce = keep_and_merge if self.appends_merged else keep_and_drop
        return reduce(tokens, importance, needed, step.keep_mode)

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring | None:
        """What the method itself spends on a block, MAG's geometry given where the model has it."""
        return None


@dataclass(frozen=True)
class MergeScoring:
    """The weighted sum of the tokens that merge: what a method spends that scores by what is there anyway."""

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        return (entering - kept) * width


def check_keep_mode(keep_mode: str) -> str:
    """Return keep_mode, or raise UnknownNameError."""
    if keep_mode not in KEEP_MODES:
        raise UnknownNameError("keep mode", keep_mode, KEEP_MODES)
    return keep_mode


def real_tokens(tokens: Tokens) -> Tensor | None:
    """The mask behind the protected token: [B, N] or None."""
    return None if tokens.mask is None else tokens.mask[:, 1:]


def keep_and_merge(
    tokens: Tokens, importance: Tensor, needed: Tensor, keep_mode: str, *, as_mean: bool = True
) -> Pruned:
    """Keep each row's most important tokens in their order and merge the others into one behind them.

    importance [B, N] float32, needed [B] int64. max_keep: every row keeps as many as the neediest one.
    per_instance: every row keeps its own number. A row that would keep nothing, or drop fewer than two, is
    left as it is and counts as needing all it has. Equal scores keep the earlier token. as_mean: the merged
    token is the mean of the dropped ones weighted by their importance, else their weighted sum.
    Differs from the reference: kept tokens stay in order; negative scores (see `token_attention_score`) weigh
    nothing in the merge, and if all dropped ones do, they merge into their mean.
    """
    choice = _choose(tokens, importance, needed, keep_mode, fewest_dropped=2)
    if not any(choice.drops):
        return choice.pruned(tokens)
    drop = choice.dropped()
    weights = F.pad(importance, (1, 0)).clamp_min(0).where(drop, 0.0)  # [B, 1 + N]
    if as_mean:
        weights = weights.where(weights.sum(1, keepdim=True) > 0, drop.float())
        weights = weights / (weights.sum(1, keepdim=True) + EPS)
    merged = Merged(
        hidden=tokens.weighted_sum(weights),
        size=(tokens.size * drop).sum(1),
        rows=choice.drops,
        position=tokens.position.masked_fill(~drop, MERGED).amax(1) if tokens.is_causal else None,
    )
    return choice.pruned(tokens.keep(choice.keep, merged))


def keep_and_drop(tokens: Tokens, importance: Tensor, needed: Tensor, keep_mode: str) -> Pruned:
    """Keep each row's most important tokens in their order; the others are gone.

    As `keep_and_merge`, but a row may drop a single token, since none is added.
    """
    choice = _choose(tokens, importance, needed, keep_mode, fewest_dropped=1)
    if not any(choice.drops):
        return choice.pruned(tokens)
    return choice.pruned(tokens.keep(choice.keep))


def keep_and_absorb(
    tokens: Tokens, importance: Tensor, needed: Tensor, keep_mode: str, destination: Tensor
) -> Pruned:
    """Keep each row's most important tokens; each other one joins the kept token at its destination.

    As `keep_and_drop`, but a kept token becomes the mean of itself and what joins it, weighted by size; its
    size grows by theirs and its position stays. destination: [B, 1 + N] int64, a place in the row.
    """
    choice = _choose(tokens, importance, needed, keep_mode, fewest_dropped=1)
    if not any(choice.drops):
        return choice.pruned(tokens)
    padded = tokens.unpack()
    itself = torch.arange(padded.width, device=destination.device)
    destination = destination.where(choice.dropped(), itself)
    size = torch.zeros_like(padded.size).scatter_add(1, destination, padded.size)
    weighted = padded.hidden.float() * padded.size.unsqueeze(-1)  # [B, 1 + N, C]
    places = destination.unsqueeze(-1).expand_as(weighted)
    total = torch.zeros_like(weighted).scatter_add(1, places, weighted)
    mean = total / size.clamp_min(1).unsqueeze(-1)  # size 0: a place whose token has left
    absorbed = replace(padded, hidden=mean.to(padded.hidden.dtype), size=size)
    return choice.pruned(absorbed.keep(choice.keep))


@dataclass(frozen=True, eq=False)
class _Choice:
    """Which tokens of a batch stay.

    tokens: as they came. keep: [B, 1 + N] bool, False at padding. needed, kept: [B]. drops: whether each row
    parts with any.
    """

    tokens: Tokens
    keep: Tensor
    needed: Tensor
    kept: Tensor
    drops: list[bool]

    def dropped(self) -> Tensor:
        """The real tokens that go: [B, 1 + N] bool."""
        return ~self.keep if self.tokens.mask is None else self.tokens.mask & ~self.keep

    def pruned(self, remaining: Tokens) -> Pruned:
        """The result, in the layout in which the tokens came."""
        return Pruned(remaining.pack() if self.tokens.is_packed else remaining, self.needed, self.kept)


def _choose(
    tokens: Tokens, importance: Tensor, needed: Tensor, keep_mode: str, fewest_dropped: int
) -> _Choice:
    device = tokens.position.device
    available = [length - 1 for length in tokens.row_lengths()]
    needs, keeps = _quotas(needed.tolist(), available, keep_mode, fewest_dropped)
    kept = torch.tensor(keeps, device=device)  # [B]
    importance = F.pad(importance, (1, 0), value=float("inf"))  # [B, 1 + N]: the protected token comes first
    if tokens.mask is not None:
        importance = importance.masked_fill(~tokens.mask, float("-inf"))
    order = importance.argsort(dim=1, descending=True, stable=True)
    is_kept = torch.arange(tokens.width, device=device) <= kept.unsqueeze(1)  # in that order
    keep = torch.empty_like(is_kept).scatter_(1, order, is_kept)
    drops = [keep < count for keep, count in zip(keeps, available, strict=True)]
    return _Choice(tokens, keep, torch.tensor(needs, device=device), kept, drops)


def _quotas(
    needed: list[int], available: list[int], keep_mode: str, fewest_dropped: int
) -> tuple[list[int], list[int]]:
    """What each row needs and keeps: all it has where it would keep none or drop too few to gain by it."""
    quotas = [max(needed)] * len(needed) if keep_mode == MAX_KEEP else needed
    rows = zip(needed, quotas, available, strict=True)
    pairs = [
        (need, quota) if quota >= 1 and count - quota >= fewest_dropped else (count, count)
        for need, quota, count in rows
    ]
    return [need for need, _ in pairs], [keep for _, keep in pairs]
