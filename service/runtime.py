"""Everything one process serves with, and the way of one request through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

from service.admission import Admission
from service.engine import Engine
from service.errors import ApiError
from service.job import Job, Prepared
from service.metrics import Metrics
from service.model import VqaModel
from service.preprocess import ImageLimits, load_decoders

if TYPE_CHECKING:
    from service.settings import Settings

ENGINE_STOP_TIMEOUT_S = 2.0

RuntimePhase = Literal["loading", "warming", "ready", "draining", "failed"]


class Runtime:
    """Owns the engines (one a model), the preprocessing threads, the admission and the metrics of one app.

    `loaders` maps names to functions that load a model; the first name is the default model.
    """

    def __init__(
        self,
        settings: Settings,
        loaders: Mapping[str, Callable[[], VqaModel]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.limits = ImageLimits.of(settings)
        self.admission = Admission(settings.max_queue)
        self.metrics = Metrics()
        self.is_draining = False
        self.has_failed = False
        self._threads = ThreadPoolExecutor(settings.preprocess_threads, thread_name_prefix="preprocess")
        self.engines = {
            name: Engine(
                name, load, settings, on_batch=self.metrics.observe_batch, on_death=self._fail, clock=clock
            )
            for name, load in loaders.items()
        }
        for engine in self.engines.values():
            self.metrics.add_model(
                model=engine.name,
                task=engine.task,
                device=settings.device,
                dtype=settings.dtype,
                keep_mode=settings.keep_mode,
                flops_target=settings.flops_target,
                queue_depth=engine.depth,
            )

    def start(self) -> None:
        """Starts the engines; they load in the background."""
        self._threads.submit(load_decoders)
        for engine in self.engines.values():
            engine.start()

    def stop(self) -> None:
        """Ends the engines and the threads; called when no request is inside any more, or time is up."""
        self.begin_drain()
        for engine in self.engines.values():
            engine.stop(ENGINE_STOP_TIMEOUT_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin_drain(self) -> None:
        """Not ready from now on; who is inside is served to the end, who comes is answered `draining`."""
        self.is_draining = True

    def _fail(self) -> None:
        self.has_failed = True

    @property
    def phase(self) -> RuntimePhase:
        """The least advanced of all models' phases, `failed` and `draining` before everything."""
        phases = {engine.phase for engine in self.engines.values()}
        if "failed" in phases:
            return "failed"
        if self.is_draining:
            return "draining"
        return "loading" if "loading" in phases else "warming" if "warming" in phases else "ready"

    def health(self) -> ApiError | None:
        """None when every model can serve; otherwise the error that says why not."""
        if self.is_draining:
            return ApiError("draining")
        return next((error for engine in self.engines.values() if (error := engine.health())), None)

    def engine(self, name: str | None) -> Engine:
        """The engine of a model, of the default one for None; raises ApiError when there is no such model."""
        if name is None:
            return next(iter(self.engines.values()))
        if (engine := self.engines.get(name)) is None:
            known = ", ".join(self.engines)
            raise ApiError("model_not_found", f"There is no such model; known: {known}.", param="model")
        return engine

    def open_job(self, task: str, request_id: str) -> Job:
        """Starts the record of a request whose headers have just arrived."""
        now_s = self.clock()
        return Job(
            request_id=request_id,
            task=task,
            model=self.engine(None).name,
            arrived_s=now_s,
            deadline_s=now_s + self.settings.request_deadline_s,
        )

    @asynccontextmanager
    async def serving(self, job: Job) -> AsyncIterator[None]:
        """Admits a job, holds it to its deadline, and counts it once, however it ends.

        The block reads, validates, prepares and answers. Raises ApiError: `draining`, `not_ready`,
        `engine_failed`, `overloaded` before the block, `deadline_exceeded` in it, and what the block raises.
        """
        is_inside = False
        try:
            self._admit()
            is_inside = True
            async with asyncio.timeout(job.deadline_s - self.clock()) as timer:
                yield
            job.outcome = "ok"
        except ApiError as error:
            self._note_error(job, error)
            raise
        except TimeoutError as cause:
            late = ApiError("deadline_exceeded" if timer.expired() else "internal")
            self._note_error(job, late)
            raise late from cause
        except BaseException:
            self._note_error(job, ApiError("internal"))
            raise
        finally:
            job.finished_s = self.clock()
            if is_inside:
                self.admission.leave(job.finished_s, was_answered=job.outcome == "ok")
            self.metrics.observe_request(job)

    async def answer(self, job: Job, engine: Engine, prepare: Callable[[], Prepared]) -> None:
        """Prepares a job in a worker thread and waits for the engine's answer, which is noted on the job.

        Raises ApiError. When the waiter is cancelled, so is the job.
        """
        loop = asyncio.get_running_loop()
        job.note_prepared(await loop.run_in_executor(self._threads, prepare))
        key = engine.submit(job)
        try:
            job.note_served(await asyncio.wrap_future(job.future))
        finally:
            engine.cancel(key)

    def _admit(self) -> None:
        if self.is_draining:
            raise ApiError("draining")
        problems = [engine.health() for engine in self.engines.values()]
        if all(problems) and problems[0] is not None:
            raise problems[0]
        if not self.admission.try_enter():
            raise ApiError("overloaded")

    def _note_error(self, job: Job, error: ApiError) -> None:
        job.outcome, job.error_code = error.kind.outcome, error.code
        if error.code == "overloaded":
            error.headers["retry-after"] = str(self.admission.retry_after_s(self.clock()))
