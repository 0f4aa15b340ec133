"""`madtp evaluate`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from madtp_core.cli.options import (
    DEMO_CHECKPOINT,
    SPLITS,
    add_cost_options,
    add_images_option,
    field_of,
    prune_temperature,
)
from madtp_core.errors import ConfigError

if TYPE_CHECKING:
    from madtp_core.data.source import DataSource
    from madtp_core.evaluate import Evaluation, Gallery, Journal
    from madtp_core.evaluate.samples import Samples
    from madtp_core.tasks.base import PrunedModel

_SAMPLES: Final = 5000  # drawn scenes, unless told
_K_TEST: Final = 128  # as BLIP's vqa.yaml


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    evaluate = commands.add_parser("evaluate", help="accuracy and cost of a checkpoint, whatever its task")
    evaluate.add_argument("checkpoint", nargs="?", default=str(DEMO_CHECKPOINT))
    evaluate.add_argument(
        "--data",
        help="your own requests as JSON lines, or FORMAT:FILE,FILE of a benchmark (coco, flickr30k, vqav2, "
        "nlvr2), see docs/data.md; default: drawn scenes",
    )
    add_images_option(evaluate, "--data")
    evaluate.add_argument("--split", choices=SPLITS, default="test", help="of the drawn scenes")
    evaluate.add_argument(
        "--mix", default="natural", help="of drawn scenes: natural, easy, hard, mostly_easy"
    )
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument(
        "--samples", type=int, help=f"only so many; default: {_SAMPLES} scenes, or all data"
    )
    evaluate.add_argument("--batch-size", type=int, default=16)
    add_cost_options(evaluate, default_ratio=1.0)
    evaluate.add_argument("--device", default="cpu")
    evaluate.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of every request; a value is JSON, or else a text (prompt='a picture of ')",
    )
    evaluate.add_argument("--answers", type=Path, help="questions: rank this list of answers, a JSON array")
    evaluate.add_argument(
        "--k-test", type=int, default=_K_TEST, help="answers of the list that are ranked by all their tokens"
    )
    evaluate.add_argument(
        "--gallery", type=int, metavar="IMAGES", help="retrieval over so many scenes and all their captions"
    )
    evaluate.add_argument("--rerank", type=int, default=16, help="candidates of a gallery that BLIP matches")
    evaluate.add_argument("--text-queries", type=int, help="of the gallery; default: all texts")
    evaluate.add_argument("--out", type=Path, help="also write the figures as JSON")
    evaluate.add_argument(
        "--submission", type=Path, help="write the answers as VQA's or COCO's servers take them"
    )
    evaluate.add_argument("--records", type=Path, help="keep every answer while the run goes on, JSON lines")
    evaluate.add_argument("--resume", action="store_true", help="take up the run that --records holds")
    evaluate.add_argument("--outcomes", type=Path, help="keep every sample's outcome, to compare runs by")
    evaluate.add_argument(
        "--against", type=Path, help="outcomes of another run on the same samples: the paired difference"
    )
    evaluate.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from madtp_core.data.source import parse_source
    from madtp_core.evaluate import Journal, compare, read_outcomes, write_outcomes
    from madtp_core.evaluate.submission import check_submission, write_submission
    from madtp_core.tasks import load_model

    if args.resume and not args.records:
        raise ConfigError("--resume takes up what --records names: give both")
    model = load_model(args.checkpoint, device=args.device)
    if args.submission:
        check_submission(model.task)
    source = parse_source(args.data, args.images) if args.data else None
    about = _which_samples(args, model, source)
    against = read_outcomes(args.against, about) if args.against else {}
    temperature = prune_temperature(model, args, args.batch_size)
    run = {
        "checkpoint": str(args.checkpoint),
        **({"data": _named(source)} if source else {"split": args.split}),
        "batch_size": args.batch_size,
        "keep_mode": args.keep_mode,
        "prune_temperature": temperature,
    }
    journal = Journal(args.records, {**about, **run}, is_resumed=args.resume) if args.records else None
    result = _run(model, args, source, temperature, journal)
    figures: dict[str, object] = {**run, **result.figures()}
    if result.notes:
        figures["notes"] = dict(result.notes)
    for measure, outcomes in result.per_sample().items():
        if measure in against:
            figures[f"paired/{measure}"] = asdict(compare(against[measure], outcomes))
    if args.outcomes:
        write_outcomes(args.outcomes, result, about)
    if args.submission:
        write_submission(args.submission, model.task, result.records)
    print(json.dumps(figures, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _named(source: DataSource) -> str:
    """What the data is called, wherever it lies."""
    return f"{source.format}:{','.join(file.name for file in source.files)}"


def _which_samples(
    args: argparse.Namespace, model: PrunedModel, source: DataSource | None
) -> dict[str, object]:
    """What must agree for two runs to be compared sample by sample."""
    asked: dict[str, object] = {"task": model.task}
    if args.field:
        asked["field"] = sorted(args.field)
    if args.answers:
        asked |= {"answers": args.answers.name, "k_test": args.k_test}
    if source:
        ranked = {"text_queries": args.text_queries, "rerank": args.rerank}
        own = ranked if source.has_gallery(model.task) else {"samples": args.samples}
        return {**asked, "data": _named(source), **own}
    drawn = {**asked, "split": args.split, "seed": args.seed}
    if args.gallery:
        return {**drawn, "gallery": args.gallery, "text_queries": args.text_queries, "rerank": args.rerank}
    return {**drawn, "mix": args.mix, "samples": args.samples or _SAMPLES}


def _run(
    model: PrunedModel,
    args: argparse.Namespace,
    source: DataSource | None,
    temperature: float,
    journal: Journal | None,
) -> Evaluation:
    from madtp_core.evaluate import evaluate, evaluate_gallery
    from madtp_core.tasks.embedding import EmbeddingModel

    has_gallery = bool(args.gallery) if source is None else source.has_gallery(model.task)
    if has_gallery and not isinstance(model, EmbeddingModel):
        raise ConfigError(f"a gallery is for retrieval, but {model.name} is for {model.task!r}")
    if has_gallery and (args.field or args.answers):
        raise ConfigError("a gallery has no requests for --field or --answers")
    gallery = _gallery(model, args, source) if has_gallery else None
    samples = None if has_gallery else _samples(model, args, source)
    with tqdm(desc=args.split if source is None else source.format, unit="sample", mininterval=2.0) as bar:
        options: dict[str, Any] = {
            "batch_size": args.batch_size,
            "prune_temperature": temperature,
            "keep_mode": args.keep_mode,
            "on_batch": bar.update,
            "journal": journal,
        }
        if gallery is not None:
            assert isinstance(model, EmbeddingModel)
            return evaluate_gallery(
                model, gallery, rerank=args.rerank, text_queries=args.text_queries, **options
            )
        assert samples is not None
        bar.total = len(samples)
        return evaluate(model, samples, official=source is not None, **options)


def _gallery(model: PrunedModel, args: argparse.Namespace, source: DataSource | None) -> Gallery:
    from madtp_core.evaluate import read_gallery, shapes_gallery

    if source is None:
        return shapes_gallery(args.split, args.gallery, args.seed, model.image_geometry.width)
    with tqdm(desc="images looked up", unit="image", disable=None) as bar:  # None: shown to a terminal
        return read_gallery(source, bar.update, codec=model.codec)


def _samples(model: PrunedModel, args: argparse.Namespace, source: DataSource | None) -> Samples:
    from madtp_core.evaluate import ShapesSamples, read_samples
    from madtp_core.evaluate.samples import Asked

    fields = dict(field_of(text) for text in args.field) | _ranked_answers(model, args)
    if source is None:
        size, count = model.image_geometry.width, args.samples or _SAMPLES
        return Asked(ShapesSamples(model.task, args.split, count, args.seed, args.mix, size), fields)
    with tqdm(desc="images looked up", unit="image", disable=None) as bar:
        read = read_samples(source, model.task, bar.update, codec=model.codec)
    return Asked(read, fields, args.samples)


def _ranked_answers(model: PrunedModel, args: argparse.Namespace) -> dict[str, object]:
    """Fields of a question whose answer is ranked, none where it is written."""
    from madtp_core.data.benchmarks.vqav2 import read_answer_list

    if args.answers is None:
        return {}
    if model.task != "vqa":
        raise ConfigError(f"--answers is for questions, but {model.name} is for {model.task!r}")
    return {"candidates": read_answer_list(args.answers), "shortlist": args.k_test}
