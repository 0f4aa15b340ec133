"""Summaries: every request is counted once, the SLO counts what was shed, means are over the right things."""

import io
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from http.client import BadStatusLine
from typing import Any
from urllib.error import URLError

import pytest

from loadtests.outcome import Outcome, Reply, as_columns, from_columns, read_reply
from loadtests.requests import PreparedRequest
from loadtests.scenario import Slo
from loadtests.scrape import Snapshot, added, between, read_counters, server_side, take_snapshot
from loadtests.summary import accuracy_margin, quantile, summarise

GOOD = Outcome(0, "vqa", "easy", 1.0, 0.001, 0.05, 200, None, True, 4, 100, 200, 0.5, 0.3)
LATE = replace(GOOD, latency_s=2.0, is_right=False, band="hard", flops=300, dense_flops=400, batch_size=2)
SHED = Outcome(0, "vqa", "easy", 1.0, 0.001, 0.002, 429)
LOST = Outcome(0, "vqa", "easy", 1.0, 0.001, 3.0, 0, "TimeoutError")
REQUEST = PreparedRequest("vqa", "/v1/vqa", "text/plain", b"", "red", "easy")


def _summary(*outcomes: Outcome, share: float = 0.99):
    return summarise(outcomes, window_s=10.0, slo=Slo(quantile=share), limit_s=0.5)


def test_every_request_is_counted_once() -> None:
    summary = _summary(GOOD, GOOD, LATE, SHED, LOST)
    counts = {name: summary[name] for name in ("offered", "accepted", "good", "late", "shed", "failed")}
    assert counts == {"offered": 5, "accepted": 4, "good": 2, "late": 1, "shed": 1, "failed": 1}
    assert summary["statuses"] == {"200": 3, "429": 1, "TimeoutError": 1}
    assert (summary["offered_per_s"], summary["goodput_per_s"]) == (0.5, 0.2)


@pytest.mark.parametrize(
    ("outcomes", "is_met"),
    [
        ([GOOD] * 9 + [LATE], True),
        ([GOOD] * 8 + [LATE] * 2, False),
        ([GOOD] * 8 + [SHED] * 2, False),
        ([GOOD] * 9 + [SHED], True),
        ([GOOD] * 99 + [LOST], False),
        ([], False),
    ],
)
def test_the_slo_counts_what_was_shed_and_forgives_no_failure(outcomes: list[Outcome], is_met: bool) -> None:
    assert _summary(*outcomes, share=0.9)["slo_met"] is is_met


def test_latency_accuracy_and_cost_are_of_answers() -> None:
    summary = _summary(GOOD, LATE, SHED, LOST)
    assert summary["latency_s"]["p50"] == 0.05
    assert summary["latency_s"]["max"] == 2.0
    assert summary["accuracy"] == 0.5
    assert summary["accuracy_by_band"] == {"easy": 1.0, "hard": 0.0}
    assert summary["cost"]["flops"] == 200
    assert summary["cost"]["flops_ratio"] == pytest.approx(400 / 600)
    assert summary["cost"]["batch_size"] == 3


def test_latencies_of_tasks_are_told_apart() -> None:
    summary = _summary(GOOD, replace(LATE, task="caption"), replace(SHED, task="reasoning"))
    assert {task: one["p99"] for task, one in summary["latency_s_by_task"].items()} == {
        "caption": 2.0,
        "vqa": 0.05,
    }


def test_the_margin_of_accuracy_counts_a_repeated_request_once_and_is_never_nothing() -> None:
    many = [replace(GOOD, request=number) for number in range(96)]
    assert accuracy_margin(many) == pytest.approx(1.96 * (0.98 * 0.02 / 100) ** 0.5)
    assert accuracy_margin(many * 10) == accuracy_margin(many)
    assert accuracy_margin([replace(GOOD, is_right=None)]) is None


def test_without_answers_there_are_no_figures_of_them() -> None:
    summary = _summary(SHED)
    assert (summary["latency_s"], summary["accuracy"], summary["cost"]) == (None, None, None)


def test_a_late_client_is_told() -> None:
    assert not _summary(GOOD)["client_was_bottleneck"]
    assert _summary(replace(GOOD, send_lag_s=0.2))["client_was_bottleneck"]


