"""`madtp bench encoder`: a vision tower dense and pruned in one process: time, multiply-adds, memory."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from madtp_core.bench import mix
from madtp_core.bench.measure import cpu_model, interleaved_seconds, peak_growth_mib
from madtp_core.bench.mix import DENSE, Mix, MixRun, measure_mix
from madtp_core.bench.schedule import flops_ratio, geometric_schedule, scheduled_trace
from madtp_core.bench.table import render
from madtp_core.bench.tower import DTYPES, GEOMETRIES, VisionTower, assert_kept
from madtp_core.errors import ConfigError
from madtp_core.flops import vision_macs

HUGGING_FACE = "hf_eager"
SECTIONS = ("ratios", "mix")
NOTE = (
    "Scrambled weights cannot reach a wanted ratio by prune temperature: the pruned variants keep a fixed\n"
    "schedule of counts per block (geometric decay), with MADTP's whole scoring paid in every block."
)
COLUMNS = {
    "variant": "{}",
    "dtype": "{}",
    "batch": "{}",
    "flops_ratio": "{:.3f}",
    "gmacs": "{:.3f}",
    "median_ms": "{:.1f}",
    "speedup": "{:.2f}",
    "realised": "{:.3f}",
    "peak_memory_mib": "{:.0f}",
}


@dataclass(frozen=True)
class Variant:
    """A forward to measure: kept is its schedule, target_ratio what that was made for; None where dense."""

    name: str
    target_ratio: float | None = None
    kept: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Run:
    """One variant at one dtype and batch size, as JSON and table show it.

    kept: tokens kept behind each block, class and merged token left out. flops_ratio: multiply-adds spent,
    MAG included, as a share of the dense tower's. gmacs: 1e9 multiply-adds an image (the paper's "GFLOPs").
    median_ms, fastest_ms: one forward of the whole batch. speedup: over our dense forward, by medians.
    realised: speedup / multiply-add cut, that is speedup * flops_ratio. peak_memory_mib: above the resting
    process, weights left out; None where the system does not tell.
    """

    variant: str
    dtype: str
    batch: int
    target_ratio: float | None
    kept: tuple[int, ...] | None
    flops_ratio: float
    gmacs: float
    median_ms: float
    fastest_ms: float
    speedup: float
    realised: float | None
    peak_memory_mib: float | None


def variants(tower: VisionTower, ratios: Sequence[float]) -> list[Variant]:
    """Hugging Face's, our dense one, and one for every ratio."""
    pruned = [
        Variant(
            f"pruned_{ratio:g}", ratio, geometric_schedule(tower.geometry, tower.alignment_geometry, ratio)
        )
        for ratio in dict.fromkeys(ratios)
    ]
    return [Variant(HUGGING_FACE), Variant(DENSE), *pruned]


