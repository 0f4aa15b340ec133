"""`madtp evaluate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from madtp_core.cli.options import DEMO_CHECKPOINT, SPLITS
from madtp_core.pruning import KEEP_MODES, MAX_KEEP


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    evaluate = commands.add_parser("evaluate", help="accuracy and cost of a checkpoint on held-out questions")
    evaluate.add_argument("checkpoint", nargs="?", default=str(DEMO_CHECKPOINT))
    evaluate.add_argument("--split", choices=SPLITS, default="test")
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--samples", type=int, default=5000)
    evaluate.add_argument("--batch-size", type=int, default=16)
    evaluate.add_argument("--keep-mode", choices=KEEP_MODES, default=MAX_KEEP)
    cost = evaluate.add_mutually_exclusive_group()
    cost.add_argument("--prune-temperature", type=float, help="0 is dense")
    cost.add_argument(
        "--flops-ratio", type=float, default=1.0, help="looked up in the calibration; 1 is dense"
    )
    evaluate.add_argument("--out", type=Path, help="also write the figures as JSON")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from madtp_core.data.shapes import ShapesVqa
    from madtp_core.errors import ConfigError
    from madtp_core.tasks.vqa import BlipVqa
    from madtp_core.train.evaluate import evaluate_vqa

    model = BlipVqa.from_pretrained(args.checkpoint)
    temperature = args.prune_temperature
    if temperature is None:
        if args.flops_ratio < 1 and model.calibration is None:
            raise ConfigError(f"{args.checkpoint} has no calibration; give --prune-temperature instead")
        calibration = model.calibration
        temperature = (
            0.0
            if calibration is None
            else calibration.temperature_for(args.flops_ratio, args.batch_size, args.keep_mode)
        )
    scenes = ShapesVqa(args.seed, args.split, args.samples, 1, model.image_geometry.width)
    result = evaluate_vqa(
        model,
        scenes,
        batch_size=args.batch_size,
        prune_temperature=temperature,
        keep_mode=args.keep_mode,
        progress=args.split,
    )
    figures = {
        "checkpoint": str(args.checkpoint),
        "split": args.split,
        "batch_size": args.batch_size,
        "keep_mode": args.keep_mode,
        "prune_temperature": temperature,
        **result.figures(),
    }
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0
