"""The sender against a fake service in this process, and several sending processes."""

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from loadtests.ceiling import trivial_server
from loadtests.client import Planned, send_one_by_one, send_planned
from loadtests.load import plan_requests, run_load
from loadtests.outcome import Reply, read_reply
from loadtests.requests import PreparedRequest

REQUESTS = [
    PreparedRequest("vqa", "/v1/vqa", "text/plain", text.encode(), text, "easy") for text in ("red", "blue")
]


@asynccontextmanager
async def fake_service(delay_s: float = 0.0, statuses: tuple[int, ...] = (200,)) -> AsyncIterator[str]:
    """Serve an answer that repeats the body, after a delay, with these statuses in turn."""
    turns = itertools.cycle(statuses)

    async def answer(request: web.Request) -> web.Response:
        text = await request.text()
        status = next(turns)
        await asyncio.sleep(delay_s)
        return web.json_response({"answer": text, "report": None}, status=status)

    app = web.Application()
    app.router.add_post("/v1/vqa", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _send(plan: list[Planned], *, timeout_s: float = 5.0, **service: object) -> list[Reply]:
    async def run() -> list[Reply]:
        async with fake_service(**service) as url:  # type: ignore[arg-type]
            start_s = time.monotonic() + 0.02
            return await send_planned(url, REQUESTS, plan, start_s=start_s, timeout_s=timeout_s)

    return asyncio.run(run())


def test_replies_come_in_the_plans_order_with_the_requests_they_answer() -> None:
    replies = _send([Planned(0.01 * place, place % 2) for place in range(6)])
    assert [json.loads(reply.body)["answer"] for reply in replies] == ["red", "blue"] * 3
    outcomes = [read_reply(reply, REQUESTS[reply.request]) for reply in replies]
    assert all(outcome.is_right for outcome in outcomes)


def test_a_slow_service_does_not_slow_the_load_down() -> None:
    """Ten requests are out before the first reply: a closed loop would take ten delays."""
    replies = _send([Planned(0.001 * place, 0) for place in range(10)], delay_s=0.2)
    assert max(reply.sent_s for reply in replies) < min(reply.finished_s for reply in replies)


def test_nothing_is_sent_before_its_time() -> None:
    replies = _send([Planned(0.05, 0), Planned(0.1, 0)])
    assert all(reply.sent_s >= reply.scheduled_s for reply in replies)


def test_what_is_late_goes_out_at_once_and_counts_from_its_schedule() -> None:
    replies = _send([Planned(-1.0, 0)])
    assert replies[0].sent_s < 1.0
    assert replies[0].finished_s - replies[0].scheduled_s > 0.9


def test_statuses_and_silence_are_noted() -> None:
    assert [reply.status for reply in _send([Planned(0.0, 0)] * 3, statuses=(429,))] == [429] * 3
    (silent,) = _send([Planned(0.0, 0)], delay_s=0.2, timeout_s=0.05)
    assert (silent.status, silent.problem) == (0, "TimeoutError")


def test_a_service_that_is_away_is_a_problem_of_every_request() -> None:
    replies = asyncio.run(send_one_by_one("http://127.0.0.1:9", REQUESTS, 2, 1.0))
    assert [reply.status for reply in replies] == [0, 0]
    assert all(reply.problem for reply in replies)


def test_one_by_one_never_overlaps() -> None:
    async def run() -> list[Reply]:
        async with fake_service(delay_s=0.01) as url:
            return await send_one_by_one(url, REQUESTS, 4, 5.0)

    replies = asyncio.run(run())
    assert all(before.finished_s <= after.sent_s for before, after in itertools.pairwise(replies))


def test_requests_are_taken_in_turn() -> None:
    assert plan_requests([0.0, 0.5, 0.7], 2) == [Planned(0.0, 0), Planned(0.5, 1), Planned(0.7, 0)]


@pytest.mark.slow
def test_several_processes_share_one_plan() -> None:
    plan = [Planned(0.01 * place, 0) for place in range(21)]
    started: list[float] = []
    with trivial_server() as url:
        load = run_load(url, REQUESTS, plan, processes=2, timeout_s=5.0, on_start=started.append)
    assert [outcome.scheduled_s for outcome in load.outcomes] == [planned.scheduled_s for planned in plan]
    assert {outcome.status for outcome in load.outcomes} == {200}
    assert len(started) == 1
    assert load.client_cpu_s > 0
