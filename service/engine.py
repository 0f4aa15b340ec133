"""The thread that runs one model: answers every job of a batch exactly once, and never ends on a bad one."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from madtp_core.errors import MadtpError
from service.batcher import Batcher, Ticket
from service.errors import ApiError
from service.health import CheckRecord
from service.job import Job, Served
from service.model import BatchRecord, VqaModel, prune_temperature_for, trial_query

if TYPE_CHECKING:
    from madtp_core.tasks.vqa import VqaAnswer, VqaQuery
    from service.settings import ModelSource, Settings

logger = logging.getLogger(__name__)

Phase = Literal["loading", "warming", "ready", "failed", "stopped"]
WARM_UP_BUDGET_S = 5.0
MAX_MESSAGE_LENGTH = 300


def load_model(source: ModelSource, settings: Settings) -> VqaModel:
    """Loads a checkpoint on this thread; torch is first imported here, while the probes already answer."""
    import torch

    from madtp_core.checkpoint import read_config
    from madtp_core.config import PruningConfig
    from madtp_core.tasks.vqa import BlipVqa

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    pruning = None
    if settings.pruning_method and settings.flops_target < 1 and read_config(source.source).pruning is None:
        pruning = PruningConfig(settings.pruning_method, options={"flops_ratio": settings.flops_target})
    return BlipVqa.from_pretrained(source.source, device=settings.device, dtype=dtype, pruning=pruning)


class Engine:
    """Owns one model, its batcher and its thread; what stands under "any thread" may be called from any.

    `load` runs on the engine's thread. `on_batch` is called there after every batch that was answered,
    `on_death` when the thread ends by an error: the engine never works again after that.
    """

    task = "vqa"

    def __init__(
        self,
        name: str,
        load: Callable[[], VqaModel],
        settings: Settings,
        *,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
        on_death: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.phase: Phase = "loading"
        self.model: VqaModel | None = None
        self.description: dict[str, object] | None = None
        self._load = load
        self._settings = settings
        self._on_batch = on_batch
        self._on_death = on_death
        self._clock = clock
        self._batcher = Batcher(
            max_batch_size=settings.max_batch_size,
            max_batch_wait_s=settings.max_batch_wait_s,
            max_queue=settings.max_queue,
        )
        self._keys = itertools.count()
        self._waiting: dict[int, Job] = {}
        self._running: list[Job] = []
        self._running_since_s: float | None = None
        self._wake = threading.Condition()
        self._is_stopping = False
        self._checks = CheckRecord(settings.probe_interval_s)
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    # Any thread.

    def start(self) -> None:
        """Starts the thread, which loads and warms up the model."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends the thread after the batch that runs; what still waits is answered `draining`."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)

    def depth(self) -> int:
        """How many jobs wait for a batch."""
        return len(self._batcher)

    def health(self) -> ApiError | None:
        """None when the engine can serve; otherwise the error that a request gets now."""
        if self.phase in ("loading", "warming"):
            return ApiError("not_ready", f"The model {self.name!r} is {self.phase}.")
        if self.phase == "stopped":
            return ApiError("draining")
        since_s = self._running_since_s
        is_stalled = since_s is not None and self._clock() - since_s > self._settings.engine_stall_s
        if self.phase == "failed" or is_stalled or not self._checks.has_passed:
            return ApiError("engine_failed")
        return None

    def submit(self, job: Job) -> int:
        """Queues a job and gives the key to cancel it by; raises ApiError when dead, starting or full."""
        with self._wake:
            if self.phase != "ready":
                raise self.health() or ApiError("engine_failed")
            key = next(self._keys)
            job.submitted_s = self._clock()
            if not self._batcher.submit(Ticket(key, job.submitted_s, job.deadline_s)):
                raise ApiError("overloaded")
            self._waiting[key] = job
            self._wake.notify()
        return key

    def cancel(self, key: int) -> None:
        """Takes a job out of the queue if it still waits; the answer of one that runs is thrown away."""
        with self._wake:
            if self._batcher.cancel(key):
                del self._waiting[key]

    # The engine's thread.

    def _run(self) -> None:
        try:
            model = self._load()
            self.phase = "warming"
            self._warm_up(model)
            self.model, self.description = model, model.describe()
            self.phase = "ready"
            logger.info("engine ready", extra={"model": self.name})
            while (jobs := self._next_jobs()) is not None:
                if jobs:
                    self._serve(model, jobs)
                else:
                    self._probe(model)
            self._end("stopped", ApiError("draining"))
        except BaseException as error:
            # A MadtpError can only come from loading here: its text is for the operator and holds no request.
            reason = str(error) if isinstance(error, MadtpError) else type(error).__name__
            logger.critical("engine died", exc_info=True, extra={"model": self.name, "reason": reason})
            self._end("failed", ApiError("engine_failed"))
            self._on_death()

    def _end(self, phase: Phase, error: ApiError) -> None:
        """Refuses new jobs from here on and answers everyone who still waits."""
        with self._wake:
            self.phase = phase
            self._batcher.drain()
            left = [*self._running, *self._waiting.values()]
            self._waiting.clear()
        for job in left:
            job.fail(error)

    def _next_jobs(self) -> list[Job] | None:
        """Waits for a batch; an empty one asks for a probe, None for the end."""
        with self._wake:
            while not self._is_stopping:
                now_s = self._clock()
                probe_due_s = self._checks.probe_due_s
                if probe_due_s <= now_s:
                    return []
                decision = self._batcher.next_batch(now_s)
                for key in decision.expired:
                    self._waiting.pop(key).fail(ApiError("deadline_exceeded"))
                if decision.batch:
                    return [self._waiting.pop(key) for key in decision.batch]
                wake_at_s = probe_due_s if decision.wake_at_s is None else decision.wake_at_s
                self._wake.wait(min(wake_at_s, probe_due_s) - now_s)
        return None

    def _serve(self, model: VqaModel, jobs: list[Job]) -> None:
        """Answers every job, whatever goes wrong."""
        self._running = jobs
        try:
            self._answer(model, jobs)
        except Exception:
            logger.exception("batch failed outside the model", extra={"model": self.name})
            for job in jobs:
                job.fail(ApiError("internal"))
        self._running = []

    def _answer(self, model: VqaModel, jobs: list[Job]) -> None:
        """Runs a batch; one that fails is split until the culprit is alone (2 log2 B more passes for one)."""
        jobs = [job for job in jobs if not job.is_settled]
        if not jobs:
            return
        prune_temperature = prune_temperature_for(model, self._settings, len(jobs))
        started_s = self._clock()
        try:
            answers = self._predict(model, [job.query for job in jobs], prune_temperature)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].fail(self._blame(error, jobs[0]))
            else:
                middle = len(jobs) // 2
                self._answer(model, jobs[:middle])
                self._answer(model, jobs[middle:])
            return
        finished_s = self._clock()
        self._checks.note(finished_s, passed=True)
        inference_s = max(0.0, finished_s - started_s - sum(answer.postprocess_s for answer in answers))
        for job, answer in zip(jobs, answers, strict=True):
            job.succeed(
                Served(
                    answer=answer,
                    started_s=started_s,
                    batch_size=len(jobs),
                    keep_mode=self._settings.keep_mode,
                    prune_temperature=prune_temperature,
                    inference_s=inference_s,
                )
            )
        longest = sum(max(a.spent.traces[branch][0].dense for a in answers) for branch in ("vision", "text"))
        self._on_batch(
            BatchRecord(self.task, self.name, len(jobs), len(jobs) * longest, prune_temperature),
        )

    def _predict(
        self, model: VqaModel, queries: Sequence[VqaQuery], prune_temperature: float
    ) -> list[VqaAnswer]:
        """One checked forward pass; raises what the model raises, or RuntimeError on a wrong answer."""
        self._running_since_s = self._clock()
        try:
            answers = model.predict(
                queries, prune_temperature=prune_temperature, keep_mode=self._settings.keep_mode
            )
        finally:
            self._running_since_s = None
        if len(answers) != len(queries):
            raise RuntimeError(f"the model returned {len(answers)} answers to {len(queries)} queries")
        if not all(math.isfinite(answer.score) for answer in answers):
            raise RuntimeError("the model returned a score that is not finite")
        return answers

    def _blame(self, error: Exception, job: Job) -> ApiError:
        """The error of a job that failed alone; unless the model refused it, a probe follows."""
        if isinstance(error, MadtpError):
            return ApiError("rejected_by_model", str(error)[:MAX_MESSAGE_LENGTH])
        logger.error("job failed", exc_info=error, extra={"model": self.name, "request_id": job.request_id})
        self._checks.suspect()
        return ApiError("internal")

    def _warm_up(self, model: VqaModel) -> None:
        """Runs batches of 1, 2, 4, ... as far as the time allows; raises what the model raises."""
        settings = self._settings
        # For every size: a calibration with gaps is found now, not while serving.
        temperatures = {
            size: prune_temperature_for(model, settings, size)
            for size in range(1, settings.max_batch_size + 1)
        }
        query = trial_query(model)
        started_s, batch_size = self._clock(), 1
        while batch_size in temperatures and self._clock() - started_s < WARM_UP_BUDGET_S:
            self._predict(model, [query] * batch_size, temperatures[batch_size])
            batch_size *= 2
        self._checks.note(self._clock(), passed=True)

    def _probe(self, model: VqaModel) -> None:
        """Runs one query of our own: passing clears the engine of suspicion, failing makes it not ready."""
        try:
            self._predict(model, [trial_query(model)], prune_temperature_for(model, self._settings, 1))
        except Exception:
            logger.exception("probe failed", extra={"model": self.name})
            self._checks.note(self._clock(), passed=False)
        else:
            self._checks.note(self._clock(), passed=True)
