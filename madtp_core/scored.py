"""Attention whose probabilities are formed here: no fused kernel returns what token importance needs.

All at once where gradients are wanted or a GPU computes, else in parts that stay in a CPU's cache, so that
the map of all heads is never written to memory.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from madtp_core.signals import CLASS_ROW, MEAN_MAP, RECEIVED, Signals

_PART_BYTES = 4 << 20  # of probabilities at once


def weigh(logits: Tensor, over_keys: Tensor | None) -> Tensor:
    """Hide keys where over_keys, broadcastable to the logits, is False; a float over_keys is added."""
    if over_keys is None:
        return logits
    if over_keys.dtype == torch.bool:
        return logits.masked_fill(~over_keys, float("-inf"))
    return logits + over_keys


def scored_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    over_keys: Tensor | None,
    needs: frozenset[str],
) -> tuple[Tensor, Signals]:
    """The explicit softmax of Hugging Face's eager attention over one [B, H, N, N] map: it differentiates."""
    logits = weigh((query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5, over_keys)  # [B, H, N, N]
    probs = logits.softmax(-1, dtype=torch.float32)
    received, mean_map = None, None
    if RECEIVED in needs:
        strongest = probs[:, :, 1:].amax(1)  # [B, N - 1, N]
        received = (strongest if mask is None else strongest * mask[:, 1:, None]).sum(1)
    if MEAN_MAP in needs:
        mean_map = probs.mean(1) if mask is None else probs.mean(1) * mask.unsqueeze(-1)
    class_row = probs[:, :, 0] if CLASS_ROW in needs else None
    return probs.to(value.dtype) @ value, Signals(received, class_row, mean_map=mean_map)


def scored_in_parts(
    query: Tensor, key: Tensor, value: Tensor, over_keys: Tensor | None, needs: frozenset[str]
) -> tuple[Tensor, Signals]:
    """The same without gradients, as many queries, or rows, at once as keep their maps in a CPU's cache."""
    batch, heads, length, _ = query.shape
    context = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
    received = query.new_zeros(batch, length, dtype=torch.float32)
    class_row = query.new_empty(batch, heads, length, dtype=torch.float32)
    mean_map = received.new_empty(batch, length, length) if MEAN_MAP in needs else None
    over_keys = None if over_keys is None else over_keys.expand(batch, 1, length, length)
    queries_at_once = max(1, _PART_BYTES // (4 * heads * length))
    room = query.new_empty(min(max(_PART_BYTES // 4, heads * length), batch * heads * length**2))
    rooms = room, room if room.dtype == torch.float32 else torch.empty_like(room, dtype=torch.float32)
    for rows in _slices(batch, max(1, queries_at_once // length)):
        for part in _slices(length, queries_at_once):
            bias = None if over_keys is None else over_keys[rows, :, part]
            probs = _probabilities(query[rows, :, part], key[rows], bias, rooms)  # [R, H, n, N]
            context[rows, :, part] = probs.to(value.dtype) @ value[rows]
            is_first = part.start == 0  # the protected token's row counts apart
            if RECEIVED in needs:
                received[rows] += probs[:, :, is_first:].amax(1).sum(1)
            if CLASS_ROW in needs and is_first:
                class_row[rows] = probs[:, :, 0]
            if mean_map is not None:
                mean_map[rows, part] = probs.mean(1)
    return context, Signals(
        received if RECEIVED in needs else None, class_row if CLASS_ROW in needs else None, mean_map=mean_map
    )


def _slices(count: int, longest: int) -> list[slice]:
    """Cut count things into parts, as equal as they can be, of no more than so many."""
    parts = -(-count // longest)
    cuts = [index * count // parts for index in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def _probabilities(
    query: Tensor, key: Tensor, over_keys: Tensor | None, rooms: tuple[Tensor, Tensor]
) -> Tensor:
    """softmax(q k^T / sqrt(D)) of query [R, H, n, D], key [R, H, N, D]: float32 [R, H, n, N].

    rooms: memory for logits, of the query's dtype, and for probabilities, float32; one if these are the same.
    """
    shape = *query.shape[:3], key.shape[2]
    logits, probs = (room[: math.prod(shape)].view(-1, *shape[2:]) for room in rooms)  # [R * H, n, N]
    flat_query, flat_key = query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2)
    torch.baddbmm(logits, flat_query, flat_key, beta=0, alpha=query.shape[-1] ** -0.5, out=logits)
    logits = weigh(logits.view(shape), over_keys)
    return torch.softmax(logits, -1, dtype=torch.float32, out=probs.view(shape))
