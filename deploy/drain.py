"""SIGTERM with many requests inside: is every one answered, and does the service end with status 0?

    python -m deploy.drain [--requests 200]

Needs the extra `loadtest`. Status 1 where a request had no answer, or the service ended badly.
"""

from __future__ import annotations

import argparse
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence

from prometheus_client.parser import text_string_to_metric_families

from loadtests.client import Planned
from loadtests.load import run_load
from loadtests.outcome import OK
from loadtests.requests import prepare_requests
from loadtests.scenario import Scenario
from loadtests.server import own_service

WAITING = 100
_ACCEPT_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 60.0
_POLL_S = 0.02
_DEPTH = "madtp_queue_depth"


def wait_until_waiting(url: str, requests: int) -> None:
    """Wait until so many requests wait for a batch."""
    give_up_s = time.monotonic() + _ACCEPT_TIMEOUT_S
    while time.monotonic() < give_up_s:
        with urllib.request.urlopen(f"{url}/metrics") as response:
            families = text_string_to_metric_families(response.read().decode())
        depths = [sample.value for family in families for sample in family.samples if sample.name == _DEPTH]
        if sum(depths) >= requests:
            return
        time.sleep(_POLL_S)
    raise SystemExit(f"there were never {requests} requests waiting")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it all and say what became of the requests."""
    parser = argparse.ArgumentParser(description="The service is told to end while it is full.")
    parser.add_argument("--requests", type=int, default=200, help="sent at once (%(default)s)")
    options = parser.parse_args(arguments)
    scenario = Scenario.model_validate(
        {
            "name": "drain",
            "description": "All at once.",
            "arrivals": {"kind": "poisson", "rate": 1.0, "duration_s": 10.0},
            "distinct_requests": options.requests,
        }
    )
    requests = prepare_requests(scenario)
    plan = [Planned(0.0, number) for number in range(options.requests)]
    settings = {
        "MADTP_MAX_QUEUE": str(2 * options.requests),  # room for all: a queue has a bound in tokens, too
        "MADTP_MAX_BATCH_SIZE": "2",  # slow enough, on any machine, that many wait
        "MADTP_THREADS": "1",
        "MADTP_DRAIN_TIMEOUT_S": str(_STOP_TIMEOUT_S),
    }
    told_s = []
    with own_service(settings) as server:

        def end(start_s: float) -> None:
            wait_until_waiting(server.url, WAITING)
            told_s.append(time.monotonic() - start_s)
            server.process.terminate()

        load = run_load(server.url, requests, plan, processes=1, timeout_s=scenario.timeout_s, on_start=end)
        status = server.process.wait(_STOP_TIMEOUT_S)
    statuses = Counter(outcome.problem or str(outcome.status) for outcome in load.outcomes)
    inside = sum(outcome.status == OK and outcome.latency_s > told_s[0] for outcome in load.outcomes)
    sys.stdout.write(
        f"{inside} requests were inside at SIGTERM and were answered; all {options.requests} by status: "
        f"{dict(statuses)}; ended with status {status}\n"
    )
    # Who had not arrived by then was turned away: 503, draining.
    is_good = inside >= WAITING and statuses.keys() <= {"200", "503"} and status == 0
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
