"""`python -m deploy.ray`: a Ray of our own on the loopback address, and the application on it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import ray
from ray import serve

from deploy.ray.application import Options, build

_ROOT = Path(__file__).parents[2]
_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 200_000_000  # holds bodies on their way; Ray would take a third of the memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.ray", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the loopback address (%(default)s)")
    for name, field in Options.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", metavar="X", help=f"{field.description} ({field.default})"
        )
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    port = given.pop("port")
    options = Options.model_validate(given)
    # For the processes of Ray that start here: where our packages are, and no report to its makers.
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "RAY_USAGE_STATS_ENABLED": "0"}

    stop = threading.Event()
    ray.init(
        num_cpus=max(1, round(options.cpus * options.max_engines)),
        object_store_memory=_OBJECT_STORE_BYTES,
        include_dashboard=False,
        _node_ip_address=_LOOPBACK,
    )
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop.set())
    try:
        serve.start(http_options={"host": _LOOPBACK, "port": port})
        serve.run(build(options), name="madtp")
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
