"""Attention rollout: the tokens that reach the class token most over a group of blocks stay, the others go.

Source: the first stage of "IVTP: Instruction-guided Visual Token Pruning" (ECCV 2024), Algorithm 1 of its
supplement. Its equations 3 and 4 are not in the supplement: the rollout here is that of "Quantifying
Attention Flow in Transformers" (ACL 2020), half attention and half residual, and the importance its class
row. Defined for images; in a text the protected token takes the class token's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madtp_core.attention import MEAN_MAP, Signals
from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import PruneStep
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tokens import Tokens

_MAPS = "maps"  # of the group so far, in the forward's own state


class RolloutPruner(ScheduledPruner):
    """Prunes behind the last block of every group of so many blocks; the last group may be shorter."""

    needs = frozenset({MEAN_MAP})
    appends_merged = False

    def __init__(self, *, group: int = 3, **schedule: Any) -> None:
        if group < 1:
            raise ConfigError(f"a rollout's group must have at least one block, got {group}")
        self.group = group
        super().__init__(**schedule)

    def prunes_at(self, block: int, blocks: int) -> bool:
        return (block + 1) % self.group == 0 or block == blocks - 1

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        assert signals.mean_map is not None
        maps = step.state.setdefault(_MAPS, [])
        maps.append(signals.mean_map.detach())  # it ranks tokens and weighs none, so no gradient needs it
        if not self.prunes_at(step.block, step.blocks):
            return signals.mean_map.new_zeros(len(maps[0]), tokens.width - 1)
        step.state[_MAPS] = []
        return class_rollout(maps)[:, 1:]

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring:
        return RolloutScoring()


def class_rollout(maps: Sequence[Tensor]) -> Tensor:
    """The class row of (A_l + I) / 2 ... (A_1 + I) / 2: maps A [B, N, N], first block first -> [B, N].

    Only that row is formed, from the last block backwards: N^2 multiply-adds a block where the whole rollout
    takes N^3.
    """
    row = torch.zeros_like(maps[0][:, :1])  # [B, 1, N]
    row[:, :, 0] = 1
    for attention in reversed(maps):
        row = (row @ attention + row) / 2
    return row.squeeze(1)


@dataclass(frozen=True)
class RolloutScoring:
    """The class row times each block's map."""

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        return (entering + 1) ** 2
