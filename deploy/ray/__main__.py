"""`python -m deploy.ray`: a Ray of our own on the loopback address, and the application on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pydantic import ValidationError
from ray import serve

from deploy.ray.application import Options, build
from deploy.ray.local import local_ray


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
    try:
        options = Options.model_validate(given)
    except ValidationError as error:
        parser.error(str(error))
    with local_ray(max(1, round(options.cpus * options.max_engines)), port) as stop:
        serve.run(build(options), name="madtp")
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
