"""Spatial pooling: the grid of patches becomes a smaller grid, each cell the mean of its patches.

Source: the baseline "spatial pooling" of "IVTP: Instruction-guided Visual Token Pruning" (ECCV 2024;
supplement, section 2). Defined for images; a text keeps all its tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import VISION, MergeScoring, Pruned, PruneStep, keep_and_absorb
from madtp_core.pruning.schedule import PruningGeometry
from madtp_core.pruning.scheduled import KeepRates, ScheduledPruner
from madtp_core.tokens import Tokens

Grid = tuple[int, int]


class SpatialPruner(ScheduledPruner):
    """Pools the patches behind the first block's attention to the grid that spends the wanted share best.

    keep_rate: {"vision": share of the patches}. The pooled grid has nearly the shape of the image's.
    Differs from the source, which pools what the image tower returns and so saves nothing in it. Cells are
    disjoint, so that each patch counts once.
    """

    appends_merged = False
    tolerance = 0.05  # whole rows and columns come no nearer

    def __init__(
        self,
        *,
        geometry: PruningGeometry | None = None,
        flops_ratio: float | None = None,
        keep_rate: Mapping[str, KeepRates] | None = None,
    ) -> None:
        if geometry is None:
            raise ConfigError("spatial pooling needs a model's geometry: the grid of its patches")
        super().__init__(geometry=geometry, flops_ratio=flops_ratio, keep_rate=keep_rate)

    def prunes_at(self, block: int, blocks: int) -> bool:
        return block == 0

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        stays = self._destination(tokens, step) == _places(tokens)
        return stays[:, 1:].float()

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        scores, needed = self.decide(tokens, signals, step)
        return keep_and_absorb(tokens, scores, needed, step.keep_mode, self._destination(tokens, step))

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring:
        return MergeScoring()

    def _destination(self, tokens: Tokens, step: PruneStep) -> Tensor:
        """Where each token goes, itself where nothing is pooled: [B, 1 + N]."""
        places = _places(tokens)
        if step.branch != VISION or not self.prunes_at(step.block, step.blocks):
            return places
        count = self.counts(step.branch, tokens.width - 1, step.blocks)[0]
        grid = self._grid(tokens.width - 1)
        behind_class = 1 + torch.tensor(first_of_cell(grid, pooled_grid(grid, count)))
        return torch.cat([places[:, :1], behind_class.to(places.device).expand(len(places), -1)], 1)

    def _resolve(self, branch: str, tokens: int, blocks: int) -> tuple[int, ...]:
        return super()._resolve(branch, tokens, blocks) if branch == VISION else (tokens,) * blocks

    def _at_rates(self, rates: Sequence[float], tokens: int) -> tuple[int, ...]:
        rows, columns = pooled_grid(self._grid(tokens), rates[0] * tokens)
        return (rows * columns,) * len(rates)

    def _grid(self, tokens: int) -> Grid:
        branch = self.geometry.branches.get(VISION)
        if branch is None or branch.grid is None or branch.tokens != tokens:
            known = None if branch is None else branch.grid
            raise ConfigError(
                f"spatial pooling was built for a grid of {known}, the image has {tokens} patches"
            )
        return branch.grid


def pooled_grid(grid: Grid, cells: float) -> Grid:
    """The smaller grid, of the same shape within a column, whose number of cells is nearest."""
    rows, columns = grid

    def badness(candidate: Grid) -> tuple[float, float]:
        return abs(candidate[0] * candidate[1] - cells), abs(candidate[0] * columns - candidate[1] * rows)

    candidates = [
        (fewer, min(max(round(fewer * columns / rows) + more, 1), columns))
        for fewer in range(1, rows + 1)
        for more in (-1, 0, 1)
    ]
    return min(candidates, key=badness)


def first_of_cell(grid: Grid, pooled: Grid) -> list[int]:
    """For every patch, row by row, the first patch of its cell; a cell is a rectangle of patches."""
    rows, columns = (_first_of_part(length, parts) for length, parts in zip(grid, pooled, strict=True))
    return [row * grid[1] + column for row in rows for column in columns]


def _first_of_part(length: int, parts: int) -> list[int]:
    """The first of each number's part, where so many numbers are cut into parts as equal as they can be."""
    part = [number * parts // length for number in range(length)]
    return [part.index(own) for own in part]


def _places(tokens: Tokens) -> Tensor:
    """Every token's own place: [B, 1 + N]."""
    return torch.arange(tokens.width, device=tokens.position.device).expand(tokens.batch_size, -1)
