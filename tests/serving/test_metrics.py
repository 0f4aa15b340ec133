"""/metrics has exactly the documented names, and they count what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serving.conftest import Serve, wait_until
from tests.serving.fakes import COST, FakeModel

DOCS = Path(__file__).parents[2] / "docs" / "api.md"


def _families(text: str) -> set[str]:
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE madtp_")}


def _value(text: str, series: str) -> float:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(line.rpartition(" ")[2])


def _documented() -> dict[str, set[str]]:
    """Names and labels from the table of docs/api.md: `| `name{label,label}` | ...`."""
    found = re.findall(r"^\| `(madtp_\w+)\{([\w,]*)\}`", DOCS.read_text("utf-8"), re.MULTILINE)
    return {name: set(labels.split(",")) for name, labels in found}


def _labels(client: TestClient) -> dict[str, set[str]]:
    registry = client.app.state.runtime.metrics.registry  # type: ignore[attr-defined]
    metrics = {metric for metric in registry._collector_to_names if hasattr(metric, "_labelnames")}
    return {
        metric._name + ("_total" if metric._type == "counter" else ""): set(metric._labelnames)
        for metric in metrics
    }


def test_metrics_are_exactly_the_documented_ones(client: TestClient, question: dict[str, Any]) -> None:
    assert _labels(client) == _documented()
    client.post("/v1/vqa", json=question)
    assert _families(client.get("/metrics").text) == set(_documented())


def test_every_metric_has_the_label_model(client: TestClient, question: dict[str, Any]) -> None:
    client.post("/v1/vqa", json=question)
    series = [line for line in client.get("/metrics").text.splitlines() if line.startswith("madtp_")]
    assert series
    assert [line for line in series if 'model="fake"' not in line] == []


def test_latency_buckets_begin_at_one_millisecond(client: TestClient, question: dict[str, Any]) -> None:
    client.post("/v1/vqa", json=question)
    text = client.get("/metrics").text
    assert re.search(r'madtp_request_seconds_bucket\{le="0.001",', text)
    assert re.search(r'madtp_stage_seconds_bucket\{le="0.001",', text)


def test_process_metrics_are_there(client: TestClient) -> None:
    text = client.get("/metrics").text
    assert "process_resident_memory_bytes" in text
    assert "_created" not in text


def test_what_one_answer_counts(client: TestClient, question: dict[str, Any]) -> None:
    client.post("/v1/vqa", json=question)
    wait_until(
        lambda: "madtp_prune_temperature{" in client.get("/metrics").text
    )  # the engine's, after the answer
    text = client.get("/metrics").text
    task = 'model="fake",task="vqa"'
    expected = {
        'madtp_requests_total{model="fake",outcome="ok",task="vqa"}': 1,
        f"madtp_request_seconds_count{{{task}}}": 1,
        'madtp_stage_seconds_count{model="fake",stage="decode",task="vqa"}': 1,
        f"madtp_request_flops_sum{{{task}}}": COST.flops,
        f'madtp_flops_total{{kind="spent",{task}}}': COST.flops,
        f'madtp_flops_total{{kind="dense",{task}}}': COST.dense_flops,
        f'madtp_flops_total{{kind="needed",{task}}}': COST.needed_flops,
        f'madtp_flops_total{{kind="padded",{task}}}': COST.padded_flops,
        f"madtp_keep_efficiency_sum{{{task}}}": (8 + 3 + 6 + 3) / (8 + 4 + 6 + 3),
        f"madtp_difficulty_sum{{{task}}}": 0.4,
        f'madtp_token_density_sum{{branch="vision",{task}}}': 12 / 32,
        f'madtp_token_density_sum{{branch="text",{task}}}': 9 / 12,
        f"madtp_batch_size_sum{{{task}}}": 1,
        f"madtp_batch_tokens_sum{{{task}}}": 22,
        f"madtp_queue_depth{{{task}}}": 0,
        f"madtp_prune_temperature{{{task}}}": 1.5,
        f"madtp_flops_target_ratio{{{task}}}": 0.5,
        'madtp_images_decoded_total{model="fake"}': 1,
    }
    assert {series: _value(text, series) for series in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"image": "?"}, "invalid"),
        ({"question": "refuse it"}, "invalid"),
        ({"question": "break it"}, "error"),
    ],
)
def test_failures_are_counted_by_outcome_and_cost_nothing(
    client: TestClient, question: dict[str, Any], change: dict[str, str], outcome: str
) -> None:
    client.post("/v1/vqa", json=question | change)
    text = client.get("/metrics").text
    assert _value(text, f'madtp_requests_total{{model="fake",outcome="{outcome}",task="vqa"}}') == 1
    assert "madtp_flops_total{" not in text
    assert "madtp_request_seconds_count{" not in text


def test_requests_count_for_the_model_they_name(serve: Serve, question: dict[str, Any]) -> None:
    client = serve({"first": FakeModel(), "second": FakeModel()})
    client.post("/v1/vqa", json=question | {"model": "second"})
    client.post("/v1/vqa", json=question | {"model": "no such model"})
    text = client.get("/metrics").text
    assert _value(text, 'madtp_requests_total{model="second",outcome="ok",task="vqa"}') == 1
    assert _value(text, 'madtp_requests_total{model="first",outcome="invalid",task="vqa"}') == 1
    assert "no such model" not in text


def test_apps_do_not_share_metrics(serve: Serve, question: dict[str, Any]) -> None:
    first, second = serve({"fake": FakeModel()}), serve({"fake": FakeModel()})
    first.post("/v1/vqa", json=question)
    assert "madtp_requests_total{" not in second.get("/metrics").text
