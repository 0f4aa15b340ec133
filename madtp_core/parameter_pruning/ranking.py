"""Which heads and units are dispensed with, and how much of them at which step: UPop's unified ranking.

Source: UPop (ICML 2023), sections 3.2 and 3.3, and `update_alpha_parameters` of its release.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp_core.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Layout:
    """All structures of a model in one row of S: what each belongs to, its kind, and its parameters.

    component, kind, parameters, group: [S] int64, components in their order. group: each gives its share;
    the same for all where the whole model gives one.
    """

    component: Tensor
    kind: Tensor
    parameters: Tensor
    group: Tensor

    def of(self, group: int) -> tuple[Tensor, Layout]:
        """Where a group's structures stand, [S] bool, and the layout of these alone."""
        own = self.group == group
        parts = (self.component, self.kind, self.parameters, self.group)
        return own, Layout(*(part[own] for part in parts))


def ratio_at(step: int, steps: int, ratio: float) -> float:
    """How much is pruned behind a step: from nearly 0 to the ratio itself at the last one.

    p_t = p * sqrt((1 - cos(pi * (t + 1) / T)) / 2).
    """
    return ratio * math.sqrt((1 - math.cos(math.pi * (step + 1) / steps)) / 2)


def dispensable(importance: Tensor, layout: Layout, ratio: float) -> Tensor:
    """The least important structures that hold a share of each group's parameters: [S] bool.

    importance: [S], standardised within a group's heads and within its units, so that both compete; its
    towers, blocks and components compete as they are. Of what may go the number is taken whose parameters are
    nearest to the share. The most important structure of each component stays: a block without heads or units
    is no block. Raises ConfigError for a share that leaves less than that.
    """
    chosen = torch.zeros_like(layout.component, dtype=torch.bool)
    for group in set(layout.group.tolist()):
        own, alone = layout.of(group)
        chosen[own] = _of_group(importance[own], alone, ratio)
    return chosen


def _of_group(importance: Tensor, layout: Layout, ratio: float) -> Tensor:
    total = int(layout.parameters.sum())
    scores = _standardised(importance.double(), layout.kind)
    stays = _best_of_each(scores, layout.component)
    most = int(layout.parameters[~stays].sum()) / total
    if not 0 < ratio <= most:
        raise ConfigError(
            f"the ratio must be in (0, {most:.3f}], got {ratio}: one head and one unit stay everywhere"
        )
    order = scores.masked_fill(stays, float("inf")).argsort(stable=True)[: int((~stays).sum())]
    gone = layout.parameters[order].cumsum(0)
    count = int((gone - ratio * total).abs().argmin()) + 1
    chosen = torch.zeros_like(stays)
    chosen[order[:count]] = True
    return chosen


def _standardised(importance: Tensor, kind: Tensor) -> Tensor:
    scores = torch.empty_like(importance)
    for one in set(kind.tolist()):
        alike = importance[kind == one]
        scores[kind == one] = (alike - alike.mean()) / alike.std(unbiased=False).clamp_min(1e-30)
    return scores


def _best_of_each(scores: Tensor, component: Tensor) -> Tensor:
    """The first of the highest of each component: [S] bool."""
    best = torch.zeros_like(component, dtype=torch.bool)
    for one in set(component.tolist()):
        place = (component == one).nonzero().flatten()
        best[place[scores[place].argmax()]] = True
    return best
