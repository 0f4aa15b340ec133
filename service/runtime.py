"""Everything one process serves with, and the way of one request through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

from starlette.datastructures import Headers

from service.controller import target_class
from service.engine import Engine
from service.errors import ApiError
from service.fetch import ImageFetcher
from service.fleet import Fleet
from service.job import Job
from service.metrics import Metrics, ModelFacts
from service.preprocess import FeaturesWanted, ImageLimits, is_url, load_decoders, prepare, request_tokens
from service.steering import floor_of
from service.tracing import Tracing

if TYPE_CHECKING:
    from starlette.types import Scope

    from service.model import Computing
    from service.schemas import Image, RequestFields
    from service.settings import Settings

TRACE_HEADERS = ("traceparent", "tracestate")
UNKNOWN_MODEL = "none"  # the label of requests for a task that no model serves

RuntimePhase = Literal["loading", "warming", "ready", "draining", "failed"]


class Runtime:
    """Owns the engines, the preprocessing threads and the metrics of one app.

    `loaders` maps names to functions that load a model.
    """

    def __init__(
        self,
        settings: Settings,
        loaders: Mapping[str, Callable[[], Computing]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.limits = ImageLimits.of(settings)
        self.metrics = Metrics()
        self.is_draining = False
        self._turn = asyncio.Lock()
        self.has_failed = False
        self._tracing = Tracing(settings.otel_endpoint) if settings.otel_endpoint else None
        self._fetcher = None
        if settings.image_url_hosts:
            self._fetcher = ImageFetcher(
                settings.image_url_hosts,
                max_bytes=settings.max_image_bytes,
                timeout_s=settings.image_url_timeout_s,
            )
        self._threads = ThreadPoolExecutor(settings.preprocess_threads, thread_name_prefix="preprocess")
        self.fleet = Fleet(
            {
                name: Engine(
                    name,
                    load,
                    settings,
                    on_ready=self._announce,
                    on_batch=self.metrics.observe_batch,
                    on_death=self._fail,
                    clock=clock,
                )
                for name, load in loaders.items()
            }
        )

    def start(self) -> None:
        """Starts the engines; they load in the background."""
        self._threads.submit(load_decoders)
        self.fleet.start()

    def stop(self) -> None:
        """Ends the engines and the threads; called when no request is inside any more, or time is up.

        It blocks for a while: an event loop calls it in a thread.
        """
        self.begin_drain()
        self.fleet.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._tracing is not None:
            self._tracing.stop()

    def begin_drain(self) -> None:
        """Not ready from now on; who is inside is served to the end, who comes is answered `draining`."""
        self.is_draining = True

    def _fail(self) -> None:
        self.has_failed = True

    def _announce(self, engine: Engine) -> None:
        """Called on the engine's thread when its model is warm."""
        assert engine.model is not None, "a model that is warm was loaded"
        memory_bytes, power_watts = engine.model.gpu_readings()
        self.metrics.add_model(
            ModelFacts(
                model=engine.name,
                task=engine.tasks[0],
                device=self.settings.device,
                dtype=self.settings.dtype,
                keep_mode=self.settings.keep_mode,
                flops_target=self.settings.flops_target,
                queue_depth=engine.depth,
                queue_tokens=engine.queued_tokens,
                rank_correlation=engine.rank_correlation,
                gpu_memory_bytes=memory_bytes,
                gpu_power_watts=power_watts,
            )
        )

    @property
    def phase(self) -> RuntimePhase:
        """The fleet's, or `draining`."""
        phase = self.fleet.phase
        return "draining" if self.is_draining and phase != "failed" else phase

    def health(self) -> ApiError | None:
        """None when every model can serve; otherwise the error that says why not."""
        return ApiError("draining") if self.is_draining else self.fleet.health()

    def open_job(self, task: str, request_id: str, headers: Mapping[str, str]) -> Job:
        """Starts the record of a request whose headers have just arrived."""
        now_s = self.clock()
        default = self.fleet.default(task)
        return Job(
            request_id=request_id,
            task=task,
            model=UNKNOWN_MODEL if default is None else default.name,
            arrived_s=now_s,
            deadline_s=now_s + self.settings.request_deadline_s,
            trace_headers={name: headers[name] for name in TRACE_HEADERS if name in headers},
        )

    def is_full(self, task: str) -> bool:
        """Whether a task has models that could serve it now, and all of them let nobody in."""
        able = [] if self.is_draining else self.fleet.able_now(task)
        return bool(able) and all(engine.admission.is_full for engine in able)

    def turn_away(self, task: str, scope: Scope, error: ApiError) -> None:
        """Starts, counts and ends the record of a request that is not let in."""
        job = self.open_job(task, scope["state"]["request_id"], Headers(scope=scope))
        scope["state"]["job"] = job
        self._note_error(job, error)
        self._end(job)

    @asynccontextmanager
    async def serving(self, job: Job) -> AsyncIterator[None]:
        """Admits a job, holds it to its deadline, and counts it once, however it ends.

        The block reads, validates and answers. Raises ApiError: `draining`, `not_ready`, `engine_failed`,
        `task_not_served`, `overloaded` before the block, `deadline_exceeded` in it, and what it raises.
        """
        try:
            self._enter(job)
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
        except asyncio.CancelledError:  # by the server that waits no longer; else by whom the answer was for
            is_ending = self.is_draining or self.has_failed
            self._note_error(job, ApiError("draining" if is_ending else "client_closed_request"))
            raise
        except BaseException:
            self._note_error(job, ApiError("internal"))
            raise
        finally:
            self._end(job)

    def assign(self, job: Job, fields: RequestFields) -> Engine:
        """The engine of a request whose fields are known, with room for what it asks; nothing is decoded yet.

        Raises ApiError: no such model, one that cannot serve, or too much inside.
        """
        settings = self.settings
        if fields.model is not None:
            job.model = self.fleet.named(fields.model, job.task).name
        engine = self.fleet.engines[job.model]
        if (problem := engine.health()) is not None:
            raise problem
        assert job.place is not None, "a job inside has a place"
        if job.place.admission is not engine.admission:
            self._leave(job)
            self._take_place(job, engine)
        job.priority = fields.priority
        job.target = target_class(
            fields.quality,
            fields.flops_target,
            balanced=settings.flops_target,
            fast=floor_of(settings),
        )
        dense_tokens = request_tokens(len(fields.pictures()), fields.texts_read(), engine.image_tokens)
        if not engine.admission.try_resize(job.place, engine.typical_need(job.target) * dense_tokens):
            raise ApiError("overloaded")
        return engine

    async def answer(self, job: Job, engine: Engine, fields: RequestFields) -> None:
        """Prepares a job in a worker thread and waits for the engine's answer, which is noted on the job.

        Raises ApiError. When the waiter is cancelled, so is the job.
        """
        assert engine.model is not None, "a healthy engine has a model"
        pictures = await self._fetched(job, fields.pictures())
        # Who is alone runs at once; what would sort it among others is found meanwhile, to be learned from.
        is_alone = engine.admission.inside == 1
        features: FeaturesWanted = "never"
        if engine.predicts_difficulty:
            features = "later" if is_alone else "now"
        work = partial(
            prepare,
            job.task,
            fields.task_fields(),
            pictures,
            fields.texts_read(),
            geometry=engine.model.image_geometry,
            image_tokens=engine.image_tokens,
            limits=self.limits,
            features=features,
            asked_s=self.clock(),
            hold=engine.hold,
            clock=self.clock,
        )
        loop = asyncio.get_running_loop()
        prepared = await loop.run_in_executor(self._threads, work)
        job.note_prepared(prepared)
        key = engine.submit(job)
        try:
            if prepared.find_features is not None:
                job.note_features(await loop.run_in_executor(self._threads, prepared.find_features))
                job.predicted_difficulty = engine.predict(job)
            served = await asyncio.wrap_future(job.future)
        finally:
            engine.cancel(key)
        async with self._turn:  # the answers of a batch come at once: between them the loop reads its sockets
            await asyncio.sleep(0)
        job.note_served(served)

    async def _fetched(self, job: Job, pictures: Sequence[tuple[str, Image]]) -> list[tuple[str, Image]]:
        """The pictures with URLs replaced by what they give, which counts as decoding; raises ApiError."""
        if self._fetcher is None or not any(is_url(image) for _, image in pictures):
            return list(pictures)
        began_s = self.clock()
        fetches = [asyncio.ensure_future(self._fetched_one(param, image)) for param, image in pictures]
        try:
            found = await asyncio.gather(*fetches)
        finally:
            for fetch in fetches:  # when one fails, nobody waits for the others
                fetch.cancel()
        job.seconds["decode"] = self.clock() - began_s
        return found

    async def _fetched_one(self, param: str, image: Image) -> tuple[str, Image]:
        if self._fetcher is None or not isinstance(image, str) or not is_url(image):
            return param, image
        try:
            return param, await self._fetcher.fetch(image)
        except ApiError as error:
            error.param = param
            raise

    def _enter(self, job: Job) -> None:
        """Which model a request names stands in its body: until that is read, a place with any will do."""
        if self.is_draining:
            raise ApiError("draining")
        self._take_place(job, *self.fleet.able(job.task))

    def _take_place(self, job: Job, *engines: Engine) -> None:
        places = (engine.admission.try_enter() for engine in engines)
        job.place = next(filter(None, places), None)
        if job.place is None:
            raise ApiError("overloaded")

    def _end(self, job: Job) -> None:
        job.finished_s = self.clock()
        self._leave(job)
        self._publish(job)

    def _leave(self, job: Job) -> None:
        if job.place is not None:
            job.place.admission.leave(job.place, self.clock(), was_answered=job.outcome == "ok")
            job.place = None

    def _publish(self, job: Job) -> None:
        """The one place where a job's record goes out; the access log reads the same record."""
        self.metrics.observe_request(job)
        if self._tracing is not None:
            self._tracing.publish(job)

    def _note_error(self, job: Job, error: ApiError) -> None:
        job.outcome, job.error_code = error.kind.outcome, error.code
        if error.code == "overloaded":
            admission = self.fleet.engines[job.model].admission
            error.headers["retry-after"] = str(admission.retry_after_s(self.clock()))
