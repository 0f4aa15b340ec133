"""Attention that also tells a pruner what it needs to know.

Blocks that are not scored use torch's fused kernel. No fused kernel returns the probabilities that token
importance needs, so a scored block forms them here: all at once where gradients are wanted or a GPU computes,
else a few heads at a time that stay in the cache, so that the [H, N, N] map is never written to memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core.tokens import Tokens

RECEIVED = "received"
CLASS_ROW = "class_row"
HEAD_NORMS = "head_norms"
GUIDANCE = "guidance"
ATTENTION_SIGNALS = frozenset({RECEIVED, CLASS_ROW, HEAD_NORMS})

_PART_BYTES = 1 << 20  # of probabilities at once: a core's second-level cache


@dataclass(frozen=True, eq=False)
class Signals:
    """What one block's self-attention tells a pruner; always float32 and padded. None: not asked for.

    received: [B, N], sum over real queries behind the protected token of max over heads of P[h, query, i].
    class_row: [B, H, N], the protected token's attention P[h, 0, i].
    head_norms: [B, H, N], norm of each head's output at token i, before the output projection.
    """

    received: Tensor | None = None
    class_row: Tensor | None = None
    head_norms: Tensor | None = None


def attend(
    query: Tensor, key: Tensor, value: Tensor, tokens: Tokens, needs: frozenset[str] = frozenset()
) -> tuple[Tensor, Signals]:
    """Self-attention within each row, with the signals named in needs.

    query, key, value: [B, N, H, D], or packed [T, H, D]; padding is neither attended to nor counted.
    Returns the context [B, N, H * D] or [T, H * D] and the signals. An unscored call runs a fused kernel.
    """
    query, key, value = (tokens.to_padded(x).transpose(1, 2) for x in (query, key, value))  # [B, H, N, D]
    wanted = needs & ATTENTION_SIGNALS
    if wanted:
        context, signals = _scored(query, key, value, tokens.mask, wanted)
    else:
        context, signals = _unscored(query, key, value, _over_keys(tokens.mask)), Signals()
    return tokens.to_layout(context.transpose(1, 2).flatten(2)), signals


def cross_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of query [B, N, H, D] to memory key, value [B, M, H, D] under mask [B, M]: [B, N, H * D]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return _unscored(query, key, value, _over_keys(mask)).transpose(1, 2).flatten(2)


def causal_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last N positions, query [B, N, H, D], to all L >= N keys: [B, N, H * D]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if queries > 1:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return _unscored(query, key, value, mask).transpose(1, 2).flatten(2)


def _over_keys(mask: Tensor | None) -> Tensor | None:
    """Key mask [B, M] -> [B, 1, 1, M]."""
    return None if mask is None else mask[:, None, None, :]


def _unscored(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """query [B, H, N, D], key, value [B, H, M, D], mask broadcastable to [B, H, N, M] -> [B, H, N, D].

    Trains with an explicit softmax on a CPU: the backward of torch's fused CPU kernel is up to three times
    slower.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        if mask is not None:
            logits = logits.masked_fill(~mask, float("-inf"))
        context: Tensor = logits.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return context


def _scored(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, wanted: frozenset[str]
) -> tuple[Tensor, Signals]:
    """The explicit softmax of Hugging Face's eager attention over query, key, value [B, H, N, D]."""
    if torch.is_grad_enabled() or query.device.type != "cpu":
        context, received, class_row = _scored_at_once(query, key, value, mask)
    else:
        context, received, class_row = _scored_in_parts(query, key, value, mask)
    return context, Signals(
        received if RECEIVED in wanted else None,
        class_row if CLASS_ROW in wanted else None,
        context.float().norm(dim=-1) if HEAD_NORMS in wanted else None,
    )


def _scored_at_once(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Context, received and class row over one [B, H, N, N] map: differentiable, and few kernels on a GPU."""
    logits = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5  # [B, H, N, N]
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None, :], float("-inf"))
    probs = logits.softmax(-1, dtype=torch.float32)
    strongest = probs[:, :, 1:].amax(1)  # [B, N - 1, N]
    if mask is not None:
        strongest = strongest * mask[:, 1:, None]
    return probs.to(value.dtype) @ value, strongest.sum(1), probs[:, :, 0]


def _scored_in_parts(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same without gradients, as many heads, then rows, at once as keep their maps in a CPU's cache.

    A part is cut to its longest row, so a long row never works on padding.
    """
    batch, heads, length, width = query.shape
    lengths = [length] * batch if mask is None else mask.sum(1).tolist()
    context = value.new_zeros(batch, length, heads, width).transpose(1, 2)  # [B, H, N, D]
    received = query.new_zeros(batch, length, dtype=torch.float32)
    class_row = query.new_zeros(batch, heads, length, dtype=torch.float32)
    heads_at_once = max(1, _PART_BYTES // (4 * length**2))
    rows_at_once = max(1, heads_at_once // heads)
    for rows in (slice(start, start + rows_at_once) for start in range(0, batch, rows_at_once)):
        longest = max(lengths[rows])
        scaled = query[rows, :, :longest] * width**-0.5  # [R, H, n, D]
        keys = key[rows, :, :longest].contiguous().transpose(-1, -2)  # [R, H, D, n]
        padding = None if mask is None or min(lengths[rows]) == longest else ~mask[rows, :longest]
        strongest = received.new_zeros(len(scaled), longest, longest)  # [R, n, n]
        for part in (slice(start, start + heads_at_once) for start in range(0, heads, heads_at_once)):
            logits = scaled[:, part] @ keys[:, part]  # [R, h, n, n]
            if padding is not None:
                logits.masked_fill_(padding[:, None, None, :], float("-inf"))
            probs = logits.softmax(-1, dtype=torch.float32)
            context[rows, part, :longest] = probs.to(value.dtype) @ value[rows, part, :longest]
            class_row[rows, part, :longest] = probs[:, :, 0]
            of_part = probs.amax(1) if probs.shape[1] > 1 else probs[:, 0]  # amax would copy a lone head
            torch.maximum(strongest, of_part, out=strongest)
        if padding is not None:
            strongest.masked_fill_(padding.unsqueeze(-1), 0.0)
        received[rows, :longest] = strongest[:, 1:].sum(1)
    return context, received, class_row
