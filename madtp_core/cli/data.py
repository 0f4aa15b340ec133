"""`madtp data preview`."""

from __future__ import annotations

import argparse
from pathlib import Path

from madtp_core.cli.options import SPLITS


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    data = commands.add_parser("data", help="synthetic data").add_subparsers(required=True, metavar="command")
    preview = data.add_parser("preview", help="write a contact sheet of scenes and questions as PNG")
    preview.add_argument("--out", type=Path, default=Path("shapes.png"))
    preview.add_argument("--split", choices=SPLITS, default="train")
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--rows", type=int, default=3)
    preview.add_argument("--columns", type=int, default=4)
    preview.set_defaults(run=_preview)


def _preview(args: argparse.Namespace) -> int:
    from madtp_core.data.shapes.preview import write_preview

    write_preview(args.out, args.seed, args.split, args.rows, args.columns)
    print(args.out)
    return 0
