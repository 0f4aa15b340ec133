"""`madtp demo-weights`."""

from __future__ import annotations

import argparse
from pathlib import Path

from madtp_core.config import TASKS


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    demo = commands.add_parser(
        "demo-weights", help="train the demo checkpoints again; resumes where it stopped"
    )
    demo.add_argument("--recipe", type=Path, help="default: the committed checkpoints'")
    demo.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    demo.add_argument("--work", type=Path, default=Path("runs/demo"), help="where stages keep their state")
    demo.add_argument("--out", type=Path, default=Path("checkpoints"))
    demo.add_argument("--threads", type=int, default=0, help="0: torch's default")
    demo.set_defaults(run=_demo_weights)


def _demo_weights(args: argparse.Namespace) -> int:
    import torch

    from madtp_core.train.demo import RECIPE, DemoRun, read_recipe

    if args.threads:
        torch.set_num_threads(args.threads)
    DemoRun(read_recipe(args.recipe or RECIPE), args.work, args.out).make(args.tasks)
    print(f"written to {args.out}")
    return 0
