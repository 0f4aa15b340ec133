"""What the service needs of a model of any task, and a query to try it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from service.controller import Calibration as Controlled
from service.device import GpuReadings
from service.schemas import RequestFields
from service.tasks import TASKS

if TYPE_CHECKING:
    from madtp_core.images import ImageGeometry


class Calibration(Controlled, Protocol):
    """What was measured of a model; `madtp_core.calibration.Calibration` is one."""

    def accuracy_at(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float | None: ...


class Pruning(Protocol):
    """What the service asks of a model's pruning."""

    @property
    def is_scheduled(self) -> bool: ...


class ImageCache(Protocol):
    """Encoded images that a model keeps."""

    def summary(self) -> dict[str, int]: ...


class Model(Protocol):
    """What the service needs to know of a model; every `madtp_core.tasks.base.PrunedModel` is one."""

    @property
    def task(self) -> str: ...
    @property
    def image_geometry(self) -> ImageGeometry: ...
    @property
    def pruning(self) -> Pruning | None: ...
    @property
    def calibration(self) -> Calibration | None: ...
    def shape_of(self, query: Any) -> Mapping[str, int]: ...
    def calibration_of(self, shape: Mapping[str, int], keep_mode: str) -> Calibration | None: ...
    @property
    def image_cache(self) -> ImageCache | None: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Known:
    """What does not change of a model."""

    task: str
    image_geometry: ImageGeometry
    pruning: Pruning | None
    calibration: Calibration | None
    description: dict[str, Any]

    @classmethod
    def of(cls, model: Model) -> Known:
        return cls(model.task, model.image_geometry, model.pruning, model.calibration, model.describe())


class KnownModel:
    """Those parts of a `Model` that do not change; `known` is there once it was loaded."""

    known: Known

    @property
    def task(self) -> str:
        return self.known.task

    @property
    def image_geometry(self) -> ImageGeometry:
        return self.known.image_geometry

    @property
    def pruning(self) -> Pruning | None:
        return self.known.pruning

    @property
    def calibration(self) -> Calibration | None:
        return self.known.calibration

    def describe(self) -> dict[str, Any]:
        """As the model described itself when it was loaded."""
        return self.known.description


class ModelLost(BaseException):
    """What computes a model has ended. Not an Exception: the engine's thread ends by it."""


class Computing(Model, Protocol):
    """A model and where it computes: here (`LocalModel`) or in a process of its own (`RemoteModel`).

    `hold` and what is only read may be called from any thread, all else on the engine's.
    """

    def hold(self, query: Any) -> Any:
        """What stands for a query until it runs; raises ModelLost."""

    def run(
        self,
        task: str,
        queries: Sequence[Any],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str,
    ) -> tuple[list[Any], float]:
        """The answers to queries of one of its tasks, held ones or not, and the seconds that it took.

        prune_temperature: one for all or one a query. Raises MadtpError for what the model refuses,
        ModelLost, and whatever else goes wrong.
        """

    def gpu_readings(self) -> GpuReadings:
        """As `service.device.gpu_readings`."""

    def close(self) -> None:
        """Lets go of what computes it."""


@dataclass(frozen=True)
class BatchRecord:
    """One batch that was answered. `tokens` counts all branches, pads included, class tokens left out."""

    task: str
    model: str
    size: int
    tokens: int
    prune_temperature: float
    flops_target: float


def tasks_of(model: Model) -> tuple[str, ...]:
    """Names of the tasks whose requests a model answers."""
    from madtp_core.tasks.plain import plain_task

    return tuple(name for name in TASKS if model.task in plain_task(name).models)


def image_tokens(model: Model) -> int:
    """Tokens of one image before anything is pruned."""
    vision: Mapping[str, int] = model.describe()["vision"]
    return vision["tokens"]


def trial_query(model: Model, task: str) -> Any:
    """A query of seeded noise in the model's own size; its texts are short enough for every model."""
    from madtp_core.tasks.plain import plain_task

    example = next(iter(TASKS[task].examples.values()))
    fields: RequestFields = TASKS[task].fields.model_validate(example)
    geometry = model.image_geometry
    noise = np.random.default_rng(0).standard_normal((3, geometry.height, geometry.width), dtype=np.float32)
    plain = {name: _first_word(value) for name, value in fields.task_fields().items()}
    return plain_task(task).query(plain, [noise] * len(fields.pictures()))


def _first_word(value: Any) -> Any:
    """Of a text, or of every text of a list; other values as they are."""
    if isinstance(value, list):
        return [_first_word(each) for each in value]
    return value.split()[0] if isinstance(value, str) else value
