"""The prune temperature that spends a wanted share of the dense cost: pure control laws on measured ratios.

A larger prune temperature prunes more, so a ratio above its target raises the temperature. The cost is a step
function of the temperature and saturates, so both laws settle at the nearest reachable point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from madtp_core.errors import ConfigError

_INNER: Final = (0.1, 0.9)  # part of an interval in which interpolation goes on


@dataclass(frozen=True)
class TemperatureSearch:
    """Integral control of log T on the running mean of measured flops ratios, one step a measurement.

    target: wanted flops_ratio in (0, 1]. gain: log T per unit of ratio error. smoothing: weight of the past
    in the mean. minimum, maximum: bounds of T, at which the integral stops, so nothing winds up.
    """

    target: float
    gain: float = 0.5
    smoothing: float = 0.8
    minimum: float = 1e-3
    maximum: float = 1e3

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise ConfigError(f"target flops_ratio must be in (0, 1], got {self.target}")
        if not 0 < self.minimum < self.maximum or self.gain <= 0 or not 0 <= self.smoothing < 1:
            raise ConfigError(
                f"temperature search needs 0 < minimum < maximum, gain > 0, smoothing in [0, 1): {self}"
            )

    def step(self, state: SearchState, measured: float) -> SearchState:
        """The state after one more measured flops_ratio."""
        mean = measured
        if state.mean is not None:
            mean = self.smoothing * state.mean + (1 - self.smoothing) * measured
        moved = state.prune_temperature * math.exp(self.gain * (mean - self.target))
        return SearchState(min(max(moved, self.minimum), self.maximum), mean)


@dataclass(frozen=True)
class SearchState:
    """Where a temperature search stands: the temperature to use next and the running mean so far."""

    prune_temperature: float
    mean: float | None = None


def nearest_temperature(
    measure: Callable[[float], float],
    target: float,
    *,
    minimum: float = 1e-2,
    maximum: float = 1e2,
    tolerance: float = 0.005,
    max_measurements: int = 12,
) -> tuple[float, float]:
    """Search T for a flops_ratio: returns the measured (temperature, ratio) nearest to the target.

    measure: T -> flops_ratio on a fixed sample, falling or level in T up to noise; -inf beyond what can be
    measured. Halves log T until the target lies between two measurements, then interpolates. Stops within
    tolerance of the target or after max_measurements. Raises ConfigError for bounds or a target out of order.
    """
    if not 0 < minimum < maximum or not 0 < target <= 1:
        raise ConfigError(
            f"need 0 < minimum < maximum and a target in (0, 1], got {minimum}, {maximum}, {target}"
        )
    tried: list[tuple[float, float]] = []
    low, high = (minimum, math.inf), (maximum, -math.inf)  # of an end nothing is known
    while len(tried) < max_measurements:
        temperature = temperature_between(low, high, target)
        found = temperature, measure(temperature)
        tried.append(found)
        if abs(found[1] - target) <= tolerance:
            break
        low, high = (found, high) if found[1] > target else (low, found)
    return min(tried, key=lambda pair: abs(pair[1] - target))


def temperature_between(low: tuple[float, float], high: tuple[float, float], target: float) -> float:
    """Where interpolation puts a flops_ratio between two (temperature, ratio), linear in (ratio, log T).

    Never at either end, where it is known already; in the middle where a ratio is not finite.
    """
    share = 0.5
    if math.isfinite(low[1]) and math.isfinite(high[1]):
        share = min(max((low[1] - target) / (low[1] - high[1]), _INNER[0]), _INNER[1])
    return low[0] * math.exp(math.log(high[0] / low[0]) * share)
