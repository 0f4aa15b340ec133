"""Which prune temperature a batch runs at, so that requests spend what was promised: numbers and a clock.

Feed-forward from the calibration, feedback from what each batch really cost (control.py), and targets that
give way to load (degradation.py). The engine's thread alone calls it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.control import Choice, ClassState, ControlRules, choose, corrected
from service.degradation import Degradation, DegradationRules, degraded, slid_target

KeepMode = Literal["max_keep", "per_instance"]
Quality = Literal["exact", "balanced", "fast"]
Reason = Literal["floor", "load", "method", "fixed", "uncalibrated"]
Shape = tuple[tuple[str, int], ...]  # sequences of every kind; () where all requests of a model are alike
_ROUNDING = 1e-6
_Found = dict[tuple[Shape, float], float]  # prune temperatures by what they were asked for


class Calibration(Protocol):
    """What was measured of a model; `madtp_core.calibration.Calibration` is one.

    dense_ratio: what an unpruned request spends of its dense cost; less than 1 where parameters were pruned.
    """

    @property
    def dense_ratio(self) -> float: ...
    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float: ...
    def reachable(self, batch_size: int, keep_mode: str) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class TargetClass:
    """Requests with one target share what is learned of it, and under max-keep a batch holds one class only.

    flops_ratio: 1 is dense. may_degrade: whether the target gives way to load. shape: of its requests, see
    `shape_class`; one temperature makes an image against two texts and one against fifty spend very different
    shares.
    """

    name: str
    flops_ratio: float
    may_degrade: bool
    shape: Shape = ()


EXACT = TargetClass("exact", 1.0, may_degrade=False)


def target_class(
    quality: Quality | None, flops_target: float | None, *, balanced: float, fast: float
) -> TargetClass:
    """The class of a request: of its own target, else of its quality, else `balanced`.

    balanced, fast: the operator's ratios. An own target in (0, 1] counts in steps of 0.01, so that classes
    stay few; it is the request's and does not degrade.
    """
    if flops_target is not None:
        flops_ratio = max(0.01, round(flops_target, 2))
        return EXACT if flops_ratio >= 1 else TargetClass(f"{flops_ratio:.2f}", flops_ratio, False)
    named = {
        "exact": EXACT,
        "balanced": TargetClass("balanced", balanced, may_degrade=True),
        "fast": TargetClass("fast", fast, may_degrade=True),
    }
    return named[quality or "balanced"]


def shape_class(counts: Mapping[str, int]) -> Shape:
    """The shape that requests with so many sequences of each kind are counted under: powers of two.

    Few of them, so that requests find mates; what a class spends off its middle, the feedback corrects.
    """
    return tuple(
        (kind, 2 ** round(math.log2(count)) if count else 0) for kind, count in sorted(counts.items())
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """What one request runs at.

    flops_ratio: its target now, degraded or not. asked_ratio: what the calibration was asked for. reason: why
    it is not what the request wanted; `floor` is below what the model reaches, at this batch size and with
    such requests. dither: see `Choice`.
    """

    prune_temperature: float
    flops_ratio: float
    asked_ratio: float
    reason: Reason | None = None
    dither: float = 0.0


DENSE = Setting(prune_temperature=0.0, flops_ratio=1.0, asked_ratio=1.0)


class Controller:
    """Holds what requests of a calibrated model spend at their targets.

    floor: no target degrades below this flops_ratio. of_shape: the calibration of a shape of requests in a
    keep mode; None where all are alike. Requests of a shape never run at a higher temperature than such as
    were calibrated need for the same target: they answer as well, and spend more where they must. When it is
    off, every batch runs at the temperature that spends the target in batches of reference_batch_size: the
    paper's way.
    """

    def __init__(
        self,
        calibration: Calibration,
        keep_mode: KeepMode,
        *,
        floor: float,
        is_on: bool = True,
        reference_batch_size: int = 32,
        of_shape: Callable[[Mapping[str, int], str], Calibration | None] = lambda shape, keep_mode: None,
        rules: ControlRules | None = None,
        degradation_rules: DegradationRules | None = None,
    ) -> None:
        self._calibrations: dict[Shape, Calibration] = {(): calibration}
        self._of_shape = of_shape
        self._keep_mode = keep_mode
        self._floor = floor
        self._is_on = is_on
        self._reference_batch_size = reference_batch_size
        self._rules = rules or ControlRules()
        self._degradation_rules = degradation_rules or DegradationRules()
        self._degradation = Degradation()
        self._states: dict[TargetClass, ClassState] = {}
        self._latest_correction = 0.0
        self._reachable: dict[tuple[Shape, int], tuple[float, float]] = {}

    def set_pressure(self, pressure: float, now_s: float) -> None:
        """Says how full the service is: predicted tokens inside / their bound. Before every `settings`."""
        if self._is_on:
            self._degradation = degraded(self._degradation, pressure, now_s, self._degradation_rules)

    def settings(self, classes: Sequence[TargetClass]) -> list[Setting]:
        """What each request of the next batch runs at.

        Raises ValueError for several classes in one batch under max-keep, whose rows share one temperature.
        """
        if self._keep_mode == "per_instance":
            temperatures: _Found = {}  # of this batch: most of its requests ask for the same
            return [self._setting(one, 1, temperatures) for one in classes]
        if len(set(classes)) > 1:
            names = ", ".join(sorted({one.name for one in classes}))
            raise ValueError(f"a max-keep batch holds one target class, got {names}")
        return [self._setting(classes[0], len(classes), {})] * len(classes) if classes else []

    def observe(
        self, classes: Sequence[TargetClass], settings: Sequence[Setting], flops_ratios: Sequence[float]
    ) -> None:
        """Learns from a batch that was answered; flops_ratios: spent / dense of each request."""
        if not self._is_on:
            return
        spent: dict[TargetClass, list[tuple[Setting, float]]] = {}
        for one, setting, flops_ratio in zip(classes, settings, flops_ratios, strict=True):
            if one in self._states:
                spent.setdefault(one, []).append((setting, flops_ratio))
        for one, pairs in spent.items():
            setting = pairs[0][0]
            # The requests of a class differ in their turns with dense (per-instance), and in nothing else.
            dither = _mean([each.dither for each, _ in pairs])
            choice = Choice(setting.asked_ratio, setting.reason == "floor", dither)
            measured = _mean([flops_ratio for _, flops_ratio in pairs])
            state = corrected(
                self._states[one], choice, setting.flops_ratio, measured, len(pairs), self._rules
            )
            self._states[one] = state
            self._latest_correction = state.correction

    def _setting(self, one: TargetClass, size: int, temperatures: _Found) -> Setting:
        if one.flops_ratio >= 1:
            return DENSE
        if not self._is_on:
            return self._fixed_setting(one, temperatures)
        target = one.flops_ratio
        if one.may_degrade:
            target = slid_target(target, self._floor, self._degradation.level)
        is_lowered = target < one.flops_ratio
        # A new class begins with what was last learned of the plant.
        state = self._states.get(one, ClassState(self._latest_correction))
        dense_ratio = self._calibration_of(one.shape).dense_ratio
        target = min(target, dense_ratio)
        reachable = self._reachable_at(one.shape, size)
        self._states[one], choice = choose(state, target, size, reachable, dense_ratio)
        asked = choice.flops_ratio
        temperature = self._temperature(one.shape, asked, size, temperatures)
        is_floor = choice.is_floor
        if one.shape:  # how well others than calibrated ones answer above that temperature, nobody knows
            highest = self._temperature((), target * math.exp(state.correction), size, temperatures)
            is_floor = is_floor or temperature > highest * (1 + _ROUNDING)
            temperature = min(temperature, highest)
        reason: Reason | None = "floor" if is_floor else "load" if is_lowered else None
        return Setting(temperature, target, asked, reason, choice.dither)

    def _fixed_setting(self, one: TargetClass, temperatures: _Found) -> Setting:
        """Whatever shape: the calibration as it was measured."""
        ratio = one.flops_ratio
        return Setting(self._temperature((), ratio, self._reference_batch_size, temperatures), ratio, ratio)

    def _temperature(self, shape: Shape, ratio: float, size: int, found: _Found) -> float:
        if (shape, ratio) not in found:
            calibration = self._calibration_of(shape)
            found[shape, ratio] = calibration.temperature_for(ratio, size, self._keep_mode)
        return found[shape, ratio]

    def _reachable_at(self, shape: Shape, size: int) -> tuple[float, float]:
        if (shape, size) not in self._reachable:
            reachable = self._calibration_of(shape).reachable(size, self._keep_mode)
            self._reachable[shape, size] = reachable
        return self._reachable[shape, size]

    def _calibration_of(self, shape: Shape) -> Calibration:
        if shape not in self._calibrations:
            self._calibrations[shape] = self._of_shape(dict(shape), self._keep_mode) or self._calibrations[()]
        return self._calibrations[shape]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
