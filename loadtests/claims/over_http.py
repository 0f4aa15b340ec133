"""Requests to a running service: as many as it takes, or one at a time, with what the client itself took."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import uvloop

from loadtests.client import Planned, open_session, send, send_one_by_one
from loadtests.errors import LoadTestError
from loadtests.outcome import OK, Reply
from loadtests.requests import PreparedRequest

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Saturated:
    """Replies of a closed loop. client_cores: processor seconds of this process each second."""

    replies: list[Reply]
    client_cores: float


def saturate(url: str, requests: Sequence[PreparedRequest], count: int, in_flight: int) -> Saturated:
    """Send `count` requests, `in_flight` at any time; raises LoadTestError unless all are answered."""
    cpu_s, began_s = time.process_time(), time.monotonic()
    replies = uvloop.run(_closed_loop(url, requests, count, in_flight))
    cores = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
    return Saturated(_answered(url, replies), cores)


def one_by_one(url: str, requests: Sequence[PreparedRequest], count: int) -> list[Reply]:
    """Send each request when the one before was answered; raises LoadTestError unless all are answered."""
    return _answered(url, asyncio.run(send_one_by_one(url, requests, count, TIMEOUT_S)))


def engine_s(reply: Reply) -> float:
    """How long the engine took, by the reply's own report, in seconds."""
    seconds = json.loads(reply.body)["report"]["seconds"]
    return float(seconds["inference"] + seconds["postprocess"])


async def _closed_loop(
    url: str, requests: Sequence[PreparedRequest], count: int, in_flight: int
) -> list[Reply]:
    numbers, replies = iter(range(count)), []
    start_s = time.monotonic()
    async with open_session(TIMEOUT_S) as session:

        async def keep_sending() -> None:
            for number in numbers:
                planned = Planned(time.monotonic() - start_s, number % len(requests))
                replies.append(await send(session, url, requests, planned, start_s))

        await asyncio.gather(*(keep_sending() for _ in range(in_flight)))
    return replies


def _answered(url: str, replies: list[Reply]) -> list[Reply]:
    for reply in replies:
        if reply.status != OK:
            said = reply.problem or f"{reply.status}: {reply.body[:300].decode(errors='replace')}"
            raise LoadTestError(f"{url} did not answer a request: {said}")
    return replies
