"""The options of `python -m loadtests claims`, without the torch that measuring loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from loadtests.arguments import count

NAMES = ("control", "keeping", "overhead", "overload", "keep-modes")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument(
        "--checkpoint", default="checkpoints/blip-vqa-shapes", help="the demo model (%(default)s)"
    )
    parser.add_argument("--samples", type=count, help="requests of each run of control and keeping (5000)")
    parser.add_argument(
        "--batch-sizes", type=count, nargs="+", metavar="N", help="of control (1 2 4 8 16 32)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results/service"),
        help="folder of a raw JSON a claim, whose steps are not measured again, and section.md (%(default)s)",
    )
    parser.add_argument(
        "--tiny", action="store_true", help="as little as shows that all runs; its figures mean nothing"
    )
