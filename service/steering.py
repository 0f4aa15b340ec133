"""Which controller a model runs under: the calibrated one, or one that knows a single setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from service.controller import Controller, Setting, TargetClass

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

    That of a method without training, which was told its flops_ratio when it was made, and the operator's
    fixed one.
    """

    def __init__(self, prune_temperature: float, flops_ratio: float) -> None:
        is_dense = prune_temperature == 0 or flops_ratio >= 1
        self._temperature = 0.0 if is_dense else prune_temperature
        self._flops_ratio = 1.0 if is_dense else flops_ratio

    def settings(self, classes: Sequence[TargetClass]) -> list[Setting]:
        """What each request of the next batch runs at."""
        return [self._setting(one.flops_ratio) for one in classes]

    def _setting(self, wanted: float) -> Setting:
        temperature, ratio = (0.0, 1.0) if wanted >= 1 else (self._temperature, self._flops_ratio)
        return Setting(temperature, flops_ratio=ratio, asked_ratio=ratio, is_floor=wanted < ratio)

    def observe(
        self, classes: Sequence[TargetClass], settings: Sequence[Setting], flops_ratios: Sequence[float]
    ) -> None:
        """Nothing can be corrected."""

    def set_pressure(self, pressure: float, now_s: float) -> None:
        """Nothing can be lowered."""


def steering_of(model: Model, settings: Settings) -> Steering:
    """The steering of a model under the operator's settings."""
    if model.pruning is None:
        return OneSetting(0.0, 1.0)
    if settings.prune_temperature is not None:
        return OneSetting(settings.prune_temperature, min(settings.flops_target, 0.999))
    if model.pruning.is_scheduled:
        return OneSetting(1.0, settings.flops_target)
    return Controller(
        model.calibration,
        settings.keep_mode,
        floor=floor_of(settings),
        is_on=settings.controller == "on",
        reference_batch_size=settings.max_batch_size,
    )


def floor_of(settings: Settings) -> float:
    """The flops_ratio that overload and quality=fast come down to."""
    return min(settings.flops_floor, settings.flops_target)
