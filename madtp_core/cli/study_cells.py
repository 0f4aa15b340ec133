"""`madtp study methods | branches | tis | batch-size | sorting | per-instance`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tqdm import tqdm

from madtp_core.cli.study_options import add_requests, data_said, measured_on, named, searched_on
from madtp_core.pruning import KEEP_MODES, MAX_KEEP

if TYPE_CHECKING:
    from madtp_core.study import Bench, Cells, FineTuning
    from madtp_core.tasks.base import PrunedModel

_HELD_OUT, _TRAIN_SCENES = 16, 100_000
_TOLD: Final = {
    "methods": "accuracy against multiply-adds of pruning methods, fine-tuned alike and training-free",
    "branches": "pruning the image alone, the text alone, and both (supplement, Table 7)",
    "tis": "the terms of token importance (supplement, Table 8)",
    "batch-size": "drift of cost and accuracy with the batch size, and its repair (supplement, Table 9)",
    "sorting": "requests sorted by difficulty or not, at one temperature (supplement, Table 10)",
    "per-instance": "both keep modes, of models trained on one or on both",
}


def add_studies(studies: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the studies whose results are cells of one file."""
    for name, told in _TOLD.items():
        parser = studies.add_parser(name, help=told, description=f"{told}; see docs/studies.md")
        add_requests(parser)
        parser.add_argument(
            "--search-samples", type=int, default=512, help="other requests, on which costs are searched"
        )
        parser.add_argument("--batch-size", type=int, default=16, help="of requests measured")
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--threads", type=int, default=0, help="0: as many as torch likes")
        _ADD[name](parser)
        parser.set_defaults(run=_study, study=name)


def _add_training(parser: argparse.ArgumentParser, steps: int) -> None:
    training = parser.add_argument_group("fine-tuning, the same for all")
    training.add_argument("--steps", type=int, default=steps, help="0: none is fine-tuned")
    training.add_argument("--seeds", type=int, nargs="+", default=[0], help="of data order and draws")
    training.add_argument("--train-batch-size", type=int, default=32)
    training.add_argument("--learning-rate", type=float, default=1e-4)
    training.add_argument("--train-data", help="in the same forms as --data; default: drawn scenes")
    training.add_argument("--runs", type=Path, default=Path("runs/study"), help="where runs lie and go on")


def _add_methods(parser: argparse.ArgumentParser) -> None:
    methods = ["madtp", "stp", "stp:vision", "evit:vision", "tome:vision", "random:vision"]
    told = "the first word is a pruner, the second a branch if only one is pruned; `none` is dense"
    parser.add_argument("--methods", nargs="+", default=methods, help=told)
    _add_comparison(parser, 400, (0.3, 0.5, 0.7, 0.8))


def _add_branches(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--methods", nargs="+", default=["madtp", "stp"])
    _add_comparison(parser, 0, (0.5,))


def _add_comparison(parser: argparse.ArgumentParser, steps: int, reductions: tuple[float, ...]) -> None:
    parser.add_argument("--reductions", type=float, nargs="+", default=reductions)
    parser.add_argument("--keep-mode", choices=KEEP_MODES, default=MAX_KEEP)
    parser.add_argument("--no-training-free", action="store_true", help="fine-tuned models only")
    _add_training(parser, steps)


def _add_sizes(parser: argparse.ArgumentParser, sizes: tuple[int, ...]) -> None:
    parser.add_argument("--flops-ratio", type=float, default=0.5, help="wanted in batches of --batch-size")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=sizes)


def _add_keep_modes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reductions", type=float, nargs="+", default=(0.5,))
    _add_training(parser, 0)


_ADD: Final[Mapping[str, Callable[[argparse.ArgumentParser], None]]] = {
    "methods": _add_methods,
    "branches": _add_branches,
    "tis": partial(_add_comparison, steps=0, reductions=(0.5,)),
    "batch-size": partial(_add_sizes, sizes=(1, 2, 4, 8, 16, 32)),
    "sorting": partial(_add_sizes, sizes=(1, 4, 16, 32)),
    "per-instance": _add_keep_modes,
}


