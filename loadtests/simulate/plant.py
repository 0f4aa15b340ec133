"""A stand-in for a pruned model: what a batch keeps and spends at a temperature, and its calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from loadtests.simulate.workload import Array

TEMPERATURES = tuple(float(t) for t in np.geomspace(0.01, 30.0, 16))
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
Density = TypeVar("Density", float, Array)  # tokens kept / tokens of a dense pass
_BATCHES = 200  # measured for each row of a calibration
SAMPLE = 4096  # requests that a calibration or a router has seen before


@dataclass(frozen=True)
class Outcome:
    """What one batch did. flops_ratios: of each request. needed, kept: sums over requests and blocks."""

    flops_ratios: list[float]
    needed: float
    kept: float


@dataclass(frozen=True)
class Plant:
    """fixed_share: of a request's cost that no pruning saves. steepness: how fast T lowers every need."""

    keep_mode: str = "max_keep"
    fixed_share: float = 0.1
    steepness: float = 0.35

    def run(self, needs: Array, temperatures: Sequence[float]) -> Outcome:
        """Runs a batch; needs: [n, blocks] at T = 0. temperatures: one a request; 0 is dense."""
        size, blocks = needs.shape
        if self.keep_mode == "max_keep":  # one temperature for all
            scale = (1 + temperatures[0]) ** -self.steepness
            wanted = needs * scale if temperatures[0] else np.ones(needs.shape)
            kept = float(wanted.max(0).sum())
            return Outcome([self._flops_ratio(kept / blocks)] * size, float(wanted.sum()), size * kept)
        t = np.array(temperatures)[:, None]
        wanted = np.where(t > 0, needs * (1 + t) ** -self.steepness, 1.0)
        ratios = self._flops_ratio(wanted.mean(1))
        return Outcome(ratios.tolist(), float(wanted.sum()), float(wanted.sum()))

    def _flops_ratio(self, kept: Density) -> Density:
        return self.fixed_share + (1 - self.fixed_share) * kept


class SimulatedCalibration:
    """What a plant spends by batch size and temperature on a natural sample; a batch is drawn at random."""

    dense_ratio = 1.0

    def __init__(self, plant: Plant, needs: Array, seed: int) -> None:
        rng = np.random.default_rng(seed)
        sizes = (1,) if plant.keep_mode == "per_instance" else BATCH_SIZES
        self._ratios = {}
        for size in sizes:
            batches = [needs[rng.integers(0, len(needs), size)] for _ in range(_BATCHES)]
            self._ratios[size] = [
                float(np.mean([plant.run(batch, [t] * size).flops_ratios for batch in batches]))
                for t in reversed(TEMPERATURES)
            ]
        self._log_t = [math.log(t) for t in reversed(TEMPERATURES)]
        self._columns: dict[int, Array] = {}

    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float:
        """The prune temperature that spends a ratio, clamped at the ends; 0 for 1."""
        if flops_ratio >= 1:
            return 0.0
        return float(math.exp(np.interp(flops_ratio, self._at(batch_size), self._log_t)))

    def reachable(self, batch_size: int, keep_mode: str) -> tuple[float, float]:
        """The least and the most that pruning spends at a batch size."""
        ratios = self._at(batch_size)
        return float(ratios[0]), float(ratios[-1])

    def _at(self, batch_size: int) -> Array:
        """Ratios by rising cost, between measured sizes on a log scale."""
        if batch_size not in self._columns:
            logs = np.log2(list(self._ratios))
            table = np.array(list(self._ratios.values()))
            place = math.log2(batch_size)
            self._columns[batch_size] = np.array([np.interp(place, logs, column) for column in table.T])
        return self._columns[batch_size]
