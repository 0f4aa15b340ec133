"""`madtp evaluate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from madtp_core.cli.options import DEMO_CHECKPOINT, SPLITS, add_cost_options, prune_temperature

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madtp_core.evaluate import Evaluation, Sample
    from madtp_core.tasks.base import PrunedModel


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    evaluate = commands.add_parser("evaluate", help="accuracy and cost of a checkpoint, whatever its task")
    evaluate.add_argument("checkpoint", nargs="?", default=str(DEMO_CHECKPOINT))
    evaluate.add_argument("--data", type=Path, help="your own requests, JSON lines; default: drawn scenes")
    evaluate.add_argument("--split", choices=SPLITS, default="test", help="of the drawn scenes")
    evaluate.add_argument(
        "--mix", default="natural", help="of drawn scenes: natural, easy, hard, mostly_easy"
    )
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--samples", type=int, default=5000)
    evaluate.add_argument("--batch-size", type=int, default=16)
    add_cost_options(evaluate, default_ratio=1.0)
    evaluate.add_argument(
        "--gallery", type=int, metavar="IMAGES", help="retrieval over so many scenes and all their captions"
    )
    evaluate.add_argument("--rerank", type=int, default=16, help="candidates that BLIP matches")
    evaluate.add_argument("--text-queries", type=int, help="of the gallery; default: all texts")
    evaluate.add_argument("--out", type=Path, help="also write the figures as JSON")
    evaluate.add_argument("--outcomes", type=Path, help="keep every sample's outcome, to compare runs by")
    evaluate.add_argument(
        "--against", type=Path, help="outcomes of another run on the same samples: the paired difference"
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from madtp_core.evaluate import compare, read_outcomes, write_outcomes
    from madtp_core.tasks import load_model

    model = load_model(args.checkpoint)
    samples = _which_samples(args, model)
    against = read_outcomes(args.against, samples) if args.against else {}
    temperature = prune_temperature(model, args, args.batch_size)
    result = _run(model, args, temperature)
    figures: dict[str, object] = {
        "checkpoint": str(args.checkpoint),
        "split": args.split,
        "batch_size": args.batch_size,
        "keep_mode": args.keep_mode,
        "prune_temperature": temperature,
        **result.figures(),
    }
    for measure, outcomes in result.per_sample().items():
        if measure in against:
            figures[f"paired/{measure}"] = asdict(compare(against[measure], outcomes))
    if args.outcomes:
        write_outcomes(args.outcomes, result, samples)
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _which_samples(args: argparse.Namespace, model: PrunedModel) -> dict[str, object]:
    """What must agree for two runs to be compared sample by sample."""
    if args.data:
        return {"task": model.task, "data": args.data.name}
    drawn = {"task": model.task, "split": args.split, "seed": args.seed}
    if args.gallery:
        return {**drawn, "gallery": args.gallery, "text_queries": args.text_queries}
    return {**drawn, "mix": args.mix, "samples": args.samples}


def _run(model: PrunedModel, args: argparse.Namespace, temperature: float) -> Evaluation:
    from madtp_core.errors import ConfigError
    from madtp_core.evaluate import ShapesSamples, evaluate, evaluate_gallery, read_manifest, shapes_gallery
    from madtp_core.tasks.embedding import EmbeddingModel

    with tqdm(desc=args.split, unit="sample", mininterval=2.0) as bar:
        options = {
            "batch_size": args.batch_size,
            "prune_temperature": temperature,
            "keep_mode": args.keep_mode,
            "on_batch": bar.update,
        }
        size = model.image_geometry.width
        if args.gallery:
            if not isinstance(model, EmbeddingModel):
                raise ConfigError(f"a gallery is for retrieval, but {model.name} is for {model.task!r}")
            gallery = shapes_gallery(args.split, args.gallery, args.seed, size)
            return evaluate_gallery(
                model, gallery, rerank=args.rerank, text_queries=args.text_queries, **options
            )
        samples: Sequence[Sample] = (
            read_manifest(args.data, model.task)
            if args.data
            else ShapesSamples(model.task, args.split, args.samples, args.seed, args.mix, size)
        )
        bar.total = len(samples)
        return evaluate(model, samples, **options)
