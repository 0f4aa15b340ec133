"""What became of one request, and many of them as plain columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from loadtests.grading import is_right
from loadtests.requests import PreparedRequest

OK = 200
SHED = (429, 503)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. Times are seconds; `scheduled_s` counts from the start of the load.

    `latency_s` goes from the *scheduled* send time to the last byte of the reply, `send_lag_s` is how late
    the client itself was. `status` is 0 where there was no reply, and `problem` says why. `is_right` is None
    where the reply could not be graded; the report's values are None where there was none.
    """

    request: int
    task: str
    band: str
    scheduled_s: float
    send_lag_s: float
    latency_s: float
    status: int
    problem: str | None = None
    is_right: bool | None = None
    batch_size: int | None = None
    flops: int | None = None
    dense_flops: int | None = None
    token_density: float | None = None
    difficulty: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What a client noted of one request, to be read after the run; without a reply `body` is empty."""

    request: int
    scheduled_s: float
    sent_s: float
    finished_s: float
    status: int
    body: bytes
    problem: str | None = None
    retry_after: str | None = None  # the header, where one came


def read_reply(reply: Reply, request: PreparedRequest) -> Outcome:
    """Turn a noted reply into an outcome; a 200 that is not the contract's JSON is a failure of its own."""
    status, problem, graded, report = reply.status, reply.problem, None, None
    if status == OK:
        try:
            content = json.loads(reply.body)
            report = dict(content["report"] or {})
            report["difficulty"] = dict(report.get("difficulty") or {})
            graded = is_right(request.task, request.label, content)
        except (ValueError, KeyError, TypeError) as error:
            status, problem, report = 0, f"unreadable reply: {type(error).__name__}", None
    report = report or {}
    return Outcome(
        request=reply.request,
        task=request.task,
        band=request.band,
        scheduled_s=reply.scheduled_s,
        send_lag_s=reply.sent_s - reply.scheduled_s,
        latency_s=reply.finished_s - reply.scheduled_s,
        status=status,
        problem=problem,
        is_right=graded,
        batch_size=report.get("batch_size"),
        flops=report.get("flops"),
        dense_flops=report.get("dense_flops"),
        token_density=report.get("token_density"),
        difficulty=report.get("difficulty", {}).get("measured"),
    )


def as_columns(outcomes: Sequence[Outcome]) -> dict[str, list[Any]]:
    """Give one list a field: what a raw result holds, a fifth of the size of a list of records."""
    return {field.name: [getattr(outcome, field.name) for outcome in outcomes] for field in fields(Outcome)}


def from_columns(columns: dict[str, list[Any]]) -> list[Outcome]:
    """Undo `as_columns`."""
    names = list(columns)
    return [Outcome(**dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]
