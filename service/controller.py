"""Which prune temperature a batch runs at, so that requests spend what was promised: numbers and a clock.

Feed-forward from the calibration, feedback from what each batch really cost (control.py), and targets that
give way to load (degradation.py). The engine's thread alone calls it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.control import Choice, ClassState, ControlRules, choose, corrected
from service.degradation import Degradation, DegradationRules, degraded, slid_target

KeepMode = Literal["max_keep", "per_instance"]
Quality = Literal["exact", "balanced", "fast"]
Reason = Literal["floor", "load", "method", "fixed", "uncalibrated"]


class Calibration(Protocol):
    """What was measured of a model; `madtp_core.calibration.Calibration` is one."""

    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float: ...
    def reachable(self, batch_size: int, keep_mode: str) -> tuple[float, float]: ...


@dataclass(frozen=True, slots=True)
class TargetClass:
    """Requests with one target share what is learned of it, and under max-keep a batch holds one class only.

    flops_ratio: 1 is dense. may_degrade: whether the target gives way to load.
    """

    name: str
    flops_ratio: float
    may_degrade: bool


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


@dataclass(frozen=True, slots=True)
class Setting:
    """What one request runs at.

    flops_ratio: its target now, degraded or not. asked_ratio: what the calibration was asked for. reason: why
    it is not what the request wanted; `floor` is below what the model reaches at this batch size. dither: see
    `Choice`.
    """

    prune_temperature: float
    flops_ratio: float
    asked_ratio: float
    reason: Reason | None = None
    dither: float = 0.0


DENSE = Setting(prune_temperature=0.0, flops_ratio=1.0, asked_ratio=1.0)


class Controller:
    """Holds what requests of a calibrated model spend at their targets.

    floor: no target degrades below this flops_ratio. When it is off, every batch runs at the temperature that
    spends the target in batches of reference_batch_size: the paper's way.
    """

    def __init__(
        self,
        calibration: Calibration,
        keep_mode: KeepMode,
        *,
        floor: float,
        is_on: bool = True,
        reference_batch_size: int = 32,
        rules: ControlRules | None = None,
        degradation_rules: DegradationRules | None = None,
    ) -> None:
        self._calibration = calibration
        self._keep_mode = keep_mode
        self._floor = floor
        self._is_on = is_on
        self._reference_batch_size = reference_batch_size
        self._rules = rules or ControlRules()
        self._degradation_rules = degradation_rules or DegradationRules()
        self._degradation = Degradation()
        self._states: dict[str, ClassState] = {}
        self._latest_correction = 0.0
        self._reachable: dict[int, tuple[float, float]] = {}

    def set_pressure(self, pressure: float, now_s: float) -> None:
        """Says how full the service is: predicted tokens inside / their bound. Before every `settings`."""
        if self._is_on:
            self._degradation = degraded(self._degradation, pressure, now_s, self._degradation_rules)

    def settings(self, classes: Sequence[TargetClass]) -> list[Setting]:
        """What each request of the next batch runs at.

        Raises ValueError for several classes in one batch under max-keep, whose rows share one temperature.
        """
        if self._keep_mode == "per_instance":
            temperatures: dict[float, float] = {}  # of this batch: most of its requests ask for the same
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
        spent: dict[str, list[tuple[Setting, float]]] = {}
        for one, setting, flops_ratio in zip(classes, settings, flops_ratios, strict=True):
            if one.name in self._states:
                spent.setdefault(one.name, []).append((setting, flops_ratio))
        for name, pairs in spent.items():
            setting = pairs[0][0]
            # The requests of a class differ in their turns with dense (per-instance), and in nothing else.
            dither = _mean([each.dither for each, _ in pairs])
            choice = Choice(setting.asked_ratio, setting.reason == "floor", dither)
            measured = _mean([flops_ratio for _, flops_ratio in pairs])
            state = corrected(
                self._states[name], choice, setting.flops_ratio, measured, len(pairs), self._rules
            )
            self._states[name] = state
            self._latest_correction = state.correction

    def _setting(self, one: TargetClass, size: int, temperatures: dict[float, float]) -> Setting:
        if one.flops_ratio >= 1:
            return DENSE
        if not self._is_on:
            return self._fixed_setting(one, temperatures)
        target = one.flops_ratio
        if one.may_degrade:
            target = slid_target(target, self._floor, self._degradation.level)
        # A new class begins with what was last learned of the plant.
        state = self._states.get(one.name, ClassState(self._latest_correction))
        self._states[one.name], choice = choose(state, target, size, self._reachable_at(size))
        asked = choice.flops_ratio
        if asked not in temperatures:
            temperatures[asked] = self._calibration.temperature_for(asked, size, self._keep_mode)
        reason: Reason | None = "floor" if choice.is_floor else "load" if target < one.flops_ratio else None
        return Setting(temperatures[asked], target, asked, reason, choice.dither)

    def _fixed_setting(self, one: TargetClass, temperatures: dict[float, float]) -> Setting:
        ratio = one.flops_ratio
        if ratio not in temperatures:
            size = self._reference_batch_size
            temperatures[ratio] = self._calibration.temperature_for(ratio, size, self._keep_mode)
        return Setting(temperatures[ratio], ratio, ratio)

    def _reachable_at(self, size: int) -> tuple[float, float]:
        if size not in self._reachable:
            self._reachable[size] = self._calibration.reachable(size, self._keep_mode)
        return self._reachable[size]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