def test_a_quantile_is_reached_by_that_share() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [quantile(values, share) for share in (0.5, 0.99, 0.999)] == [50, 99, 100]
    assert quantile([7.0], 0.5) == 7.0


def test_columns_and_back_is_the_same() -> None:
    assert from_columns(as_columns([GOOD, SHED, LOST])) == [GOOD, SHED, LOST]


def _read(status: int, body: bytes, problem: str | None = None) -> Outcome:
    return read_reply(Reply(3, 1.0, 1.25, 2.0, status, body, problem), REQUEST)


def test_latency_counts_from_the_scheduled_time() -> None:
    outcome = _read(200, b'{"answer": "red", "report": null}')
    assert (outcome.latency_s, outcome.send_lag_s) == (1.0, 0.25)
    assert outcome.is_right is True
    assert outcome.flops is None


def test_a_report_is_read() -> None:
    costs = {"batch_size": 3, "flops": 5, "dense_flops": 10, "token_density": 0.4}
    reply = {"answer": "blue", "report": costs | {"difficulty": {"predicted": None, "measured": 0.2}}}
    outcome = _read(200, json.dumps(reply).encode())
    assert (outcome.batch_size, outcome.flops, outcome.dense_flops) == (3, 5, 10)
    assert (outcome.token_density, outcome.difficulty, outcome.is_right) == (0.4, 0.2, False)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"score": 1}',
        b"[]",
        b'{"answer": "red", "report": [1]}',
        b'{"answer": "red", "report": {"difficulty": 0.3}}',
    ],
)
def test_an_answer_that_cannot_be_read_has_failed(body: bytes) -> None:
    outcome = _read(200, body)
    assert outcome.status == 0
    assert outcome.problem is not None
    assert outcome.problem.startswith("unreadable")


def test_an_error_is_not_graded() -> None:
    assert _read(429, b'{"error": {}}').is_right is None


METRICS = """
# TYPE madtp_flops_total counter
madtp_flops_total{kind="spent",model="a",task="vqa"} 6
madtp_flops_total{kind="spent",model="b",task="caption"} 4
madtp_flops_total{kind="dense",model="a",task="vqa"} 20
# TYPE madtp_keep_efficiency histogram
madtp_keep_efficiency_bucket{le="+Inf",model="a",task="vqa"} 2
madtp_keep_efficiency_sum{model="a",task="vqa"} 1.5
madtp_keep_efficiency_count{model="a",task="vqa"} 2
# TYPE madtp_batch_size histogram
madtp_batch_size_bucket{le="+Inf",model="a",task="vqa"} 2
madtp_batch_size_sum{model="a",task="vqa"} 8
madtp_batch_size_count{model="a",task="vqa"} 2
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 3
"""


def _served(body: bytes | Exception) -> Callable[..., Any]:
    def urlopen(address: str, timeout: float) -> Any:
        if isinstance(body, Exception):
            raise body
        return nullcontext(io.BytesIO(body))

    return urlopen


@pytest.mark.parametrize("body", [b'{"detail": 1}', b"\xff", URLError("away"), BadStatusLine("")])
def test_a_server_without_our_metrics_gives_no_snapshot(
    monkeypatch: pytest.MonkeyPatch, body: bytes | Exception
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", _served(body))
    assert take_snapshot("http://somewhere") is None


def test_counters_are_added_over_models() -> None:
    counters = read_counters(METRICS)
    assert counters["madtp_flops_total:spent"] == 10
    assert counters["process_cpu_seconds_total"] == 3


def test_the_servers_side_is_made_of_differences() -> None:
    before = Snapshot(10.0, {"process_cpu_seconds_total": 1.0, "madtp_flops_total:spent": 5.0})
    after = Snapshot(14.0, read_counters(METRICS))
    figures = server_side(added([between(before, after), between(None, after)]))
    assert figures == {
        "cpu_cores": 0.5,
        "cpu_s_per_request": 0.25,
        "batch_size": 4.0,
        "needed_per_kept": 0.75,
        "flops_ratio": 0.25,
    }
