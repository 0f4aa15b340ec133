"""A model that computes in this process, on the thread that asks it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from service.device import GpuReadings, gpu_readings
from service.model import Calibration, ImageCache, Known, KnownModel, Model

if TYPE_CHECKING:
    from service.settings import ModelSource, Settings


class LocalModel(KnownModel):
    """A `service.model.Computing` around any `Model`."""

    def __init__(
        self, model: Model, device: str = "cpu", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model = model
        self.known = Known.of(model)
        self._device = device
        self._clock = clock

    @classmethod
    def load(cls, source: ModelSource, settings: Settings) -> LocalModel:
        """Loads a checkpoint; torch is first imported here, while the probes already answer.

        Raises MadtpError as `madtp_core.tasks.load_model` does.
        """
        import torch

        from madtp_core.checkpoint import read_config
        from madtp_core.config import PruningConfig
        from madtp_core.image_cache import ImageCache as EncodedImages
        from madtp_core.tasks import load_model

        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        dtype: torch.dtype = getattr(torch, settings.dtype)
        pruning = None
        if (
            settings.pruning_method
            and settings.flops_target < 1
            and read_config(source.source).pruning is None
        ):
            pruning = PruningConfig(settings.pruning_method, options={"flops_ratio": settings.flops_target})
        model = load_model(source.source, device=settings.device, dtype=dtype, pruning=pruning)
        if settings.image_cache_bytes:
            model.image_cache = EncodedImages(settings.image_cache_bytes)
        return cls(cast(Model, model), settings.device)

    @property
    def image_cache(self) -> ImageCache | None:
        return self.model.image_cache

    def shape_of(self, query: Any) -> Mapping[str, int]:
        return self.model.shape_of(query)

    def calibration_of(self, shape: Mapping[str, int], keep_mode: str) -> Calibration | None:
        return self.model.calibration_of(shape, keep_mode)

    def hold(self, query: Any) -> Any:
        """The query itself: it is where it will be asked."""
        return query

    def run(
        self,
        task: str,
        queries: Sequence[Any],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str,
    ) -> tuple[list[Any], float]:
        """As `Computing.run`; raises what the model raises."""
        from madtp_core.tasks.plain import plain_task

        began_s = self._clock()
        answers = plain_task(task).predict(
            self.model, queries, prune_temperature=prune_temperature, keep_mode=keep_mode
        )
        return answers, self._clock() - began_s

    def gpu_readings(self) -> GpuReadings:
        return gpu_readings(self._device)

    def close(self) -> None:
        """Nothing to let go of."""
