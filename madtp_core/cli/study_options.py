"""Options that studies share: requests to be measured on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madtp_core.cli.options import SPLITS, add_images_option
from madtp_core.data.source import parse_source

if TYPE_CHECKING:
    from madtp_core.data.shapes.scene import Split
    from madtp_core.evaluate import Sample
    from madtp_core.tasks.base import PrunedModel


def add_requests(parser: argparse.ArgumentParser) -> None:
    """Checkpoints, where results go, and which requests are measured."""
    parser.add_argument(
        "checkpoints", nargs="*", type=Path, help="studied one after another; none: only report again"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="raw results as JSON; table and plot of all that lie there"
    )
    told = "requests of your own, JSON lines or FORMAT:FILE,FILE, see docs/data.md; default: drawn scenes"
    parser.add_argument("--data", help=told)
    add_images_option(parser, "--data")
    parser.add_argument("--split", choices=SPLITS, default="test", help="of the drawn scenes")
    parser.add_argument("--mix", default="natural", help="natural, easy, hard or mostly_easy scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn scenes")
    parser.add_argument("--samples", type=int, default=1024)


def data_said(args: argparse.Namespace) -> str:
    """The requests by name."""
    return named(args.data) if args.data else f"scenes {args.split} {args.seed} {args.mix}"


def named(data: str) -> str:
    """What data is called, wherever it lies."""
    source = parse_source(data)
    return f"{source.format}:{','.join(file.name for file in source.files)}"


def measured_on(args: argparse.Namespace, model: PrunedModel) -> Sequence[Sample]:
    """The requests that are measured."""
    return _requests(args, model, args.split, args.mix, args.samples)


def searched_on(args: argparse.Namespace, model: PrunedModel) -> Sequence[Sample]:
    """Requests on which costs are searched: validation scenes, or some of the user's own."""
    return _requests(args, model, "validation", args.mix, args.search_samples)


def _requests(
    args: argparse.Namespace, model: PrunedModel, split: Split, mix: str, wanted: int
) -> Sequence[Sample]:
    """Scenes, drawn once, or the user's own requests, evenly spaced, opened whenever they are asked."""
    from madtp_core.evaluate import ShapesSamples, read_samples
    from madtp_core.evaluate.samples import Asked

    if not args.data:
        size = model.image_geometry.width
        return ShapesSamples(model.task, split, wanted, args.seed, mix, size)[:]
    of_task: Any = model
    own = read_samples(parse_source(args.data, args.images), model.task, codec=of_task.codec)
    return Asked(own, {}, wanted)
