"""`madtp`: data, training, calibration, evaluation and benchmarks from the command line."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from madtp_core.errors import MadtpError
from madtp_core.pruning import KEEP_MODES, MAX_KEEP

DEMO_CHECKPOINT = Path("checkpoints/blip-vqa-shapes")
_KNOWN_SPLITS = ("train", "validation", "test")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it succeeded, 2 for an error the user can repair."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parser().parse_args(arguments)
    try:
        code: int = args.run(args)
        return code
    except MadtpError as error:
        print(f"madtp: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="madtp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    data = commands.add_parser("data", help="synthetic data").add_subparsers(required=True, metavar="command")
    preview = data.add_parser("preview", help="write a contact sheet of scenes and questions as PNG")
    preview.add_argument("--out", type=Path, default=Path("shapes.png"))
    preview.add_argument("--split", choices=_KNOWN_SPLITS, default="train")
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--rows", type=int, default=3)
    preview.add_argument("--columns", type=int, default=4)
    preview.set_defaults(run=_preview)

    demo = commands.add_parser(
        "demo-weights", help="train the demo checkpoint again; resumes where it stopped"
    )
    demo.add_argument("--recipe", type=Path, help="default: the committed checkpoint's")
    demo.add_argument(
        "--work", type=Path, default=Path("runs/demo-vqa"), help="where stages keep their state"
    )
    demo.add_argument("--out", type=Path, default=DEMO_CHECKPOINT)
    demo.add_argument("--threads", type=int, default=0, help="0: torch's default")
    demo.set_defaults(run=_demo_weights)

    evaluate = commands.add_parser("evaluate", help="accuracy and cost of a checkpoint on held-out questions")
    evaluate.add_argument("checkpoint", nargs="?", default=str(DEMO_CHECKPOINT))
    evaluate.add_argument("--split", choices=_KNOWN_SPLITS, default="test")
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

    bench = commands.add_parser("bench", help="measure").add_subparsers(required=True, metavar="command")
    encoder = bench.add_parser(
        "encoder", help="time a full-size BLIP vision tower: Hugging Face, dense, pruned"
    )
    from madtp_core.bench import encoder as bench_encoder

    bench_encoder.add_arguments(encoder)
    encoder.set_defaults(run=bench_encoder.run)
    return parser


def _preview(args: argparse.Namespace) -> int:
    from madtp_core.data.shapes.preview import write_preview

    write_preview(args.out, args.seed, args.split, args.rows, args.columns)
    print(args.out)
    return 0


def _demo_weights(args: argparse.Namespace) -> int:
    import torch

    from madtp_core.train.demo import RECIPE, DemoRun, read_recipe

    if args.threads:
        torch.set_num_threads(args.threads)
    model = DemoRun(read_recipe(args.recipe or RECIPE), args.work, args.out).make()
    print(f"{model.name}: written to {args.out}")
    return 0


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
