"""`madtp`: data, training, conversion, evaluation and benchmarks from the command line."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from madtp_core.cli import (
    bench,
    calibrate,
    convert,
    data,
    demo_weights,
    evaluate,
    flops,
    predict,
    prune_parameters,
    study,
    train,
    visualize,
)
from madtp_core.errors import MadtpError

_COMMANDS = (
    data,
    demo_weights,
    convert,
    calibrate,
    evaluate,
    predict,
    study,
    bench,
    flops,
    train,
    prune_parameters,
    visualize,
)  # each has add_command(commands)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 2 for an error the user can repair, 1 when nobody reads on."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="madtp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in _COMMANDS:
        command.add_command(commands)
    args = parser.parse_args(arguments)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as by `| head`; what is left to write would fail once more at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MadtpError as error:
        print(f"madtp: {error}", file=sys.stderr)
        return 2
