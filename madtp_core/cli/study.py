"""`madtp study`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from madtp_core.cli import study_cells
from madtp_core.cli.study_options import add_requests, data_said, measured_on


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    study = commands.add_parser("study", help="studies of a model").add_subparsers(
        required=True, metavar="study"
    )
    difficulty = study.add_parser(
        "difficulty", help="what predicts how much a request needs, and what batching by it saves"
    )
    add_requests(difficulty)
    difficulty.add_argument(
        "--prune-temperature", type=float, help="default: the calibration's reference temperature"
    )
    difficulty.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    difficulty.set_defaults(run=_difficulty)
    study_cells.add_studies(study)


def _difficulty(args: argparse.Namespace) -> int:
    from madtp_core.study import read_study, write_report

    for checkpoint in args.checkpoints:
        _study(checkpoint, args)
    studies = [read_study(path) for path in sorted(args.out.glob("*.json"))]
    for path in write_report(studies, args.out):
        print(path)
    return 0


def _study(checkpoint: Path, args: argparse.Namespace) -> None:
    from madtp_core.errors import ConfigError
    from madtp_core.study import observe, study_difficulty
    from madtp_core.tasks import load_model

    model = load_model(checkpoint)
    temperature = args.prune_temperature
    if temperature is None:
        if model.calibration is None:
            raise ConfigError(f"{checkpoint} has no calibration; give --prune-temperature")
        temperature = model.calibration.reference_temperature()
    about = {
        "model": model.name,
        "task": model.task,
        "prune_temperature": temperature,
        "data": data_said(args),
    }
    samples = measured_on(args, model)
    with tqdm(desc=model.name, unit="sample", total=len(samples), mininterval=2.0) as bar:
        requests = observe(model, samples, temperature, bar.update)
        study = study_difficulty(
            model, samples, requests, about, batch_sizes=args.batch_sizes, on_batch=bar.update
        )
    study.save(args.out / f"{model.name}.json")
