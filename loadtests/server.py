"""A server on a loopback port for the time of a test: our own service, or whatever a command starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from loadtests.errors import LoadTestError

ROOT = Path(__file__).parents[1]
_PREFIX = "MADTP_"
_READY_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 40.0
_POLL_S = 0.1
_LOG_TAIL = 2000  # characters of a dead server's log that are shown


def free_port() -> int:
    """Find a TCP port that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def answers(address: str) -> bool:
    """Say whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):  # OSError: urllib's errors, and a timeout
        return False


def is_ready(url: str) -> bool:
    """Say whether a service answers there and will serve requests."""
    return answers(f"{url}/readyz")


@dataclass(frozen=True)
class Server:
    """A server that is ready: where, and as which process."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def serving(settings: Mapping[str, str]) -> Iterator[str]:
    """Start our service as `own_service` does, and give its address."""
    with own_service(settings) as server:
        yield server.url


@contextmanager
def own_service(settings: Mapping[str, str]) -> Iterator[Server]:
    """Start `madtp-serve` with these MADTP_ settings on a free port, wait until it is ready, and give it.

    It is stopped by SIGTERM. Raises LoadTestError as `started`.
    """
    port = free_port()
    environment = {"MADTP_LOG_LEVEL": "warning"} | dict(settings) | {"MADTP_PORT": str(port)}
    command = [sys.executable, "-m", "service.cli"]
    with started(command, environment, f"http://127.0.0.1:{port}") as server:
        yield server


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], url: str) -> Iterator[Server]:
    """Start a server at the root of the repository, wait until `url` is ready, and give it.

    `environment` comes on top of that of this process, whose MADTP_ variables do not reach it. The server is
    stopped by SIGTERM. Raises LoadTestError with the end of its log when it does not become ready.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=inherited | dict(environment),
            stdout=log,
            stderr=log,
            start_new_session=True,  # a process group of its own, see `_stop`
        )
        try:
            try:
                _wait_until_ready(process, url)
            except LoadTestError as error:
                log.seek(0)
                raise LoadTestError(f"{error}\n{log.read()[-_LOG_TAIL:]}") from error
            yield Server(url, process)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a server by SIGTERM, and then what it leaves behind: LitServe leaves its workers."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    give_up_s = time.monotonic() + _READY_TIMEOUT_S
    while not is_ready(url):
        if process.poll() is not None:
            raise LoadTestError(f"the service ended with status {process.returncode} before it was ready")
        if time.monotonic() > give_up_s:
            raise LoadTestError(f"the service was not ready after {_READY_TIMEOUT_S:.0f} s")
        time.sleep(_POLL_S)
