"""The engines of one process, one a model, and which of them serves a request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from service.engine import Engine
from service.errors import ApiError
from service.tasks import TASKS

STOP_TIMEOUT_S = 2.0

FleetPhase = Literal["loading", "warming", "ready", "failed"]


class Fleet:
    """Engines by the names of their models; the first that serves a task is the task's default."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self.engines = engines

    def start(self) -> None:
        """Starts every engine; they load in the background."""
        for engine in self.engines.values():
            engine.start()

    def stop(self) -> None:
        """Ends every engine, all at the same time."""
        for engine in self.engines.values():
            engine.close()
        end_s = time.monotonic() + STOP_TIMEOUT_S
        for engine in self.engines.values():
            engine.join(max(0.0, end_s - time.monotonic()))

    @property
    def inside(self) -> int:
        """Requests that were let in and have not left, for all models."""
        return sum(engine.admission.inside for engine in self.engines.values())

    @property
    def phase(self) -> FleetPhase:
        """The least advanced of all models' phases, `failed` before everything."""
        phases = {engine.phase for engine in self.engines.values()}
        if "failed" in phases:
            return "failed"
        return "loading" if "loading" in phases else "warming" if "warming" in phases else "ready"

    def health(self) -> ApiError | None:
        """None when every model can serve; otherwise the error of the first that cannot."""
        return next((error for engine in self.engines.values() if (error := engine.health())), None)

    def default(self, task: str) -> Engine | None:
        """The task's default model, whether it can serve now or not."""
        return next(iter(self._serving(task)), None)

    def able(self, task: str) -> list[Engine]:
        """Every model that can serve a task now, the default first.

        Raises ApiError where none can: the default's own, `task_not_served` when there is none, but the own
        one of a model that still loads, as it is not known yet what that serves.
        """
        if able := self.able_now(task):
            return able
        problems = [engine.health() for engine in self._serving(task)]
        problems += [engine.health() for engine in self.engines.values() if not engine.tasks]
        raise next(filter(None, problems), ApiError("task_not_served"))

    def able_now(self, task: str) -> list[Engine]:
        """As `able`, but none where there are none."""
        return [engine for engine in self._serving(task) if engine.health() is None]

    def named(self, name: str, task: str) -> Engine:
        """The model of a name; raises ApiError when there is none, or it serves other tasks."""
        if (engine := self.engines.get(name)) is None:
            known = ", ".join(self.engines)
            raise ApiError("model_not_found", f"There is no such model; known: {known}.", param="model")
        if engine.tasks and task not in engine.tasks:
            paths = ", ".join(TASKS[other].path for other in engine.tasks)
            raise ApiError("task_not_served", f"The model {engine.name!r} serves {paths}.", param="model")
        return engine

    def _serving(self, task: str) -> list[Engine]:
        return [engine for engine in self.engines.values() if task in engine.tasks]
