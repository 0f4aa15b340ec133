"""How far quality gives way to load: pure functions on the queue's pressure and a clock.

Degrading before shedding: cf. OTAS (2024) and SuperServe (NSDI 2025).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DegradationRules:
    """When targets slide, by pressure: predicted tokens inside the service / its bound.

    starts_at, full_at: pressures at which targets begin to slide and stand at the floor; below 1, so that
    quality goes before requests do. recovery_s: from the floor to full quality once the pressure is gone.
    """

    starts_at: float = 0.25
    full_at: float = 0.75
    recovery_s: float = 2.5

    def __post_init__(self) -> None:
        if not 0 <= self.starts_at < self.full_at < 1 or self.recovery_s <= 0:
            raise ValueError(f"degradation needs 0 <= starts_at < full_at < 1 and recovery_s > 0: {self}")


@dataclass(frozen=True, slots=True)
class Degradation:
    """How degraded the service is: level 0 is full quality, 1 the floor."""

    level: float = 0.0
    at_s: float = 0.0


def degraded(state: Degradation, pressure: float, now_s: float, rules: DegradationRules) -> Degradation:
    """The state at a pressure: rises with it at once, falls with it but no faster than the recovery allows.

    A fall at once would let the queue fill again, and quality would swing with it.
    """
    wanted = min(1.0, max(0.0, (pressure - rules.starts_at) / (rules.full_at - rules.starts_at)))
    recovered = state.level - max(0.0, now_s - state.at_s) / rules.recovery_s
    return Degradation(max(wanted, recovered), now_s)


def slid_target(flops_ratio: float, floor: float, level: float) -> float:
    """The target in force: from flops_ratio at level 0 to floor at level 1, by equal factors; never below it.

    A target that is below the floor already stays as it is.
    """
    if floor >= flops_ratio:
        return flops_ratio
    return float(flops_ratio * (floor / flops_ratio) ** level)
