"""What the service needs of a model, at which temperature it runs, and a query to try it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from madtp_core.images import ImageGeometry
    from madtp_core.tasks.vqa import VqaAnswer, VqaQuery
    from service.settings import Settings


class Calibration(Protocol):
    """Finds the prune temperature for a wanted cost."""

    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float: ...


class Pruning(Protocol):
    """What the service asks of a model's pruning."""

    @property
    def is_scheduled(self) -> bool: ...


class VqaModel(Protocol):
    """What the service needs of a model; `madtp_core.tasks.vqa.BlipVqa` is one."""

    @property
    def image_geometry(self) -> ImageGeometry: ...
    @property
    def pruning(self) -> Pruning | None: ...
    @property
    def calibration(self) -> Calibration | None: ...
    def predict(
        self, queries: Sequence[VqaQuery], *, prune_temperature: float, keep_mode: str
    ) -> list[VqaAnswer]: ...
    def describe(self) -> dict[str, object]: ...


@dataclass(frozen=True)
class BatchRecord:
    """One batch that was answered. `tokens` counts both branches, pads included, class tokens left out."""

    task: str
    model: str
    size: int
    tokens: int
    prune_temperature: float


def prune_temperature_for(model: VqaModel, settings: Settings, batch_size: int) -> float:
    """The operator's fixed temperature, else the calibrated one for the operator's target, else 0: dense.

    A method without training was told the target when it was made; any temperature switches it on.
    """
    if model.pruning is None:
        return 0.0
    if settings.prune_temperature is not None:
        return settings.prune_temperature
    if model.pruning.is_scheduled:
        return 1.0 if settings.flops_target < 1 else 0.0
    if model.calibration is None or settings.flops_target >= 1:
        return 0.0
    return model.calibration.temperature_for(settings.flops_target, batch_size, settings.keep_mode)


def trial_query(model: VqaModel) -> VqaQuery:
    """A query of seeded noise in the model's own size."""
    from madtp_core.tasks.vqa import VqaQuery

    geometry = model.image_geometry
    noise = np.random.default_rng(0).standard_normal((3, geometry.height, geometry.width), dtype=np.float32)
    return VqaQuery(pixel_values=noise, question="what is in the picture?")
