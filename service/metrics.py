"""Every metric, and the one place where they are observed: from a job's or a batch's record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.report import BRANCHES, branch_density, branch_traces

if TYPE_CHECKING:
    from service.job import Job
    from service.model import BatchRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RATIOS = tuple(step / 20 for step in range(1, 21))
_FLOPS = tuple(base * 10**power for power in range(7, 14) for base in (1, 2, 5))
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = tuple(2**power for power in range(4, 18))


@dataclass(frozen=True)
class ModelFacts:
    """What is told of a model: labels, and functions that a scrape asks; None where there is no GPU."""

    model: str
    task: str
    device: str
    dtype: str
    keep_mode: str
    flops_target: float
    queue_depth: Callable[[], float]
    queue_tokens: Callable[[], float]
    rank_correlation: Callable[[], float]
    gpu_memory_bytes: Callable[[], float] | None
    gpu_power_watts: Callable[[], float] | None


class Metrics:
    """The metrics of one app, in a registry of its own; every `madtp_` one has the label `model`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a global of the library: no `_created` twin for every counter
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._requests = self._counter("requests", "requests that ended, by how", "task", "outcome")
        self._request_s = self._histogram(
            "request_seconds", "answered requests: from the headers' arrival to the answer", _SECONDS, "task"
        )
        self._stage_s = self._histogram("stage_seconds", "time in each stage", _SECONDS, "task", "stage")
        self._density = self._histogram(
            "token_density", "mean over blocks of kept / dense tokens", _RATIOS, "task", "branch"
        )
        self._request_flops = self._histogram(
            "request_flops", "floating-point operations spent on a request", _FLOPS, "task"
        )
        self._flops = self._counter(
            "flops", "floating-point operations, two per multiply-add", "task", "kind"
        )
        self._efficiency = self._histogram("keep_efficiency", "tokens needed / kept", _RATIOS, "task")
        self._difficulty = self._histogram("difficulty", "measured need, 0 to 1", _RATIOS, "task")
        self._batch_size = self._histogram("batch_size", "requests in a batch", _BATCH, "task")
        self._batch_tokens = self._histogram(
            "batch_tokens", "tokens entering a batch, all branches, pads included", _TOKENS, "task"
        )
        self._queue_depth = self._gauge("queue_depth", "requests waiting for a batch", "task")
        self._queue_tokens = self._gauge("queue_tokens", "their predicted tokens", "task")
        self._correlation = self._gauge(
            "difficulty_rank_correlation",
            "Spearman's, of predicted difficulty with what it is learned from",
            "task",
        )
        self._temperature = self._gauge("prune_temperature", "prune temperature of the last batch", "task")
        self._target = self._gauge(
            "flops_target_ratio", "operations aimed at by the last batch, spent / dense", "task"
        )
        self._shed = self._counter("shed", "requests turned away, by error code", "task", "reason")
        self._decoded = self._counter("images_decoded", "images decoded")
        self._info = self._gauge("model_info", "1 for every model", "task", "device", "dtype", "keep_mode")
        self._gpu_memory = self._gauge("gpu_memory_bytes", "of the model's GPU, in use by this process")
        self._gpu_power = self._gauge("gpu_power_watts", "drawn by the model's GPU, where it says so")

    def add_process(self, pid: Callable[[], int | None]) -> None:
        """Announces the process that models compute in: what it takes of the machine."""
        ProcessCollector("model", lambda: pid() or "none", registry=self.registry)

    def add_model(self, facts: ModelFacts) -> None:
        """Announces a model that is ready; its functions are asked at every scrape."""
        labels = {"model": facts.model, "task": facts.task}
        kind = {"device": facts.device, "dtype": facts.dtype, "keep_mode": facts.keep_mode}
        self._info.labels(**labels, **kind).set(1)
        self._target.labels(**labels).set(facts.flops_target)
        self._queue_depth.labels(**labels).set_function(facts.queue_depth)
        self._queue_tokens.labels(**labels).set_function(facts.queue_tokens)
        self._correlation.labels(**labels).set_function(facts.rank_correlation)
        if facts.gpu_memory_bytes is not None:
            self._gpu_memory.labels(model=facts.model).set_function(facts.gpu_memory_bytes)
        if facts.gpu_power_watts is not None:
            self._gpu_power.labels(model=facts.model).set_function(facts.gpu_power_watts)

    def observe_request(self, job: Job) -> None:
        """Counts a job that ended, however it ended."""
        labels = {"model": job.model, "task": job.task}
        self._requests.labels(outcome=job.outcome, **labels).inc()
        if job.prepared is not None:
            self._decoded.labels(model=job.model).inc(job.prepared.images)
        if job.outcome in ("shed", "unavailable") and job.error_code is not None:
            self._shed.labels(reason=job.error_code, **labels).inc()
        for stage, seconds in job.seconds.items():
            self._stage_s.labels(stage=stage, **labels).observe(seconds)
        if job.outcome == "ok" and job.finished_s is not None:
            self._request_s.labels(**labels).observe(job.finished_s - job.arrived_s)
        if job.served is not None:
            self._observe_cost(job, labels)

    def _observe_cost(self, job: Job, labels: dict[str, str]) -> None:
        assert job.served is not None
        spent = job.served.spent
        for branch in BRANCHES:
            if traces := branch_traces(spent, branch):
                self._density.labels(branch=branch, **labels).observe(branch_density(traces))
        self._efficiency.labels(**labels).observe(spent.keep_efficiency)
        if spent.difficulty is not None:
            self._difficulty.labels(**labels).observe(spent.difficulty)
        self._request_flops.labels(**labels).observe(spent.cost.flops)
        for kind, flops in (
            ("spent", spent.cost.flops),
            ("dense", spent.cost.dense_flops),
            ("needed", spent.cost.needed_flops),
            ("padded", spent.cost.padded_flops),
        ):
            self._flops.labels(kind=kind, **labels).inc(flops)

    def observe_batch(self, batch: BatchRecord) -> None:
        """Counts a batch that was answered; called on the engine's thread."""
        labels = {"model": batch.model, "task": batch.task}
        self._batch_size.labels(**labels).observe(batch.size)
        self._batch_tokens.labels(**labels).observe(batch.tokens)
        self._temperature.labels(**labels).set(batch.prune_temperature)
        self._target.labels(**labels).set(batch.flops_target)

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"madtp_{name}", text, ("model", *labels), registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"madtp_{name}", text, ("model", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"madtp_{name}", text, ("model", *labels), buckets=buckets, registry=self.registry)
