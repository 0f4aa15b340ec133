"""`madtp calibrate`."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from madtp_core.cli.options import SPLITS, add_images_option
from madtp_core.pruning import KEEP_MODES

if TYPE_CHECKING:
    from madtp_core.data.source import DataSource
    from madtp_core.evaluate import Sample
    from madtp_core.tasks.base import PrunedModel


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command and its options."""
    calibrate = commands.add_parser(
        "calibrate", help="measure what prune temperatures cost, and store it with the checkpoint"
    )
    calibrate.add_argument("checkpoint", type=Path, help="a directory; its calibration.json is written")
    calibrate.add_argument(
        "--data",
        help="your own requests as JSON lines, or FORMAT:FILE,FILE of a benchmark, see docs/data.md; without "
        "labels accuracy is null",
    )
    add_images_option(calibrate, "--data")
    calibrate.add_argument("--split", choices=SPLITS, default="validation", help="of the drawn scenes")
    calibrate.add_argument("--seed", type=int, default=0)
    calibrate.add_argument("--samples", type=int, default=256, help="a mix")
    calibrate.add_argument(
        "--mixes",
        nargs="+",
        help="of drawn scenes: natural, easy, hard, mostly_easy (9 easy to 1 hard); default: all",
    )
    calibrate.add_argument("--keep-modes", nargs="+", choices=KEEP_MODES, default=KEEP_MODES)
    calibrate.add_argument("--batch-sizes", type=int, nargs="+", help="default: 1 2 4 8 16 32")
    calibrate.add_argument(
        "--ratios", type=float, nargs="+", help="flops_ratios to have a point near; default: 0.3 ... 0.8"
    )
    calibrate.set_defaults(run=_calibrate)


def _calibrate(args: argparse.Namespace) -> int:
    from madtp_core.checkpoint import CALIBRATION
    from madtp_core.data.source import parse_source
    from madtp_core.errors import ConfigError
    from madtp_core.tasks import load_model
    from madtp_core.train.calibrate import BATCH_SIZES, WANTED_RATIOS, calibrate
    from madtp_core.train.ledger import LEDGER_NAME, Ledger

    if not args.checkpoint.is_dir():
        raise ConfigError(f"{args.checkpoint} is no directory: a calibration is stored with its checkpoint")
    model = load_model(args.checkpoint)
    source = parse_source(args.data, args.images) if args.data else None
    mixes = _mixes(args, model, source)
    about = {
        "weights": digest(args.checkpoint),
        "data": " ".join(map(digest, source.files)) if source else f"scenes {args.split} {args.seed}",
        "samples": args.samples,
    }
    ledger = Ledger(args.checkpoint / LEDGER_NAME, about)
    if ledger.rows:
        print(f"going on after {len(ledger.rows)} rows that an earlier run measured")
    sizes, wanted = args.batch_sizes or BATCH_SIZES, args.ratios or WANTED_RATIOS
    table = calibrate(
        model,
        mixes,
        keep_modes=args.keep_modes,
        batch_sizes=sizes,
        wanted=wanted,
        ledger=ledger,
        progress=True,
    )
    table.save(args.checkpoint / CALIBRATION)
    ledger.discard()
    for mix, mode, size in sorted({(row.mix, row.keep_mode, row.batch_size) for row in table.rows}):
        low, high = table.reachable(size, mode, mix)
        out = [f"{ratio:g}" for ratio in wanted if not low <= ratio <= high]
        missed = f"; out of reach: {', '.join(out)}" if out else ""
        print(f"{mix} {mode} x{size}: flops_ratio {low:.3f} to {high:.3f}{missed}")
    return 0


def _mixes(
    args: argparse.Namespace, model: PrunedModel, source: DataSource | None
) -> Mapping[str, Sequence[Sample]]:
    from madtp_core.calibration import NATURAL
    from madtp_core.errors import ConfigError
    from madtp_core.evaluate import MIXES, ShapesSamples

    if source:
        if args.mixes:
            raise ConfigError("mixes are of drawn scenes, whose difficulty is known; leave out --mixes")
        return {NATURAL: _own_samples(source, model, args.samples)}
    size = model.image_geometry.width
    return {
        mix: ShapesSamples(model.task, args.split, args.samples, args.seed, mix, size)
        for mix in args.mixes or MIXES
    }


def _own_samples(source: DataSource, model: PrunedModel, count: int) -> Sequence[Sample]:
    """So many of a source's samples, evenly spaced, opened once; of a gallery, pictures with a few texts."""
    from madtp_core.evaluate import read_samples
    from madtp_core.evaluate.samples import Asked
    from madtp_core.train.held_out import HeldOut
    from madtp_core.train.read import read_examples

    samples: Sequence[Sample]
    if source.has_gallery(model.task):
        samples = HeldOut(read_examples(source, model.task), model.task, codec=model.codec)
    else:
        samples = read_samples(source, model.task, codec=model.codec)
    return Asked(samples, {}, count)[:]


def digest(path: Path) -> str:
    """Of a file, or of a checkpoint's weights, shared ones too, and settings."""
    from madtp_core.sharing import INDEX

    wanted = [path]
    if path.is_dir():
        index = path / INDEX
        shared = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else set()
        weights = {*path.glob("*.safetensors"), *(path / name for name in shared)}
        wanted = [*sorted(weights), path / "madtp.json"]
    digest = hashlib.blake2b(digest_size=16)
    for file in wanted:
        if file.exists():
            digest.update(file.read_bytes())
    return digest.hexdigest()
