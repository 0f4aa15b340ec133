"""The control law of the prune temperature: pure functions that hold what requests spend at a target.

The calibration says which temperature spends a ratio at a batch size. What is asked of it is not the target
but target x e^correction, and the correction integrates how far each batch missed the target. So a plant that
spends x times what the calibration says needs one correction, whatever the batch size, and the loop's gain is
the same on flat and on steep stretches of the calibration. Errors are relative and linear, not logarithms:
when their mean over requests is zero, the target is held in the mean.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class ControlRules:
    """gain: correction per request and relative error. largest_step: by one batch. largest: in all."""

    gain: float = 1 / 128
    largest_step: float = 0.5
    largest: float = 1.0

    def __post_init__(self) -> None:
        if min(self.gain, self.largest_step, self.largest) <= 0:
            raise ValueError(f"gain, largest_step and largest must be positive: {self}")


@dataclass(frozen=True, slots=True)
class ClassState:
    """What is remembered of one target class.

    correction: log of asked / target. carry: requests that should have run dense and did not, where only
    dense is dear enough; negative: that ran dense ahead of their time.
    """

    correction: float = 0.0
    carry: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a batch is asked to spend, at most what dense spends.

    is_floor: less was wanted than pruning can reach. dither: how much more than wanted, where batches take
    turns; over the turns it is nothing.
    """

    flops_ratio: float
    is_floor: bool
    dither: float = 0.0


def choose(
    state: ClassState, target: float, size: int, reachable: tuple[float, float], dense_ratio: float = 1.0
) -> tuple[ClassState, Choice]:
    """What the next batch of a class should spend.

    target: wanted flops_ratio. size: requests. reachable: the least and the most that pruning spends at that
    size. dense_ratio: what dense spends. Between the most and that, batches take turns between the two, so
    that the mean is what was wanted.
    """
    least, most = reachable
    wanted = target * math.exp(state.correction)
    if wanted <= most:  # the carry is kept: a class that ran dense ahead of its turn may pass through here
        return state, Choice(max(wanted, least), is_floor=wanted < least)
    wanted = min(wanted, dense_ratio)
    carry = state.carry + size * ((wanted - most) / (dense_ratio - most) if most < dense_ratio else 1.0)
    if carry < size / 2:
        return replace(state, carry=carry), Choice(most, is_floor=False, dither=most - wanted)
    dither = dense_ratio - wanted
    return replace(state, carry=carry - size), Choice(dense_ratio, is_floor=False, dither=dither)


def corrected(
    state: ClassState, choice: Choice, target: float, measured: float, size: int, rules: ControlRules
) -> ClassState:
    """The state after `size` requests spent `measured` of their dense cost in the mean.

    The turns with dense are no errors. Nothing winds up: at the floor, having spent too much is no reason to
    ask for less. What is not a number is ignored.
    """
    error = 1 - (measured - choice.dither) / target
    if not math.isfinite(error) or (choice.is_floor and error < 0):
        return state
    step = min(rules.largest_step, max(-rules.largest_step, rules.gain * size * error))
    return replace(state, correction=min(rules.largest, max(-rules.largest, state.correction + step)))
