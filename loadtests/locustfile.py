"""The same requests for people who know Locust, which is not among our dependencies.

    pip install locust
    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000

Locust is a closed loop: a user waits for his reply before he asks again, so a slow service slows the load.
Use it to look around; `python -m loadtests` measures latency under a given rate.
"""

import itertools
import json
from pathlib import Path

from locust import HttpUser, between, task

from loadtests.grading import is_right
from loadtests.requests import prepare_requests
from loadtests.scenario import read_scenario

SCENARIO = Path(__file__).parent / "scenarios" / "uniform.yaml"


class Visitor(HttpUser):
    """Someone who asks, reads the answer for a moment, and asks again; a wrong answer counts as a failure."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Make the requests of the scenario, once a user."""
        self.requests = itertools.cycle(prepare_requests(read_scenario(SCENARIO)))

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
