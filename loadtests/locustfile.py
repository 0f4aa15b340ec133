"""The same requests for people who know Locust, which is not among our dependencies.

    pip install locust
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000

Locust is a closed loop: a user waits for his reply before he asks again, so a slow service slows the load.
Use it to look around; `python -m loadtests` measures latency under a given rate.
"""

import itertools
import json
import random
from functools import cache
from pathlib import Path

from locust import HttpUser, between, task

from loadtests.grading import is_right
from loadtests.requests import PreparedRequest, prepare_requests
from loadtests.scenario import read_scenario

SCENARIO = Path(__file__).parent / "scenarios" / "uniform.yaml"


@cache
def requests_of_all() -> list[PreparedRequest]:
    """Make the scenario's requests, once for all users of a process."""
    return prepare_requests(read_scenario(SCENARIO))


class Visitor(HttpUser):
    """Someone who asks, reads the answer for a moment, and asks again; a wrong answer counts as a failure."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Begin somewhere among the requests: users in step would send the same at the same time."""
        requests = requests_of_all()
        start = random.randrange(len(requests))
        self.requests = itertools.cycle(requests[start:] + requests[:start])

    @task
    def ask(self) -> None:
        """Send the next request and grade the reply."""
        request = next(self.requests)
        headers = {"Content-Type": request.content_type}
        with self.client.post(request.path, data=request.body, headers=headers, catch_response=True) as reply:
            if (
                reply.status_code == 200
                and is_right(request.task, request.label, json.loads(reply.text)) is False
            ):
                reply.failure("wrong answer")
