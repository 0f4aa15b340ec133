"""The thread that runs one model: answers every job of a batch exactly once, and never ends on a bad one."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from madtp_core.errors import MadtpError
from service.admission import Admission
from service.batcher import Batcher
from service.controller import TargetClass, shape_class
from service.device import free_memory, is_out_of_memory
from service.errors import ApiError
from service.forward import Forward
from service.health import CheckRecord
from service.isolation import Isolation
from service.job import Job
from service.job_queue import JobQueue
from service.model import BatchRecord, Computing, ModelLost, image_tokens
from service.needs import Needs

if TYPE_CHECKING:
    from service.settings import Settings

logger = logging.getLogger(__name__)

Phase = Literal["loading", "warming", "ready", "failed", "stopped"]
MAX_MESSAGE_LENGTH = 300


class Engine:
    """Owns one model, its queue and its thread; what stands under "any thread" may be called from any.

    `load` runs on the engine's thread. `on_batch` is called there after every batch that was answered,
    `on_ready` once when it is warm, just before it is ready, `on_death` when the thread ends by an error: the
    engine never works again after that.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Computing],
        settings: Settings,
        *,
        on_ready: Callable[[Engine], None] = lambda engine: None,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
        on_death: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.phase: Phase = "loading"
        self.model: Computing | None = None
        self.tasks: tuple[str, ...] = ()
        self.description: dict[str, Any] | None = None
        self.image_tokens = 1
        self.admission = Admission(settings.max_queue)
        self.needs = Needs(name, settings.state_dir)
        self._load = load
        self._settings = settings
        self._on_ready = on_ready
        self._on_batch = on_batch
        self._on_death = on_death
        self._clock = clock
        self._queue = JobQueue(_batcher(settings), clock)
        self._running: Sequence[Job] = ()
        self._checks = CheckRecord(settings.probe_interval_s, settings.engine_stall_s, clock)
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    # Any thread.

    def start(self) -> None:
        """Starts the thread, which loads and warms up the model."""
        self._thread.start()

    def close(self) -> None:
        """Answers who waits `draining`, and lets the thread end after the batch that runs."""
        self._queue.close("draining")

    def join(self, timeout_s: float) -> None:
        """Waits for the thread of an engine that was closed."""
        self._thread.join(timeout_s)

    def stop(self, timeout_s: float) -> None:
        """Closes, then joins."""
        self.close()
        self.join(timeout_s)

    def depth(self) -> int:
        """How many jobs wait for a batch."""
        return len(self._queue)

    def queued_tokens(self) -> float:
        """Their predicted tokens."""
        return self._queue.tokens

    def rank_correlation(self) -> float:
        """Of predicted with measured difficulty; not a number before enough was measured."""
        found = self.needs.rank_correlation
        return math.nan if found is None else found

    def health(self) -> ApiError | None:
        """None when the engine can serve; otherwise the error that a request gets now."""
        if self.phase in ("loading", "warming"):
            return ApiError("not_ready", f"The model {self.name!r} is {self.phase}.")
        if self.phase == "stopped":
            return ApiError("draining")
        return None if self.phase == "ready" and self._checks.is_good else ApiError("engine_failed")

    @property
    def is_hung(self) -> bool:
        """Whether a batch runs for so long that only a new process can help."""
        return self._checks.is_hung

    @property
    def predicts_difficulty(self) -> bool:
        """Whether its requests differ in need: a method with a schedule keeps as much of everyone."""
        pruning = None if self.model is None else self.model.pruning
        return pruning is not None and not pruning.is_scheduled

    def typical_need(self, target: TargetClass) -> float:
        """The share of its tokens that a request is likely to need, before anything is known of it."""
        return 1.0 if target.flops_ratio >= 1 else self.needs.mean

    def hold(self, query: Any) -> Any:
        """What stands for a query until it runs: a model in a process of its own is sent it ahead.

        Raises ApiError where that process has ended, or nothing was loaded yet.
        """
        if self.model is None:
            raise self.health() or ApiError("engine_failed")
        try:
            return self.model.hold(query)
        except ModelLost as lost:
            raise ApiError("engine_failed") from lost

    def submit(self, job: Job) -> int:
        """Queues a job and gives the key to cancel it by; raises ApiError when dead, starting or full."""
        assert job.prepared is not None, "a job is prepared before it is submitted"
        if self.phase != "ready" or self.model is None:
            raise self.health() or ApiError("engine_failed")
        target = job.target_class
        if target.flops_ratio < 1:  # which share is spent depends on the shape; nothing of it on dense
            job.target = target = replace(target, shape=shape_class(self.model.shape_of(job.query)))
        job.predicted_difficulty = self.predict(job)
        need = job.predicted_difficulty or self.typical_need(target)
        job.tokens = need * job.prepared.dense_tokens
        return self._queue.put(job, lane=(job.task, self._mates(target)))

    def predict(self, job: Job) -> float | None:
        """The share of its tokens that a job should need; None where it runs dense, or nothing is known."""
        features = None if job.prepared is None else job.prepared.features
        if features is None or job.target_class.flops_ratio >= 1:
            return None
        return self.needs.predict(features)

    def cancel(self, key: int) -> None:
        """Takes a job out of the queue if it still waits; the answer of one that runs is thrown away."""
        self._queue.cancel(key)

    def _mates(self, target: TargetClass) -> TargetClass | str:
        """Who may run together: under max_keep one target class, packed all who are pruned."""
        if self._settings.keep_mode == "max_keep":
            return target
        return "pruned" if target.flops_ratio < 1 else "exact"

    # The engine's thread.

    def _run(self) -> None:
        try:
            forward = self._start_up()
            logger.info("engine ready", extra={"model": self.name})
            while not self._queue.is_closed:
                if jobs := self._queue.take(until_s=self._checks.probe_due_s):
                    self._serve(forward, jobs)
                elif not self._queue.is_closed:
                    self._probe(forward)
            self._end("stopped", "draining")
        except BaseException as error:
            # A MadtpError can only come from loading here: its text is for the operator and holds no request.
            reason = str(error) if isinstance(error, MadtpError) else type(error).__name__
            logger.critical("engine died", exc_info=True, extra={"model": self.name, "reason": reason})
            self._end("failed", "engine_failed")

    def _start_up(self) -> Forward:
        model = self._load()
        self.phase = "warming"
        forward = Forward(self.name, model, self._settings, self._clock)
        self.tasks, self.image_tokens = forward.tasks, image_tokens(model)
        self.admission.max_tokens = (
            self._settings.max_queue_tokens or self._settings.max_queue * self.image_tokens
        )
        forward.warm_up()
        self._checks.note(passed=True)
        self.model, self.description = model, model.describe()
        self._on_ready(self)
        self.phase = "ready"
        return forward

    def _end(self, phase: Phase, code: str) -> None:
        """Refuses new jobs from here on and answers everyone who is left."""
        self.phase = phase
        for job in self._running:
            job.fail(ApiError(code))
        self._queue.close(code)
        if phase == "failed":
            self._on_death()
        self.needs.save()
        if self.model is not None:
            self.model.close()

    def _serve(self, forward: Forward, jobs: Sequence[Job]) -> None:
        """Answers every job, whatever goes wrong; one that spoils its batch is searched for and found."""
        self._running = jobs
        try:
            forward.steering.set_pressure(self.admission.pressure, self._clock())
            parts = Isolation(jobs)
            while part := parts.next():
                error = self._attempt(forward, [job for job in part if not job.is_settled])
                if error is None:
                    parts.passed()
                else:
                    for culprit in parts.failed():
                        culprit.fail(self._blame(error, culprit))
        except Exception:
            logger.exception("batch failed outside the model", extra={"model": self.name})
            for job in jobs:
                job.fail(ApiError("internal"))
        self._running = ()

    def _attempt(self, forward: Forward, jobs: Sequence[Job]) -> Exception | None:
        """Answers a batch, or gives what the model raised."""
        if not jobs:
            return None
        try:
            with self._checks.running():
                served, record = forward.run(jobs)
        except Exception as error:
            if is_out_of_memory(error):
                logger.warning("out of memory", extra={"model": self.name, "batch_size": len(jobs)})
                self._queue.note_out_of_memory(jobs)
                free_memory()
            return error
        for job, answer in zip(jobs, served, strict=True):
            job.succeed(answer)
        self._checks.note(passed=True)
        self._queue.note_success()
        self.needs.observe(jobs, served)
        self.needs.save_when_due(self._clock())
        self._on_batch(record)
        return None

    def _blame(self, error: Exception, job: Job) -> ApiError:
        """The error of a job that failed alone; unless the model refused it, a probe follows."""
        if isinstance(error, MadtpError):
            return ApiError("rejected_by_model", str(error)[:MAX_MESSAGE_LENGTH])
        logger.error("job failed", exc_info=error, extra={"model": self.name, "request_id": job.request_id})
        self._checks.suspect()
        return ApiError("internal")

    def _probe(self, forward: Forward) -> None:
        """Passing clears the engine of suspicion, failing makes it not ready."""
        try:
            with self._checks.running():
                forward.probe()
        except Exception:
            logger.exception("probe failed", extra={"model": self.name})
            self._checks.note(passed=False)
        else:
            self._checks.note(passed=True)


def _batcher(settings: Settings) -> Batcher:
    is_padded = settings.keep_mode == "max_keep"
    return Batcher(
        max_batch_size=settings.max_batch_size,
        max_batch_wait_s=settings.max_batch_wait_s,
        max_queue=settings.max_queue,
        order=settings.batching if is_padded else "fifo",  # packed, a batch's mates cost nothing
        is_padded=is_padded,
        max_batch_tokens=settings.max_batch_tokens or math.inf,
    )
