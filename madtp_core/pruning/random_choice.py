"""Random pruning: a seeded choice of tokens stays, the others go.

Source: the baseline "random sampling" of "IVTP: Instruction-guided Visual Token Pruning" (ECCV 2024;
supplement, section 2).
"""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.pruning.base import BRANCHES, PruneStep
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tokens import Tokens

_MASK = 0xFFFFFFFF
_Words = TypeVar("_Words", int, Tensor)


class RandomPruner(ScheduledPruner):
    """Keeps the tokens whose hashed position is highest; seed names the draw.

    A token's number follows from seed, branch, block and its position alone. So neither batch mates nor the
    layout nor rounding can change a row's choice, and all rows share one draw: average over seeds.
    """

    appends_merged = False

    def __init__(self, *, seed: int = 0, **schedule: Any) -> None:
        super().__init__(**schedule)
        self.seed = seed

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        stream = (self.seed * len(BRANCHES) + BRANCHES.index(step.branch)) * step.blocks + step.block
        return hashed_uniform(tokens.position[:, 1:], stream)


def hashed_uniform(numbers: Tensor, stream: int) -> Tensor:
    """A fixed uniform number in [0, 1) for every number of a stream: int64 [...] -> float32 [...].

    Source: the finaliser of MurmurHash3 (32 bits), once over the stream and once over both.
    """
    start = _mixed(stream & _MASK)
    return (_mixed((numbers * 0x9E3779B1 + start) & _MASK) >> 8).float() / (1 << 24)


def _mixed(words: _Words) -> _Words:
    """Words below 2 ** 32, int64 as tensors, mixed to others; products may wrap, their low bits are right."""
    words = ((words ^ (words >> 16)) * 0x85EBCA6B) & _MASK
    words = ((words ^ (words >> 13)) * 0xC2B2AE35) & _MASK
    return words ^ (words >> 16)
