"""Attention, dense and pruned: a fused kernel, unless a pruner asks for what only the probabilities tell.

Sequences of different lengths go row by row where nothing is to be differentiated (`packed`); probabilities
are formed in `scored`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core.packed import attend_runs, runs_of
from madtp_core.scored import scored_at_once, scored_in_parts, weigh
from madtp_core.signals import (
    ATTENTION_SIGNALS,
    CLASS_ROW,
    FROM_PROBABILITIES,
    GUIDANCE,
    HEAD_NORMS,
    KEYS,
    MEAN_MAP,
    PROPORTIONAL,
    RECEIVED,
    Signals,
)
from madtp_core.tokens import Tokens, pack_rows, unpack_rows

__all__ = [
    "ATTENTION_SIGNALS",
    "CLASS_ROW",
    "GUIDANCE",
    "HEAD_NORMS",
    "KEYS",
    "MEAN_MAP",
    "PROPORTIONAL",
    "RECEIVED",
    "Signals",
    "attend",
    "causal_attend",
    "cross_attend",
]


def attend(
    query: Tensor, key: Tensor, value: Tensor, tokens: Tokens, needs: frozenset[str] = frozenset()
) -> tuple[Tensor, Signals]:
    """Self-attention within each row, with the signals named in needs.

    query, key, value: [B, N, H, D], or packed [T, H, D]; padding is neither attended to nor counted.
    PROPORTIONAL among the needs adds log(size) of a key's token to its logits (ToMe, ICLR 2023, equation 1).
    Returns the context [B, N, H * D] or [T, H * D] and the signals. A fused kernel runs where no signal needs
    the map of probabilities.
    """
    # Rows of different lengths go one by one; padded ones on a CPU only, as a GPU prefers few calls to little
    # work. Training keeps to one padded map, which differentiates in few steps.
    is_ragged = tokens.mask is not None and (tokens.is_packed or query.device.type == "cpu")
    if is_ragged and not torch.is_grad_enabled():
        context, signals = _attend_rows(query, key, value, tokens, needs)
    else:
        q, k, v = (tokens.to_padded(x).transpose(1, 2) for x in (query, key, value))  # [B, H, N, D]
        over_keys = _over_keys(
            tokens.width, query.device, tokens.mask, tokens.is_causal, _sizes(tokens, needs)
        )
        context, signals = _attend_padded(q, k, v, tokens.mask, over_keys, needs)
        context = tokens.to_layout(context.transpose(1, 2))
    norms = tokens.to_padded(context.float().norm(dim=-1)).transpose(1, 2) if HEAD_NORMS in needs else None
    signals = replace(signals, head_norms=norms, keys=_mean_keys(key, tokens) if KEYS in needs else None)
    return context.flatten(-2), signals


def cross_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of query [B, N, H, D] to memory key, value [B, M, H, D] under mask [B, M]: [B, N, H * D]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    over_keys = None if mask is None else mask[:, None, None, :]
    return _unscored(query, key, value, over_keys).transpose(1, 2).flatten(2)


def causal_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of the last N positions, query [B, N, H, D], to all L >= N keys: [B, N, H * D]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    queries, keys = query.shape[2], key.shape[2]
    mask = None
    if queries > 1:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return _unscored(query, key, value, mask).transpose(1, 2).flatten(2)


def _attend_rows(
    query: Tensor, key: Tensor, value: Tensor, tokens: Tokens, needs: frozenset[str]
) -> tuple[Tensor, Signals]:
    """Without gradients, over rows of different lengths; the context [..., H, D] in the tokens' layout."""
    assert tokens.mask is not None
    lengths = tokens.row_lengths()
    if not tokens.is_packed:
        query, key, value = (pack_rows(x, tokens.mask) for x in (query, key, value))
    sizes, runs = _sizes(tokens, needs), runs_of(lengths, lengths)
    if sizes is None and not tokens.is_causal and not needs & FROM_PROBABILITIES:
        context, signals = attend_runs(query, key, value, runs), Signals()
    else:
        context, parts, row = torch.empty_like(query, memory_format=torch.contiguous_format), [], 0
        for run in runs:
            of_run = None if sizes is None else sizes[row : row + run.rows, : run.keys]
            over_keys = _over_keys(run.keys, query.device, None, tokens.is_causal, of_run)
            q, k, v = (run.of_keys(x).transpose(1, 2) for x in (query, key, value))  # [R, H, n, D]
            attended, part = _attend_padded(q, k, v, None, over_keys, needs)
            run.of_keys(context).copy_(attended.transpose(1, 2))
            parts.append(part)
            row += run.rows
        signals = _stacked(parts, tokens.width)
    return context if tokens.is_packed else unpack_rows(context, tokens.mask), signals


