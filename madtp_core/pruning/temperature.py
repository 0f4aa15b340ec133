"""The prune temperature that spends a wanted share of the dense cost: pure control laws on measured ratios.

A larger prune temperature prunes more, so a ratio above its target raises the temperature. The cost is a step
function of the temperature and saturates, so both laws settle at the nearest reachable point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from madtp_core.errors import ConfigError


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

    def with_target(self, target: float) -> TemperatureSearch:
        """The same law towards another target."""
        return replace(self, target=target)

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
    """Bisect log T for a flops_ratio: returns the measured (temperature, ratio) nearest to the target.

    measure: T -> flops_ratio on a fixed sample, falling or level in T up to noise. Stops within tolerance of
    the target or after max_measurements. Raises ConfigError for bounds or a target out of order.
    """
    if not 0 < minimum < maximum or not 0 < target <= 1:
        raise ConfigError(
            f"need 0 < minimum < maximum and a target in (0, 1], got {minimum}, {maximum}, {target}"
        )
    low, high = math.log(minimum), math.log(maximum)
    tried: list[tuple[float, float]] = []
    for _ in range(max_measurements):
        temperature = math.exp((low + high) / 2)
        ratio = measure(temperature)
        tried.append((temperature, ratio))
        if abs(ratio - target) <= tolerance:
            break
        if ratio > target:
            low = math.log(temperature)
        else:
            high = math.log(temperature)
    return min(tried, key=lambda pair: abs(pair[1] - target))
