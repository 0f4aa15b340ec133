"""`madtp bench`."""

from __future__ import annotations

import argparse

from madtp_core.bench import encoder as bench_encoder


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    bench = commands.add_parser("bench", help="measure").add_subparsers(required=True, metavar="command")
    encoder = bench.add_parser(
        "encoder", help="time a full-size BLIP vision tower: Hugging Face, dense, pruned"
    )
    bench_encoder.add_arguments(encoder)
    encoder.set_defaults(run=bench_encoder.run)