def measure_ratios(
    tower: VisionTower, variants: Sequence[Variant], dtype: str, batch: int, repeats: int
) -> list[Run]:
    """Run every variant at one dtype and batch size, in turn."""
    pixel_values = tower.images(batch, dtype)
    steps: dict[str, Callable[[], object]] = {
        HUGGING_FACE: partial(tower.hugging_face, pixel_values),
        DENSE: partial(tower.dense, pixel_values),
    }
    for variant in variants:
        if variant.kept is not None:
            steps[variant.name] = partial(tower.pruned, pixel_values, [variant.kept])
            trace = scheduled_trace(tower.geometry, variant.kept)
            assert_kept(tower.pruned(pixel_values, [variant.kept]), [trace] * batch)
    seconds = interleaved_seconds(steps, repeats, tower.device)
    dense_s = statistics.median(seconds[DENSE])

    runs = []
    for variant in variants:
        is_pruned = variant.kept is not None
        trace = scheduled_trace(tower.geometry, variant.kept)
        alignment = tower.alignment_geometry if is_pruned else None
        ratio = flops_ratio(tower.geometry, trace, alignment)
        speedup = dense_s / statistics.median(seconds[variant.name])
        runs.append(
            Run(
                variant=variant.name,
                dtype=dtype,
                batch=batch,
                target_ratio=variant.target_ratio,
                kept=trace.kept if is_pruned else None,
                flops_ratio=ratio,
                gmacs=vision_macs(tower.geometry, trace, alignment) / 1e9,
                median_ms=1e3 * statistics.median(seconds[variant.name]),
                fastest_ms=1e3 * min(seconds[variant.name]),
                speedup=speedup,
                realised=speedup * ratio if is_pruned else None,
                peak_memory_mib=peak_growth_mib(steps[variant.name], tower.device),
            )
        )
    return runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `madtp bench encoder`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all"
    )
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: all")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="base", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write everything as JSON, too")
    ratios = parser.add_argument_group("ratios: every row pruned alike")
    ratios.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (default: 1 8)")
    ratios.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[0.7, 0.5, 0.3],
        help="multiply-adds to spend, as shares of the dense forward's (default: 0.7 0.5 0.3)",
    )
    mixed = parser.add_argument_group("mix: a few rows need more than the others")
    mixed.add_argument(
        "--mix-batch", type=int, nargs="+", default=[8, 16], help="batch sizes (default: 8 16)"
    )
    mixed.add_argument(
        "--hard-share", type=float, default=0.1, help="share of hard rows (default: %(default)s)"
    )
    for name, default in (("easy", 0.4), ("hard", 0.9)):
        text = f"share of the dense multiply-adds that {'an' if name == 'easy' else 'a'} {name} row needs"
        mixed.add_argument(
            f"--{name}-ratio", type=float, default=default, help=f"{text} (default: %(default)s)"
        )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All runs that the arguments ask for and the machine they ran on, JSON-able; raises ConfigError."""
    device = _checked_device(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    mixture = Mix(arguments.hard_share, arguments.easy_ratio, arguments.hard_ratio)
    runs: list[Run] = []
    mixed: list[MixRun] = []
    with torch.inference_mode():
        tower = VisionTower(arguments.geometry, device)
        compared = variants(tower, arguments.ratios)
        for dtype in arguments.dtype:
            for batch in arguments.batch if "ratios" in arguments.sections else ():
                runs += measure_ratios(tower, compared, dtype, batch, arguments.repeats)
            for batch in arguments.mix_batch if "mix" in arguments.sections else ():
                mixed += measure_mix(tower, mixture, dtype, batch, arguments.repeats)
    return {
        "benchmark": "encoder",
        "note": NOTE.replace("\n", " "),
        "machine": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "cpu": cpu_model(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": importlib.metadata.version("transformers"),
        },
        "geometry": {"name": arguments.geometry, **asdict(tower.geometry)},
        "alignment": asdict(tower.alignment_geometry),
        "repeats": arguments.repeats,
        "runs": [asdict(run) for run in runs],
        "mix": {**asdict(mixture), "runs": [asdict(run) for run in mixed]},
    }


def _checked_device(arguments: argparse.Namespace) -> torch.device:
    """The device of arguments that can be run; raises ConfigError."""
    sizes = [arguments.repeats, *arguments.batch, *arguments.mix_batch]
    least = min(sizes if arguments.threads is None else [*sizes, arguments.threads])
    if least < 1:
        raise ConfigError(f"--batch, --mix-batch, --repeats and --threads start at 1, got {least}")
    if not 0 <= arguments.hard_share <= 1 or arguments.easy_ratio > arguments.hard_ratio:
        raise ConfigError(
            "--hard-share is from 0 to 1 and --easy-ratio at most --hard-ratio, got "
            f"{arguments.hard_share:g}, {arguments.easy_ratio:g} and {arguments.hard_ratio:g}"
        )
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {device}: torch {torch.__version__} sees no CUDA device; use --device cpu"
        )
    return device


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the JSON to --out and the tables to standard output; returns the exit status."""
    result = measure(arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    machine, mixture = result["machine"], result["mix"]
    place = f"{machine['device']} ({machine['cpu']}, {machine['threads']} threads, torch {machine['torch']})"
    sys.stdout.write(
        f"BLIP vision tower, {arguments.geometry} geometry, on {place};\n"
        f"median of {arguments.repeats} interleaved rounds.\n"
        f"{NOTE}\n"
    )
    if result["runs"]:
        sys.stdout.write(f"\n{render(COLUMNS, result['runs'])}\n")
    if mixture["runs"]:
        sys.stdout.write(
            f"\nBatches with {mixture['hard_share']:.0%} hard rows, at least one. A hard row needs "
            f"{mixture['hard_ratio']:g} of the dense multiply-adds,\nanother {mixture['easy_ratio']:g}.\n\n"
            f"{render(mix.COLUMNS, mixture['runs'])}\n"
        )
    return 0
