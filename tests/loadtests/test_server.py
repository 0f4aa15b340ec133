"""Servers of a test: ready when they are given, told apart from ones that are not, and gone afterwards."""

import os
import sys
import time
from pathlib import Path

import pytest

import loadtests.server as server
from loadtests.errors import LoadTestError

# A server that says in a file which process it has started, and ends by SIGTERM without ending that one.
SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
child = subprocess.Popen(["sleep", "60"])
print(child.pid, file=open(sys.argv[2], "w"), flush=True)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


def _is_running(process_id: int) -> bool:
    try:
        state = Path("/proc", str(process_id), "stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_server_is_ready_when_it_is_given_and_leaves_nothing_behind(tmp_path: Path) -> None:
    port, noted = server.free_port(), tmp_path / "child"
    command = [sys.executable, "-c", SERVER, str(port), str(noted)]
    with server.started(command, {}, f"http://127.0.0.1:{port}") as given:
        assert server.is_ready(given.url)
        child = int(noted.read_text())
        assert _is_running(child)
    end_s = time.monotonic() + 5
    while _is_running(child) and time.monotonic() < end_s:
        time.sleep(0.01)
    assert not _is_running(child)


def test_a_server_that_ends_before_it_is_ready_shows_its_last_words() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such checkpoint')"]
    with (
        pytest.raises(LoadTestError, match=r"status 1 before it was ready\n.*no such checkpoint"),
        server.started(command, {}, "http://127.0.0.1:9"),
    ):
        pass


def test_settings_of_the_shell_do_not_reach_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MADTP_FLOPS_TARGET", "0.1")
    show = "import os; raise SystemExit(sorted(name for name in os.environ if name.startswith('MADTP_')))"
    with (
        pytest.raises(LoadTestError, match=r"\['MADTP_PORT'\]"),
        server.started([sys.executable, "-c", show], {"MADTP_PORT": "1"}, "http://127.0.0.1:9"),
    ):
        pass
