"""Attention between packed sequences of different lengths: nothing is spent on padding.

On a CPU rows are attended one by one, runs of equally long ones at once: measured faster than a padded and
masked call at 1 to 32 rows, short questions included. A GPU runs one variable-length kernel, where torch has
it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

VarlenKernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int], Tensor]

_FIRST_CAPABILITY = (8, 0)  # of a GPU that torch's flash attention runs on


@dataclass(frozen=True)
class Run:
    """Consecutive rows whose queries, and whose keys, are equally many and lie one after another.

    rows: how many. queries, keys: tokens a row. first_query, first_key: where they start in packed tensors.
    """

    rows: int
    first_query: int
    queries: int
    first_key: int
    keys: int

    def of_queries(self, packed: Tensor) -> Tensor:
        """packed [T, ...] -> a view of the run's query tokens [R, n, ...]."""
        return _view(packed, self.first_query, self.rows, self.queries)

    def of_keys(self, packed: Tensor) -> Tensor:
        """packed [T, ...] -> a view of the run's key tokens [R, n, ...]."""
        return _view(packed, self.first_key, self.rows, self.keys)


def _view(packed: Tensor, first: int, rows: int, length: int) -> Tensor:
    return packed[first : first + rows * length].view(rows, length, *packed.shape[1:])


def runs_of(
    query_lengths: Sequence[int], key_lengths: Sequence[int], reader: Sequence[int] | None = None
) -> list[Run]:
    """Cut rows into runs: row r has query_lengths[r] queries and reads the keys of sequence reader[r], or r.

    Neighbours that read the same sequence become one row, as no query sees another.
    """
    key_starts = [0, *accumulate(key_lengths)]
    runs: list[Run] = []
    first_query = 0
    for row, queries in enumerate(query_lengths):
        sequence = row if reader is None else reader[row]
        first_key, keys = key_starts[sequence], key_lengths[sequence]
        last = runs[-1] if runs else None
        if last and last.rows == 1 and last.first_key == first_key:
            runs[-1] = replace(last, queries=last.queries + queries)
        elif last and (last.queries, last.keys, last.first_key + last.rows * keys) == (
            queries,
            keys,
            first_key,
        ):
            runs[-1] = replace(last, rows=last.rows + 1)
        else:
            runs.append(Run(1, first_query, queries, first_key, keys))
        first_query += queries
    return runs


def attend_runs(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run]) -> Tensor:
    """Attention of query [T, H, D] to key, value [S, H, D], each row to its own keys: [T, H, D].

    Without gradients: it writes in place.
    """
    kernel = _kernel_for(query)
    if kernel is not None and len(runs) > 1:
        return _attend_varlen(kernel, query, key, value, runs)
    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    for run in runs:
        q, k, v = run.of_queries(query), run.of_keys(key), run.of_keys(value)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )  # [R, H, n, D]
        run.of_queries(context).copy_(attended.transpose(1, 2))
    return context


def _attend_varlen(
    kernel: VarlenKernel, query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run]
) -> Tensor:
    """The same in one call of a kernel that takes packed sequences and where each one starts."""
    rows = [
        (run.queries, run.first_key + row * run.keys, run.keys) for run in runs for row in range(run.rows)
    ]
    query_lengths, first_keys, key_lengths = zip(*rows, strict=True)
    key_starts = [0, *accumulate(key_lengths)]
    if list(first_keys) != key_starts[:-1] or key_starts[-1] != len(key):  # shared, or out of order
        spans = [slice(first, first + keys) for _, first, keys in rows]
        key, value = (torch.cat([packed[span] for span in spans]) for packed in (key, value))
    starts = [
        torch.tensor(offsets, dtype=torch.int32, device=query.device)
        for offsets in ([0, *accumulate(query_lengths)], key_starts)
    ]
    return kernel(query, key, value, starts[0], starts[1], max(query_lengths), max(key_lengths))


def _kernel_for(query: Tensor) -> VarlenKernel | None:
    """The variable-length kernel, where device, dtype and head width [T, H, D] are such that it runs."""
    is_fit = query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16)
    if not is_fit or query.shape[-1] % 8 or not torch.backends.cuda.is_flash_attention_available():
        return None
    return _varlen_kernel() if torch.cuda.get_device_capability(query.device) >= _FIRST_CAPABILITY else None


@cache
def _varlen_kernel() -> VarlenKernel | None:
    """torch's variable-length attention, which came with torch 2.10; None before."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return cast(VarlenKernel, varlen_attn)
