"""Token importance and threshold of MADTP: pure functions, always float32, class token left out.

Symbols: B rows, N tokens behind the class token, H heads, K alignment tokens. mask [B, N] is True for a real
token; None when all are. Source: MADTP (CVPR 2024) section 3.3 and its reference implementation.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

SELF, TOKEN, CLS = TERMS = ("self", "token", "cls")  # the terms of token importance
EPS = 1e-8
_WELL_SIGNED = 0.1  # S_token's sum must reach this share of its absolute sum


def self_attention_score(received: Tensor) -> Tensor:
    """S_self: what each token receives from the others' largest heads, as a share: [B, N] -> [B, N]."""
    return received / (received.sum(1, keepdim=True) + EPS)


def token_attention_score(guidance: Tensor, mask: Tensor | None) -> Tensor:
    """S_token: each token's best match among the alignment tokens, as a share: A [B, N, K] -> [B, N].

    Differs from the reference: A has no sign, so the sum can vanish or turn negative and the shares explode.
    Where the sum is below a tenth of the absolute sum, the row is first shifted to start at zero.
    """
    best = guidance.amax(-1)  # [B, N]
    if mask is not None:
        best = best.masked_fill(~mask, 0.0)
    ill_signed = best.sum(1) < _WELL_SIGNED * best.abs().sum(1)
    floor = best if mask is None else best.masked_fill(~mask, float("inf"))
    best = torch.where(ill_signed.unsqueeze(1), best - floor.amin(1, keepdim=True), best)
    if mask is not None:
        best = best.masked_fill(~mask, 0.0)
    return best / (best.sum(1, keepdim=True) + EPS)


def class_attention_score(class_row: Tensor, head_norms: Tensor) -> Tensor:
    """S_cls: the class token's attention, heads weighted by their output norm at the token.

    class_row [B, H, N], head_norms [B, H, N] -> [B, N].
    """
    weights = head_norms / (head_norms.sum(1, keepdim=True) + EPS)
    return (class_row * weights).sum(1)


def token_importance(
    received: Tensor | None,
    guidance: Tensor | None,
    class_row: Tensor | None,
    head_norms: Tensor | None,
    mask: Tensor | None,
    terms: Collection[str] = TERMS,
) -> Tensor:
    """TIS, the mean of the terms that are on: by default (S_self + S_token + S_cls) / 3; [B, N].

    Zero at padding. What only other terms read may be None. Source: supplement, Table 8.
    """
    scores: list[Tensor] = []
    if SELF in terms:
        assert received is not None
        scores.append(self_attention_score(received))
    if TOKEN in terms:
        assert guidance is not None
        scores.append(token_attention_score(guidance, mask))
    if CLS in terms:
        assert class_row is not None and head_norms is not None
        scores.append(class_attention_score(class_row, head_norms))
    score = torch.stack(scores).mean(0)
    return score if mask is None else score.masked_fill(~mask, 0.0)


def threshold(importance: Tensor, guidance: Tensor, prune_temperature: Tensor, mask: Tensor | None) -> Tensor:
    """theta = min over alignment tokens j of sum_i softmax_i(A[:, j] / T) TIS_i.

    importance [B, N], guidance [B, N, K], prune_temperature [B] > 0 -> [B].
    """
    logits = guidance / prune_temperature.view(-1, 1, 1)  # [B, N, K]
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(-1), float("-inf"))
    return (logits.softmax(1) * importance.unsqueeze(-1)).sum(1).amin(1)
