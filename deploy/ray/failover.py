"""Kills one of two engines under load: is any request lost, and when are there two again?

    python -m deploy.ray.failover [--rate 15] [--seconds 20]

Needs the extras `ray` and `loadtest`, and Linux. Status 1 where a request was not answered, where the second
engine does not come back, or where the application does not end with status 0.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests.load import plan_requests, run_load
from loadtests.requests import prepare_requests
from loadtests.scenario import Scenario
from loadtests.server import free_port, is_ready

_ROOT = Path(__file__).parents[2]
_ENGINE = "ray::ServeReplica:madtp:engine"  # what Ray calls the process of a replica
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 90.0


def engines() -> set[int]:
    """Give the ids of the processes that are engines."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            is_engine = path.read_text("utf-8", errors="replace").startswith(_ENGINE)
        except OSError:  # it has just ended
            continue
        if is_engine:
            found.add(int(path.parent.name))
    return found


@contextmanager
def running(before: set[int]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run the application with two engines on a free port; `before`: engines that are not ours."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-m", "deploy.ray", "--port", str(port)], cwd=_ROOT)
    try:
        give_up_s = time.monotonic() + _START_TIMEOUT_S
        while not (is_ready(url) and len(engines() - before) == 2):
            if process.poll() is not None or time.monotonic() > give_up_s:
                raise SystemExit("the application did not become ready")
            time.sleep(0.5)
        yield url, process
    finally:
        process.terminate()
        process.wait(_STOP_TIMEOUT_S)


def seconds_until_two(before: set[int], killed: int, url: str) -> float | None:
    """Wait until two engines stand again and one answers; None when it takes too long."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < _START_TIMEOUT_S:
        if len(engines() - before - {killed}) == 2 and is_ready(url):
            return time.monotonic() - began_s
        time.sleep(0.2)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all and say what became of the requests."""
    parser = argparse.ArgumentParser(description="One of two engines is killed under load.")
    parser.add_argument("--rate", type=float, default=15.0, help="requests a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of load (%(default)s)")
    options = parser.parse_args(arguments)
    scenario = Scenario.model_validate(
        {
            "name": "failover",
            "description": "Steady load while an engine dies.",
            "arrivals": {"kind": "poisson", "rate": options.rate, "duration_s": options.seconds},
            "distinct_requests": 60,
        }
    )
    requests = prepare_requests(scenario)
    plan = plan_requests(scenario.schedule_s(), len(requests))
    before, killed = engines(), []

    def kill_one(start_s: float) -> None:
        time.sleep(max(0.0, start_s + options.seconds / 3 - time.monotonic()))
        killed.append(min(engines() - before))
        os.kill(killed[0], signal.SIGKILL)

    with running(before) as (url, process):
        load = run_load(url, requests, plan, processes=1, timeout_s=scenario.timeout_s, on_start=kill_one)
        recovered_s = seconds_until_two(before, killed[0], url)
    statuses = Counter(outcome.status for outcome in load.outcomes)
    slowest_s = max(outcome.latency_s for outcome in load.outcomes)
    sys.stdout.write(
        f"{len(load.outcomes)} requests, by status: {dict(statuses)}; slowest {slowest_s:.2f} s\n"
        f"two engines again {recovered_s} s after the load; ended with status {process.returncode}\n"
    )
    is_good = set(statuses) == {200} and recovered_s is not None and process.returncode == 0
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
