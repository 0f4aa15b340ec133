"""Costs to train at, in turn, each with a prune temperature that is searched while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from madtp_core.encoder import BatchPruning
from madtp_core.errors import ConfigError
from madtp_core.pruning import MAX_KEEP, Pruner, check_keep_mode
from madtp_core.pruning.temperature import SearchState, TemperatureSearch

DENSE = "dense"


@dataclass(frozen=True)
class Cost:
    """A keep mode and the flops_ratio to reach in it; keep_mode `dense` prunes nothing."""

    keep_mode: str
    flops_ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.keep_mode != DENSE:
            check_keep_mode(self.keep_mode)
        if not 0 < self.flops_ratio <= 1:
            raise ConfigError(f"flops_ratio must be in (0, 1], got {self.flops_ratio}")

    @property
    def is_dense(self) -> bool:
        return self.keep_mode == DENSE

    def __str__(self) -> str:
        return DENSE if self.is_dense else f"{self.keep_mode}@{self.flops_ratio:g}"


class CostsInTurn:
    """One cost a step, round and round, so that one checkpoint serves all of them.

    first_temperatures: where the search starts, a keep mode each. The ratio searched falls linearly from 1
    over the first ramp_steps; gain: as of `TemperatureSearch`.
    """

    def __init__(
        self,
        costs: Sequence[Cost],
        first_temperatures: Mapping[str, float],
        *,
        ramp_steps: int = 0,
        gain: float = 1.0,
    ) -> None:
        self.costs, self.ramp_steps, self.gain = tuple(costs), ramp_steps, gain
        self.states = {
            str(cost): SearchState(first_temperatures[cost.keep_mode]) for cost in costs if not cost.is_dense
        }

    def at(self, step: int) -> Cost:
        """The cost of a step."""
        return self.costs[step % len(self.costs)]

    def prune_temperature(self, step: int) -> float:
        """The temperature of a step, 0 for dense."""
        cost = self.at(step)
        return 0.0 if cost.is_dense else self.states[str(cost)].prune_temperature

    def pruning(self, pruner: Pruner, step: int, requests: int) -> BatchPruning:
        """How a step's requests are pruned."""
        cost = self.at(step)
        temperatures = torch.full((requests,), self.prune_temperature(step))
        return BatchPruning(pruner, temperatures, MAX_KEEP if cost.is_dense else cost.keep_mode)

    @property
    def saved_temperature(self) -> float:
        """The temperature that a checkpoint is saved with: of the first cost that prunes, or 0."""
        cost = self.first_pruned
        return 0.0 if cost is None else self.states[str(cost)].prune_temperature

    @property
    def first_pruned(self) -> Cost | None:
        """The first cost that prunes; None where all are dense."""
        return next((cost for cost in self.costs if not cost.is_dense), None)

    def figures(self, step: int, flops_ratio: float) -> dict[str, float]:
        """What to log of a step and to give to `note`."""
        name = str(self.at(step))
        return {
            f"flops_ratio/{name}": flops_ratio,
            f"prune_temperature/{name}": self.prune_temperature(step),
        }

    def note(self, step: int, figures: Mapping[str, float]) -> None:
        """Move the temperature of the step's cost by what the step measured."""
        cost = self.at(step)
        if cost.is_dense:
            return
        share = min(1.0, (step + 1) / self.ramp_steps) if self.ramp_steps else 1.0
        search = TemperatureSearch(1.0 - share * (1.0 - cost.flops_ratio), gain=self.gain)
        name = str(cost)
        self.states[name] = search.step(self.states[name], figures[f"flops_ratio/{name}"])

    def state(self) -> dict[str, Any]:
        """Where the searches stand."""
        return {
            name: {"prune_temperature": state.prune_temperature, "mean": state.mean}
            for name, state in self.states.items()
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""
        self.states = {
            name: SearchState(saved["prune_temperature"], saved["mean"]) for name, saved in state.items()
        }
