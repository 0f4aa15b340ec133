"""OpenTelemetry: a finished job as a span, one child a stage; nothing is imported unless it is asked for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from service.job import STAGES
from service.settings import SettingsError
from service.tasks import TASKS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

    from service.job import Job

SERVICE_NAME = "madtp-serve"


class Tracing:
    """Sends spans of jobs; made once, when the operator has named an endpoint.

    exporter: where they go instead of the endpoint, for tests. Raises SettingsError, which says what to
    install, without the extra `otel`.
    """

    def __init__(self, endpoint: str, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            needed = "MADTP_OTEL_ENDPOINT needs more: pip install 'madtp-serve[otel]'"
            raise SettingsError(needed) from error
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE_NAME}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(endpoint)))
        self._tracer: Tracer = self._provider.get_tracer("service")

    def publish(self, job: Job) -> None:
        """The spans of a job that has ended, under the caller's own where its headers named one.

        Stages are laid end to end from the arrival on: their lengths are measured, the gaps between are not.
        """
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        assert job.finished_s is not None, "only a job that has ended is told of"
        offset_s = time.time() - job.finished_s  # from the job's monotonic clock to the wall's
        span = self._tracer.start_span(
            f"POST {TASKS[job.task].path}",
            context=extract(job.trace_headers),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(job.arrived_s + offset_s),
            attributes={f"madtp.{name}": value for name, value in job.facts().items() if value is not None},
        )
        if job.error_code is not None:
            span.set_status(Status(StatusCode.ERROR, job.error_code))
        began_s = job.arrived_s + offset_s
        for stage in STAGES:
            if (seconds := job.seconds.get(stage)) is None:
                continue
            child: Span = self._tracer.start_span(
                stage, context=set_span_in_context(span), start_time=_nanoseconds(began_s)
            )
            began_s += seconds
            child.end(_nanoseconds(began_s))
        span.end(_nanoseconds(job.finished_s + offset_s))

    def stop(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


def _nanoseconds(wall_s: float) -> int:
    return int(wall_s * 1e9)
