"""A schedule spread over several processes that start together, and what they brought back."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from loadtests.client import Planned, send_planned
from loadtests.errors import LoadTestError
from loadtests.outcome import Outcome, read_reply
from loadtests.requests import PreparedRequest

_START_TIMEOUT_S = 60.0
_LEAD_S = 0.2  # from the last process's "ready" to the start of the load

# What a process sends back: outcomes, its processor time, its wall time.
_Result = tuple[list[Outcome], float, float]


@dataclass(frozen=True)
class Load:
    """What was sent and came back. `client_cpu_s` is processor time of all sending processes together."""

    outcomes: list[Outcome]
    client_cpu_s: float
    wall_s: float


def plan_requests(schedule_s: Sequence[float], distinct: int) -> list[Planned]:
    """Give every send time the next of the distinct requests, in turn."""
    return [Planned(time_s, index % distinct) for index, time_s in enumerate(schedule_s)]


def run_load(
    url: str,
    requests: Sequence[PreparedRequest],
    plan: Sequence[Planned],
    *,
    processes: int,
    timeout_s: float,
    on_start: Callable[[float], None] | None = None,
) -> Load:
    """Send the plan from several processes, every n-th request each; outcomes come in the order of the plan.

    `on_start` is called with the load's start on `time.monotonic`, which all processes of a machine share; it
    runs while the load runs. Raises LoadTestError when a process ends before its time.
    """
    context = multiprocessing.get_context("spawn")
    pipes, workers = [], []
    for index in range(processes):
        ours, theirs = context.Pipe()
        arguments = (theirs, url, list(requests), list(plan[index::processes]), timeout_s)
        worker = context.Process(target=_work, args=arguments, daemon=True)
        worker.start()
        theirs.close()
        pipes.append(ours)
        workers.append(worker)
    try:
        for pipe in pipes:
            _receive(pipe, _START_TIMEOUT_S)  # says that it is ready
        start_s = time.monotonic() + _LEAD_S
        for pipe in pipes:
            pipe.send(start_s)
        if on_start is not None:
            on_start(start_s)
        last_s = plan[-1].scheduled_s if plan else 0.0
        results: list[_Result] = [_receive(pipe, last_s + timeout_s + _START_TIMEOUT_S) for pipe in pipes]
    finally:
        for worker in workers:
            worker.join(timeout=1)
            if worker.is_alive():
                worker.terminate()
    outcomes = [outcome for outcomes, _, _ in results for outcome in outcomes]
    outcomes.sort(key=lambda outcome: outcome.scheduled_s)
    return Load(outcomes, sum(cpu_s for _, cpu_s, _ in results), max(wall_s for _, _, wall_s in results))


def _receive(pipe: Connection, timeout_s: float) -> Any:
    try:
        if not pipe.poll(timeout_s):
            raise LoadTestError(f"a sending process said nothing for {timeout_s:.0f} s")
        return pipe.recv()
    except EOFError as error:
        raise LoadTestError("a sending process ended before its time; its traceback stands above") from error


def _work(
    pipe: Connection,
    url: str,
    requests: Sequence[PreparedRequest],
    plan: Sequence[Planned],
    timeout_s: float,
) -> None:
    """Run in a process of its own: say ready, wait for the start, send, and only then read the replies."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))  # a socket for each open request
    gc.disable()  # a collection walks over every reply kept so far, while requests are due
    pipe.send(None)
    start_s: float = pipe.recv()
    cpu_before_s = time.process_time()
    replies = uvloop.run(send_planned(url, requests, plan, start_s=start_s, timeout_s=timeout_s))
    cpu_s, wall_s = time.process_time() - cpu_before_s, time.monotonic() - start_s
    pipe.send(([read_reply(reply, requests[reply.request]) for reply in replies], cpu_s, wall_s))
