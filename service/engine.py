"""The thread that runs one model: answers every job of a batch exactly once, and never ends on a bad one."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from madtp_core.errors import MadtpError
from service.admission import Admission
from service.batcher import Batcher, Ticket
from service.controller import TargetClass
from service.errors import ApiError
from service.forward import Forward
from service.health import CheckRecord
from service.isolation import Isolation
from service.job import Job
from service.model import BatchRecord, Model, image_tokens
from service.needs import Needs

if TYPE_CHECKING:
    from service.settings import ModelSource, Settings

logger = logging.getLogger(__name__)

Phase = Literal["loading", "warming", "ready", "failed", "stopped"]
MAX_MESSAGE_LENGTH = 300


def load_model(source: ModelSource, settings: Settings) -> Model:
    """Loads a checkpoint on this thread; torch is first imported here, while the probes already answer."""
    import torch

    from madtp_core.checkpoint import read_config
    from madtp_core.config import PruningConfig
    from madtp_core.image_cache import ImageCache
    from madtp_core.tasks import load_model as load

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    pruning = None
    if settings.pruning_method and settings.flops_target < 1 and read_config(source.source).pruning is None:
        pruning = PruningConfig(settings.pruning_method, options={"flops_ratio": settings.flops_target})
    model = load(source.source, device=settings.device, dtype=dtype, pruning=pruning)
    if settings.image_cache_bytes:
        model.image_cache = ImageCache(settings.image_cache_bytes)
    return cast("Model", model)


def gpu_readings(device: str) -> tuple[Callable[[], float] | None, Callable[[], float] | None]:
    """What to ask for the memory that this process uses on a GPU, in bytes, and for its power, in watts.

    None for what cannot be told: on a CPU both, without NVIDIA's management library the power.
    """
    import torch

    if torch.device(device).type != "cuda":
        return None, None
    with suppress(Exception):  # torch raises what the missing library's bindings raise
        torch.cuda.power_draw(device)
        return partial(torch.cuda.memory_allocated, device), lambda: torch.cuda.power_draw(device) / 1000
    return partial(torch.cuda.memory_allocated, device), None


class Engine:
    """Owns one model, its batcher and its thread; what stands under "any thread" may be called from any.

    `load` runs on the engine's thread. `on_batch` is called there after every batch that was answered,
    `on_ready` once when it is warm, `on_death` when the thread ends by an error: the engine never works again
    after that.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Model],
        settings: Settings,
        *,
        on_ready: Callable[[Engine], None] = lambda engine: None,
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
        on_death: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.phase: Phase = "loading"
        self.model: Model | None = None
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
        is_padded = settings.keep_mode == "max_keep"
        self._batcher = Batcher(
            max_batch_size=settings.max_batch_size,
            max_batch_wait_s=settings.max_batch_wait_s,
            max_queue=settings.max_queue,
            order=settings.batching if is_padded else "fifo",  # packed, a batch's mates cost nothing
            is_padded=is_padded,
            max_batch_tokens=settings.max_batch_tokens or math.inf,
        )
        self._keys = itertools.count()
        self._waiting: dict[int, Job] = {}
        self._running: Sequence[Job] = ()
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

    def queued_tokens(self) -> float:
        """Their predicted tokens."""
        return self._batcher.queued_tokens

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
        since_s = self._running_since_s
        is_stalled = since_s is not None and self._clock() - since_s > self._settings.engine_stall_s
        if self.phase == "failed" or is_stalled or not self._checks.has_passed:
            return ApiError("engine_failed")
        return None

    @property
    def predicts_difficulty(self) -> bool:
        """Whether its requests differ in need: a method with a schedule keeps as much of everyone."""
        pruning = None if self.model is None else self.model.pruning
        return pruning is not None and not pruning.is_scheduled

    def typical_need(self, target: TargetClass) -> float:
        """The share of its tokens that a request is likely to need, before anything is known of it."""
        return 1.0 if target.flops_ratio >= 1 else self.needs.mean

    def submit(self, job: Job) -> int:
        """Queues a job and gives the key to cancel it by; raises ApiError when dead, starting or full."""
        assert job.prepared is not None, "a job is prepared before it is submitted"
        assert job.target is not None, "a job knows its target before it is submitted"
        with self._wake:
            if self.phase != "ready":
                raise self.health() or ApiError("engine_failed")
            if job.prepared.features is not None and job.target.flops_ratio < 1:
                job.predicted_difficulty = self.needs.predict(job.prepared.features)
            need = job.predicted_difficulty or self.typical_need(job.target)
            key = next(self._keys)
            job.submitted_s = self._clock()
            job.tokens = need * job.prepared.dense_tokens
            lane = job.task, self._lane(job.target)
            if not self._batcher.submit(Ticket(key, job.submitted_s, job.deadline_s, job.tokens, lane)):
                raise ApiError("overloaded")
            self._waiting[key] = job
            self._wake.notify()
        return key

    def cancel(self, key: int) -> None:
        """Takes a job out of the queue if it still waits; the answer of one that runs is thrown away."""
        with self._wake:
            if self._batcher.cancel(key):
                del self._waiting[key]

    def _lane(self, target: TargetClass) -> str:
        """Who may run together: under max_keep one target class, packed all who are pruned."""
        if self._settings.keep_mode == "max_keep":
            return target.name
        return "pruned" if target.flops_ratio < 1 else "exact"

    # The engine's thread.

    def _run(self) -> None:
        try:
            forward = self._start_up()
            logger.info("engine ready", extra={"model": self.name})
            while (jobs := self._next_jobs(forward)) is not None:
                if jobs:
                    self._serve(forward, jobs)
                else:
                    self._probe(forward)
            self._end("stopped", ApiError("draining"))
        except BaseException as error:
            # A MadtpError can only come from loading here: its text is for the operator and holds no request.
            reason = str(error) if isinstance(error, MadtpError) else type(error).__name__
            logger.critical("engine died", exc_info=True, extra={"model": self.name, "reason": reason})
            self._end("failed", ApiError("engine_failed"))
            self._on_death()

    def _start_up(self) -> Forward:
        model = self._load()
        self.phase = "warming"
        forward = Forward(self.name, model, self._settings, self._clock)
        self.tasks, self.image_tokens = forward.tasks, image_tokens(model)
        self.admission.max_tokens = (
            self._settings.max_queue_tokens or self._settings.max_queue * self.image_tokens
        )
        forward.warm_up()
        self._checks.note(self._clock(), passed=True)
        self.model, self.description = model, model.describe()
        self.phase = "ready"
        self._on_ready(self)
        return forward

    def _end(self, phase: Phase, error: ApiError) -> None:
        """Refuses new jobs from here on and answers everyone who still waits."""
        with self._wake:
            self.phase = phase
            self._batcher.drain()
            left = [*self._running, *self._waiting.values()]
            self._waiting.clear()
            self.needs.save()
        for job in left:
            job.fail(error)

    def _next_jobs(self, forward: Forward) -> list[Job] | None:
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
                    forward.steering.set_pressure(self.admission.pressure, now_s)
                    return [self._waiting.pop(key) for key in decision.batch]
                wake_at_s = probe_due_s if decision.wake_at_s is None else decision.wake_at_s
                self._wake.wait(min(wake_at_s, probe_due_s) - now_s)
        return None

    def _serve(self, forward: Forward, jobs: list[Job]) -> None:
        """Answers every job, whatever goes wrong; one that spoils its batch is searched for and found."""
        self._running = jobs
        try:
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

    def _attempt(self, forward: Forward, jobs: list[Job]) -> Exception | None:
        """Answers a batch, or gives what the model raised."""
        if not jobs:
            return None
        self._running_since_s = self._clock()
        try:
            served, record = forward.run(jobs)
        except Exception as error:
            if _is_out_of_memory(error):
                self._shrink(jobs)
            return error
        finally:
            self._running_since_s = None
        for job, answer in zip(jobs, served, strict=True):
            job.succeed(answer)
        now_s = self._clock()
        self._checks.note(now_s, passed=True)
        with self._wake:
            self._batcher.note_success()
            self.needs.observe(jobs, served)
            self.needs.save_when_due(now_s)
        self._on_batch(record)
        return None

    def _shrink(self, jobs: Sequence[Job]) -> None:
        """Lets batches hold half of what did not fit."""
        import torch

        logger.warning("out of memory", extra={"model": self.name, "batch_size": len(jobs)})
        with self._wake:
            self._batcher.note_out_of_memory(self._batcher.cost([job.tokens for job in jobs]))
        torch.cuda.empty_cache()

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
            forward.probe()
        except Exception:
            logger.exception("probe failed", extra={"model": self.name})
            self._checks.note(self._clock(), passed=False)
        else:
            self._checks.note(self._clock(), passed=True)


def _is_out_of_memory(error: Exception) -> bool:
    """Torch's own error on a GPU; on a CPU it raises a RuntimeError that only its text tells apart."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return is_torchs or isinstance(error, MemoryError)
