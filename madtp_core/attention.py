"""Attention that also tells a pruner what it needs to know.

Blocks that are not scored use torch's fused kernel. No fused kernel returns the probabilities that token
importance needs, so a scored block forms them here: whole when gradients are wanted, else in tiles of
queries that stay in the cache, so that the [H, N, N] map is never written to memory.
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

_TILE_BYTES = 1 << 20  # one tile of probabilities: fits a core's second-level cache


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
        context: Tensor = logits.softmax(-1) @ value
    return context


def _scored(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, wanted: frozenset[str]
) -> tuple[Tensor, Signals]:
    """The explicit softmax of Hugging Face's eager attention, a tile of queries at a time."""
    batch, heads, length, width = query.shape
    tile = length
    if not torch.is_grad_enabled():
        tile = max(1, min(length, _TILE_BYTES // (4 * batch * heads * length)))
    contexts: list[Tensor] = []
    class_row: Tensor | None = None
    received = query.new_zeros(batch, length, dtype=torch.float32)
    for start in range(0, length, tile):
        rows = slice(start, start + tile)
        logits = (query[:, :, rows] @ key.transpose(-1, -2)) * width**-0.5  # [B, H, tile, N]
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], float("-inf"))
        probs = logits.softmax(-1, dtype=torch.float32)
        contexts.append(probs.to(value.dtype) @ value)  # [B, H, tile, D]
        if start == 0 and CLASS_ROW in wanted:
            class_row = probs[:, :, 0]  # [B, H, N]
        if RECEIVED in wanted:
            strongest = probs[:, :, 1 if start == 0 else 0 :].amax(1)  # [B, tile, N]
            if mask is not None:
                strongest = strongest * mask[:, max(start, 1) : start + tile, None]
            received = received + strongest.sum(1)
    context = contexts[0] if len(contexts) == 1 else torch.cat(contexts, 2)
    norms = context.float().norm(dim=-1) if HEAD_NORMS in wanted else None
    return context, Signals(received if RECEIVED in wanted else None, class_row, norms)