def _study(args: argparse.Namespace) -> int:
    import torch

    from madtp_core.study import Cells, publish

    if args.threads:
        torch.set_num_threads(args.threads)
    cells = Cells(args.out, args.study, lambda place, found: tqdm.write(_said(place, found)))
    for checkpoint in args.checkpoints:
        _measure(checkpoint, args, cells)
    for path in publish(cells, args.out):
        print(path)
    return 0


def _measure(checkpoint: Path, args: argparse.Namespace, cells: Cells) -> None:
    """Measure what is missing of one model."""
    from madtp_core.cli.calibrate import digest
    from madtp_core.evaluate import MEASURES
    from madtp_core.study import Bench
    from madtp_core.tasks import load_model

    model = load_model(checkpoint, device=args.device)
    samples = measured_on(args, model)
    about: dict[str, Any] = {
        "task": model.task,
        "measure": MEASURES[model.task],
        "weights": digest(checkpoint),
        "data": data_said(args),
        "requests": len(samples),
        "search_requests": args.search_samples,
        "batch_size": args.batch_size,
    }
    if hasattr(args, "flops_ratio"):
        about["flops_ratio"] = args.flops_ratio
    with tqdm(desc=model.name, unit="request", mininterval=2.0) as bar:
        bench = Bench(samples, searched_on(args, model), args.batch_size, bar.update)
        fine_tuning = _fine_tuning(args, model, bench)
        if fine_tuning is not None:
            about["budget"] = fine_tuning.budget.about()
            about["train_data"] = named(args.train_data) if args.train_data else "scenes train 0"
        cells.begin(model.name, about)
        _planned(args, fine_tuning).measure(model, bench, cells)


def _fine_tuning(args: argparse.Namespace, model: PrunedModel, bench: Bench) -> FineTuning | None:
    """What is trained and how; None where nothing is."""
    if not getattr(args, "steps", 0):
        return None
    from madtp_core.data.source import parse_source
    from madtp_core.study import Budget, FineTuning
    from madtp_core.train.compress import Data
    from madtp_core.train.examples import Examples
    from madtp_core.train.read import read_examples
    from madtp_core.train.shapes_examples import ShapesExamples

    examples: Examples = ShapesExamples(model.task, _TRAIN_SCENES, "train")
    if args.train_data:
        examples = read_examples(parse_source(args.train_data, args.images), model.task)
    data = Data(examples, ShapesExamples(model.task, _HELD_OUT, "validation"), may_augment=False)
    budget = Budget(args.steps, args.train_batch_size, args.learning_rate)
    return FineTuning(model, data, budget, bench, args.runs / args.study / model.name)


def _planned(args: argparse.Namespace, fine_tuning: FineTuning | None) -> Any:
    """The study as asked for."""
    from madtp_core.study import (
        BatchSizes,
        Comparison,
        KeepModes,
        Sorting,
        Variant,
        branch_variants,
        term_variants,
    )

    if args.study == "batch-size":
        return BatchSizes(args.flops_ratio, args.batch_size, args.batch_sizes)
    if args.study == "sorting":
        return Sorting(args.flops_ratio, args.batch_size, args.batch_sizes)
    ratios = [round(1 - reduction, 6) for reduction in args.reductions]
    if args.study == "per-instance":
        return KeepModes(ratios, args.seeds, fine_tuning)
    variants = {
        "methods": lambda: {name: Variant.named(name) for name in args.methods},
        "branches": lambda: branch_variants(args.methods),
        "tis": term_variants,
    }[args.study]()
    return Comparison(variants, ratios, args.seeds, args.keep_mode, not args.no_training_free, fine_tuning)


def _said(place: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """One cell in a line."""
    at = ", ".join(f"{name} {value}" for name, value in place.items() if value is not None)
    figures = ("setting", "flops_ratio", "accuracy")
    told = ", ".join(f"{name} {found[name]:.4g}" for name in figures if found.get(name) is not None)
    return f"{at}: {told}"
