"""A Ray of our own on the loopback address, for the time of one application."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray import serve

_ROOT = Path(__file__).parents[2]
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 200_000_000  # holds bodies on their way; Ray would take a third of the memory


@contextmanager
def local_ray(cpus: int, port: int) -> Iterator[threading.Event]:
    """Start Ray with Serve's proxy on a port, and end both; give what SIGTERM or SIGINT sets."""
    # For the processes that Ray starts: where our packages are, no report to its makers, and the priority of
    # any other process. Ray's own choice is niceness 15: on a busy machine a replica then never gets ready.
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        num_cpus=cpus,
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        _node_ip_address=_LOOPBACK,
    )
    stop = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):  # after `init`, which sets handlers of its own
        signal.signal(each, lambda *_: stop.set())
    try:
        serve.start(http_options={"host": _LOOPBACK, "port": port})
        yield stop
    finally:
        serve.shutdown()
        ray.shutdown()
