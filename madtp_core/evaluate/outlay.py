"""What one sample took, in plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from madtp_core.flops import FLOPS_PER_MULTIPLY_ADD
from madtp_core.tasks.cost import Spent

_GIGA = 1e9


class TokenCounts(NamedTuple):
    """Tokens of so many sequences: needed over all blocks, kept in every block, those of dense runs."""

    needed: int
    kept_by_block: tuple[int, ...]
    dense: int
    sequences: int

    @property
    def kept(self) -> int:
        """Over all blocks."""
        return sum(self.kept_by_block)


@dataclass(frozen=True)
class Outlay:
    """What one sample took: operations, and tokens by kind of sequence (`vision`, `text`, `match`)."""

    flops: int
    dense_flops: int
    tokens: Mapping[str, TokenCounts]

    @classmethod
    def of(cls, spent: Spent) -> Outlay:
        """Summed up from what the model says of a request."""
        counts = {
            kind: TokenCounts(
                sum(sum(trace.needed) for trace in traces),
                tuple(map(sum, zip(*(trace.kept for trace in traces), strict=True))),
                sum(trace.dense * len(trace.kept) for trace in traces),
                len(traces),
            )
            for kind, traces in spent.traces.items()
            if traces
        }
        return cls(spent.cost.flops, spent.cost.dense_flops, counts)

    @property
    def needed_tokens(self) -> int:
        return sum(counts.needed for counts in self.tokens.values())

    @property
    def kept_tokens(self) -> int:
        return sum(counts.kept for counts in self.tokens.values())

    @property
    def dense_tokens(self) -> int:
        return sum(counts.dense for counts in self.tokens.values())

    @property
    def gmacs(self) -> float:
        """Multiply-adds spent, in thousand millions: what the paper calls GFLOPs."""
        return self.flops / FLOPS_PER_MULTIPLY_ADD / _GIGA

    @property
    def dense_gmacs(self) -> float:
        """Multiply-adds of the same request and answer unpruned."""
        return self.dense_flops / FLOPS_PER_MULTIPLY_ADD / _GIGA
