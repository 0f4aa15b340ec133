"""The ends of a process: a signal in the middle of a request, and an engine that dies."""

import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import serve as serve_until_the_end
from tests.serving.conftest import MakeSettings, wait_until
from tests.serving.fakes import FakeModel

ROOT = Path(__file__).parents[2]

# Serves on the given port; a question that begins with "wait" runs until a line comes on stdin.
SERVER = """
import sys
from service.cli import serve
from service.settings import load_settings
from tests.serving.fakes import FakeModel

class Held(FakeModel):
    def predict(self, queries, **options):
        if queries[0].question.startswith("wait"):
            print("running", flush=True)
            sys.stdin.readline()
        return super().predict(queries, **options)

sys.exit(serve(load_settings(None, port=sys.argv[1]), {"fake": Held()}))
"""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_sigterm_finishes_what_is_in_flight_and_exits_0(question: dict[str, Any]) -> None:
    port = _free_port()
    with (
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        assert process.stdin
        assert process.stdout
        try:
            wait_until(lambda: _is_ready(client) or process.poll() is not None, 60)
            assert process.poll() is None, "the server ended before it was ready"
            in_flight = threads.submit(client.post, "/v1/vqa", json=question | {"question": "wait for it"})
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/readyz").status_code == 503)
            assert client.get("/livez").status_code == 200
            refused = client.post("/v1/vqa", json=question)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            process.stdin.write("\n")
            process.stdin.flush()
            assert in_flight.result(30).json()["answer"] == "it"
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_a_dead_engine_ends_the_process_with_1(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.configure_logging", lambda level: None)
    model = FakeModel()
    model.is_broken = True  # from the warm-up on
    assert serve_until_the_end(make_settings(port=0), {"fake": model}) == 1
