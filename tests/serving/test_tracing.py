"""Spans: only where they are asked for, under the caller's, one child a stage, nothing that was sent."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.job import STAGES
from service.settings import SettingsError
from service.tracing import Tracing
from tests.serving.conftest import Serve

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@contextmanager
def _traced(serve: Serve, exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    """A ready app that is stopped at the end of the block, when all spans have been sent."""
    client = serve(otel_endpoint="http://collector.example/v1/traces")
    yield client
    client.app.state.runtime._tracing.stop()  # type: ignore[attr-defined]


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr("service.runtime.Tracing", partial(Tracing, exporter=exporter))
    return exporter


def test_a_request_is_a_span_with_a_child_a_stage(
    serve: Serve, exporter: InMemorySpanExporter, question: dict[str, Any]
) -> None:
    with _traced(serve, exporter) as client:
        client.post("/v1/vqa", json=question, headers=PARENT | {"x-request-id": "mine"})
    *stages, request = exporter.get_finished_spans()
    assert (request.name, [stage.name for stage in stages]) == ("POST /v1/vqa", list(STAGES))
    assert f"{request.context.trace_id:032x}" == TRACE
    assert {stage.parent.span_id for stage in stages} == {request.context.span_id}
    assert request.attributes["madtp.request_id"] == "mine"
    assert request.attributes["madtp.difficulty_measured"] == 0.4
    assert all(request.start_time <= span.start_time <= span.end_time <= request.end_time for span in stages)


def test_an_error_is_a_span_with_its_code_and_without_what_was_sent(
    serve: Serve, exporter: InMemorySpanExporter, question: dict[str, Any]
) -> None:
    with _traced(serve, exporter) as client:
        client.post("/v1/vqa", json=question | {"question": "break topsecret"})
    request = exporter.get_finished_spans()[-1]
    assert request.status.description == "internal"
    assert "topsecret" not in request.to_json()


def test_nothing_of_it_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, service.app; sys.exit(any(name.startswith('opentelemetry.sdk') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SettingsError, match=r"madtp-serve\[otel\]"):
        Tracing("http://collector.example")
