"""Which controller a model runs under: the calibrated one, or one that knows a single setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from service.controller import DENSE, Controller, Reason, Setting, TargetClass

if TYPE_CHECKING:
    from service.model import Model
    from service.settings import Settings


class Steering(Protocol):
    """What the engine asks before a batch, and tells after it; `Controller` is one."""

    def settings(self, classes: Sequence[TargetClass]) -> list[Setting]: ...
    def observe(
        self, classes: Sequence[TargetClass], settings: Sequence[Setting], flops_ratios: Sequence[float]
    ) -> None: ...
    def set_pressure(self, pressure: float, now_s: float) -> None: ...


class OneSetting:
    """One prune temperature for whoever does not want dense, whatever else they want.

    flops_ratio: what it is meant to spend. reason: why a request that wants another does not get it.
    """

    def __init__(self, prune_temperature: float, flops_ratio: float, reason: Reason) -> None:
        is_dense = prune_temperature == 0 or flops_ratio >= 1
        self._temperature = 0.0 if is_dense else prune_temperature
        self._flops_ratio = 1.0 if is_dense else flops_ratio
        self._reason = reason

    def settings(self, classes: Sequence[TargetClass]) -> list[Setting]:
        """What each request of the next batch runs at."""
        return [self._setting(one.flops_ratio) for one in classes]

    def _setting(self, wanted: float) -> Setting:
        if wanted >= 1:
            return DENSE
        ratio = self._flops_ratio
        return Setting(self._temperature, ratio, ratio, None if wanted == ratio else self._reason)

    def observe(
        self, classes: Sequence[TargetClass], settings: Sequence[Setting], flops_ratios: Sequence[float]
    ) -> None:
        """Nothing can be corrected."""

    def set_pressure(self, pressure: float, now_s: float) -> None:
        """Nothing can be lowered."""


def steering_of(model: Model, settings: Settings) -> Steering:
    """The steering of a model under the operator's settings."""
    if model.pruning is None:
        return OneSetting(0.0, 1.0, "floor")
    if settings.prune_temperature is not None:
        return OneSetting(settings.prune_temperature, min(settings.flops_target, 0.999), "fixed")
    if model.pruning.is_scheduled:
        return OneSetting(1.0, settings.flops_target, "method")
    if model.calibration is None:
        return OneSetting(0.0, 1.0, "uncalibrated")
    return Controller(
        model.calibration,
        settings.keep_mode,
        of_shape=model.calibration_of,
        floor=floor_of(settings),
        is_on=settings.controller == "on",
        reference_batch_size=settings.max_batch_size,
    )


def floor_of(settings: Settings) -> float:
    """The flops_ratio that overload and quality=fast come down to."""
    return min(settings.flops_floor, settings.flops_target)
