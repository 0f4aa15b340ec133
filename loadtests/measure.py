"""One trial against one server, and the result file that every kind of load test writes."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from loadtests.client import send_one_by_one
from loadtests.errors import LoadTestError
from loadtests.load import plan_requests, run_load
from loadtests.outcome import OK, Outcome, as_columns, from_columns, read_reply
from loadtests.requests import PreparedRequest
from loadtests.scenario import Scenario
from loadtests.scrape import Snapshot, added, between, server_side, take_snapshot
from loadtests.summary import summarise

SCHEMA = 1
UNLOADED_REQUESTS = 40
_ROUND_DIGITS = 6  # microseconds are enough, and halve the file


@dataclass
class Target:
    """A server under test. `factor` turns the scenario's rates into requests a second."""

    url: str
    unloaded_median_s: float
    settings: dict[str, str] = field(default_factory=dict)
    trials: list[dict[str, Any]] = field(default_factory=list)
    highest: dict[str, float | None] | None = None


def unloaded_median_s(url: str, requests: Sequence[PreparedRequest], timeout_s: float) -> float:
    """Send requests one after the other and give the median latency; raises LoadTestError if one fails."""
    count = min(UNLOADED_REQUESTS, 2 * len(requests))
    replies = asyncio.run(send_one_by_one(url, requests, count, timeout_s))
    outcomes = [read_reply(reply, requests[reply.request]) for reply in replies]
    for outcome, reply in zip(outcomes, replies, strict=True):
        if outcome.status != OK:
            said = outcome.problem or f"answered {reply.status}: {reply.body[:300].decode(errors='replace')}"
            raise LoadTestError(f"{url}{requests[reply.request].path} before any load: {said}")
    return statistics.median(outcome.latency_s - outcome.send_lag_s for outcome in outcomes)


def run_trial(
    target: Target,
    scenario: Scenario,
    requests: Sequence[PreparedRequest],
    *,
    factor: float,
    limit_s: float,
    seed: int,
) -> dict[str, Any]:
    """Put the scenario's load on a server, every rate times `factor`; the target keeps the raw trial, too.

    Raises LoadTestError where so little is sent that nothing would be measured.
    """
    schedule_s = scenario.schedule_s(factor=factor, seed=seed)
    if not schedule_s or schedule_s[-1] < scenario.warm_up_s:
        raise LoadTestError(
            f"{scenario.name}: no request after the warm-up of {scenario.warm_up_s:g} s; the load must last "
            f"longer than {scenario.planned_s():g} s or have a higher rate"
        )
    plan = plan_requests(schedule_s, len(requests))
    warm: list[Snapshot | None] = []

    def snapshot_when_warm(start_s: float) -> None:
        time.sleep(max(0.0, start_s + scenario.warm_up_s - time.monotonic()))
        warm.append(take_snapshot(target.url))

    load = run_load(
        target.url,
        requests,
        plan,
        processes=scenario.processes,
        timeout_s=scenario.timeout_s,
        on_start=snapshot_when_warm,
    )
    outcomes = [outcome for outcome in load.outcomes if outcome.scheduled_s >= scenario.warm_up_s]
    trial = {
        "rate_per_s": scenario.mean_rate() * factor,
        "seed": seed,
        "window_s": scenario.planned_s() - scenario.warm_up_s,
        "client_cpu_s": load.client_cpu_s,
        "client_wall_s": load.wall_s,
        "counted": between(warm[0], take_snapshot(target.url)),
        "outcomes": _rounded(as_columns(outcomes)),
    }
    trial["summary"] = pooled_summary([trial], scenario, limit_s)
    target.trials.append(trial)
    return trial


def pooled_summary(trials: Sequence[dict[str, Any]], scenario: Scenario, limit_s: float) -> dict[str, Any]:
    """Summarise trials of one server at one rate together, as if they had been one long trial."""
    outcomes: list[Outcome] = [outcome for trial in trials for outcome in from_columns(trial["outcomes"])]
    window_s = sum(trial["window_s"] for trial in trials)
    client_wall_s = sum(trial["client_wall_s"] for trial in trials)
    summary = summarise(outcomes, window_s=window_s, slo=scenario.slo, limit_s=limit_s)
    summary["server"] = server_side(added(trial["counted"] for trial in trials))
    summary["client_cpu_cores"] = sum(trial["client_cpu_s"] for trial in trials) / client_wall_s
    return summary


def result(kind: str, scenario: Scenario, limit_s: float, targets: dict[str, Target]) -> dict[str, Any]:
    """Give everything that was measured as plain data: the raw file that report and figures are made from."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processors": os.cpu_count(),
            "architecture": platform.machine(),
            "python": platform.python_version(),
            "load_average": list(os.getloadavg()),
        },
        "scenario": scenario.model_dump(mode="json"),
        "limit_s": limit_s,
        "configurations": {
            name: {
                "settings": target.settings,
                "unloaded_median_s": target.unloaded_median_s,
                "highest": target.highest,
                "trials": target.trials,
            }
            for name, target in targets.items()
        },
    }


def _rounded(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: [round(value, _ROUND_DIGITS) if isinstance(value, float) else value for value in values]
        for name, values in columns.items()
    }
