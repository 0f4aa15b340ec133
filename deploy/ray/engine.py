"""One replica: the whole service of one process, without its HTTP server."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

from deploy.ray.exchange import Forwarded, Reply, answer
from deploy.ray.scaling import QUEUED_TOKENS
from service.app import create_app
from service.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.engine import Engine
    from service.model import Model
    from service.runtime import Runtime
    from service.settings import Settings

_POLL_S = 0.05


class EngineReplica:
    """Loads the models that the settings name and answers forwarded requests; methods are called by Serve.

    `models` are served instead of those of the settings.
    """

    def __init__(self, settings: Settings, models: Mapping[str, Model] | None = None) -> None:
        configure_logging(settings.log_level)
        self._app = create_app(settings, models)
        self._runtime: Runtime = self._app.state.runtime
        self._reports = 0
        self._runtime.start()

    async def ready(self) -> None:
        """Wait until every model is warm; raises RuntimeError when one cannot be loaded."""
        while self._runtime.phase in ("loading", "warming"):
            await asyncio.sleep(_POLL_S)
        self.check_health()
        gc.freeze()  # as `madtp-serve`: no search of the libraries' objects for garbage while serving

    async def serve(self, request: Forwarded) -> Reply:
        """Answer one request."""
        return await answer(self._app, request)

    def check_health(self) -> None:
        """Raises RuntimeError when an engine is dead or stalls: Serve then replaces this replica."""
        problem = self._runtime.health()
        if problem is not None and problem.code == "engine_failed":
            raise RuntimeError(f"an engine has failed; phase: {self._runtime.phase}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Predicted tokens that wait for a batch, of all models."""
        return {QUEUED_TOKENS: sum(engine.queued_tokens() for engine in self._engines)}

    def record_routing_stats(self) -> dict[str, float]:
        """A report for `deploy.ray.loads.Loads`."""
        self._reports += 1
        inside = sum(engine.admission.inside for engine in self._engines)
        tokens = sum(engine.admission.tokens for engine in self._engines)
        one_image = max((engine.image_tokens * engine.needs.mean for engine in self._engines), default=1.0)
        return {
            "report": self._reports,
            "inside_tokens": tokens,
            "typical_tokens": tokens / inside if inside else one_image,
        }

    def stop(self) -> None:
        """End the engines; Serve has waited for requests in flight."""
        self._runtime.stop()

    @property
    def _engines(self) -> list[Engine]:
        return list(self._runtime.fleet.engines.values())