def _stacked(parts: list[Signals], width: int) -> Signals:
    """What consecutive rows gave from their probabilities, widened with zeros and put together."""

    def stacked(name: str, token_dims: int) -> Tensor | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        return torch.cat([F.pad(value, (0, width - value.shape[-1]) * token_dims) for value in values])

    return Signals(stacked(RECEIVED, 1), stacked(CLASS_ROW, 1), mean_map=stacked(MEAN_MAP, 2))


def _sizes(tokens: Tokens, needs: frozenset[str]) -> Tensor | None:
    """[B, N] where attention is proportional."""
    return tokens.size if PROPORTIONAL in needs else None


def _over_keys(
    length: int, device: torch.device, mask: Tensor | None, is_causal: bool, sizes: Tensor | None
) -> Tensor | None:
    """What a query sees, for logits [B, H, N, N]: bool, or float to be added; None where it sees all alike.

    mask, sizes: [B, N] or None.
    """
    over_keys = None if mask is None else mask[:, None, None, :]
    if is_causal:
        order = _causal_order(length, device)
        over_keys = order if over_keys is None else order & over_keys
    if sizes is not None:
        log_sizes = sizes.log()[:, None, None, :]
        over_keys = log_sizes if over_keys is None else log_sizes.masked_fill(~over_keys, float("-inf"))
    return over_keys


def _causal_order(length: int, device: torch.device) -> Tensor:
    """Which keys a query of a causal row sees (`Tokens.is_causal`): [1, 1, N, N]."""
    order = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    order[0], order[1:, 0] = True, False  # the protected token stands first, and comes last
    return order[None, None]


def _mean_keys(key: Tensor, tokens: Tokens) -> Tensor:
    """key [B, N, H, D] or [T, H, D] -> float32 [B, N, D], zero at padding."""
    mean = tokens.to_padded(key.float().mean(-2))
    return mean if tokens.mask is None else mean.where(tokens.mask.unsqueeze(-1), 0.0)


def _unscored(query: Tensor, key: Tensor, value: Tensor, over_keys: Tensor | None) -> Tensor:
    """query [B, H, N, D], key, value [B, H, M, D], over_keys for [B, H, N, M] -> [B, H, N, D].

    Trains with an explicit softmax on a CPU: the backward of torch's fused CPU kernel is up to three times
    slower.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        if over_keys is not None and over_keys.dtype != torch.bool:
            over_keys = over_keys.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=over_keys)
    with torch.autocast("cpu", enabled=False):
        logits = weigh((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), over_keys)
        context: Tensor = logits.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
    return context


def _attend_padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    over_keys: Tensor | None,
    needs: frozenset[str],
) -> tuple[Tensor, Signals]:
    """Context of query, key, value [B, H, N, D] and the signals that come from its probabilities.

    over_keys hides what mask [B, N] does; mask is there to leave padded queries out of the signals.
    """
    if not needs & FROM_PROBABILITIES:
        return _unscored(query, key, value, over_keys), Signals()
    if torch.is_grad_enabled() or query.device.type != "cpu":
        return scored_at_once(query, key, value, mask, over_keys, needs)
    assert mask is None  # rows of different lengths come one by one
    return scored_in_parts(query, key, value, over_keys, needs)
