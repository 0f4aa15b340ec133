"""One process's open-loop sender: a request goes out at its time, whatever became of the others."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from typing import NamedTuple

import aiohttp

from loadtests.outcome import Reply
from loadtests.requests import PreparedRequest


class Planned(NamedTuple):
    """Which request is sent when, in seconds from the start of the load."""

    scheduled_s: float
    request: int


def open_session(timeout_s: float) -> aiohttp.ClientSession:
    """Open a kept HTTP client without a cap on connections: waiting for a free one would close the loop."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        auto_decompress=False,
    )


async def send(
    session: aiohttp.ClientSession,
    url: str,
    requests: Sequence[PreparedRequest],
    planned: Planned,
    start_s: float,
) -> Reply:
    """Send one request now and read its reply; `start_s` is the load's start on `time.monotonic`."""
    request = requests[planned.request]
    status, body, problem, retry_after = 0, b"", None, None
    sent_s = time.monotonic() - start_s
    try:
        async with session.post(
            url + request.path, data=request.body, headers={"Content-Type": request.content_type}
        ) as response:
            body = await response.read()
            status, retry_after = response.status, response.headers.get("Retry-After")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        problem = type(error).__name__
    finished_s = time.monotonic() - start_s
    times_s = planned.scheduled_s, sent_s, finished_s
    return Reply(planned.request, *times_s, status, body, problem, retry_after)


async def send_planned(
    url: str,
    requests: Sequence[PreparedRequest],
    plan: Sequence[Planned],
    *,
    start_s: float,
    timeout_s: float,
) -> list[Reply]:
    """Send everything planned at its time and wait for all replies; they come in the plan's order.

    One loop wakes for the next time and starts what is due, so a long plan costs no timers in advance.
    """
    gc.freeze()  # who holds a model, too, would search it for garbage, and nothing would go out meanwhile
    tasks: list[asyncio.Task[Reply]] = []
    async with open_session(timeout_s) as session:
        for planned in plan:
            wait_s = start_s + planned.scheduled_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            elif len(tasks) % 16 == 0:
                await asyncio.sleep(0)  # late: replies are still read while what is due goes out
            tasks.append(asyncio.create_task(send(session, url, requests, planned, start_s)))
        return list(await asyncio.gather(*tasks))


async def send_one_by_one(
    url: str, requests: Sequence[PreparedRequest], count: int, timeout_s: float
) -> list[Reply]:
    """Send `count` requests, each when the one before was answered: the unloaded service."""
    replies = []
    async with open_session(timeout_s) as session:
        start_s = time.monotonic()
        for index in range(count):
            planned = Planned(time.monotonic() - start_s, index % len(requests))
            replies.append(await send(session, url, requests, planned, start_s))
    return replies
