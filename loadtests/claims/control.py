"""What requests spend against the target, at every batch size, mix and keep mode, controlled and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import Claim, Found, Step
from loadtests.claims.in_process import Answered, outcomes_of, prepared_samples, running_engine
from loadtests.claims.verdict import Verdict, largest_miss, window_means
from loadtests.errors import LoadTestError
from loadtests.report import markdown_table
from madtp_core.calibration import NATURAL, Calibration, Setting
from madtp_core.errors import ConfigError
from madtp_core.evaluate import compare
from madtp_core.pruning import KEEP_MODES

MIXES = {"uniform": NATURAL, "90:10": "mostly_easy", "all easy": "easy", "all hard": "hard"}
MOST_OFF = 0.03  # of the target
MOST_LOST = 0.005  # half a point of accuracy

TEXT = """Every request goes through the service's engine, batcher and controller in one process, without
HTTP: batches of a wanted size need a queue that is always full. `off` is the paper's way: one prune
temperature, the one that spends the target in the largest batches. A miss is the mean of the worst
{window} requests in a row over the target, less 1, the first {window} left out. Accuracy is paired with
the same {samples} requests served at the prune temperature that the calibration gives for batch size and
mix, as it measured it: in order of arrival."""


@dataclass(frozen=True)
class _Way:
    """How a run is steered. prune_temperature: None leaves it to the controller."""

    keep_mode: str
    mix: str
    size: int
    batching: str
    prune_temperature: float | None


def _steps(bench: Bench) -> Mapping[str, Step]:
    done: dict[_Way, dict[str, Any]] = {}
    return {
        _key(mode, mix, size): partial(_cell, bench, done, mode, mix, size)
        for mode in KEEP_MODES
        for mix in bench.plan.mixes
        for size in bench.plan.batch_sizes
    }


def _key(mode: str, mix: str, size: int) -> str:
    return f"{mode}, {mix}, {size}"


def _cell(
    bench: Bench, done: dict[_Way, dict[str, Any]], mode: str, mix: str, size: int, _: Found
) -> dict[str, Any]:
    plan, name = bench.plan, MIXES[mix]
    calibration = _calibration(bench)
    setting, measured_on = setting_for(calibration, plan.flops_target, size, mode, name)
    largest = calibration.temperature_for(plan.flops_target, max(plan.batch_sizes), mode)
    on = _run(bench, done, _Way(mode, name, size, "sorted", None))
    off = _run(bench, done, _Way(mode, name, size, "sorted", largest))
    fixed = _run(bench, done, _Way(mode, name, size, "fifo", setting.prune_temperature))
    return {
        "on": _told(on),
        "off": _told(off),
        "calibrated": _told(fixed),
        "calibration": asdict(setting) | {"mix": measured_on},
        "on_against_calibrated": asdict(compare(fixed["outcomes"], on["outcomes"])),
        "off_against_calibrated": asdict(compare(fixed["outcomes"], off["outcomes"])),
    }


def setting_for(
    calibration: Calibration, flops_ratio: float, size: int, mode: str, mix: str
) -> tuple[Setting, str]:
    """The calibration's setting of a mix, and the mix that it was measured on: natural where not on this."""
    try:
        return calibration.setting_for(flops_ratio, size, mode, mix), mix
    except ConfigError:
        return calibration.setting_for(flops_ratio, size, mode), NATURAL


def _calibration(bench: Bench) -> Calibration:
    calibration = bench.model.calibration
    if not isinstance(calibration, Calibration):
        raise LoadTestError(f"{bench.name} has no calibration: run `madtp calibrate` first")
    return calibration


def _run(bench: Bench, done: dict[_Way, dict[str, Any]], way: _Way) -> dict[str, Any]:
    """Serve the mix's requests one way; fixed ways are run once, and packed ones once for all sizes."""
    if way.prune_temperature is None:
        return _served(bench, way)
    if way.keep_mode == "per_instance":  # a request answers and spends the same in whatever batch
        way = _Way(way.keep_mode, way.mix, max(bench.plan.batch_sizes), "fifo", way.prune_temperature)
    if way not in done:
        done[way] = _served(bench, way)
    return done[way]


def _served(bench: Bench, way: _Way) -> dict[str, Any]:
    samples = bench.samples(way.mix)
    settings = bench.settings(
        keep_mode=way.keep_mode,
        max_batch_size=way.size,
        max_queue=16 * way.size,
        batching=way.batching,
        prune_temperature=way.prune_temperature,
    )
    with running_engine(bench.name, bench.model, settings) as serving:
        answers = serving.serve_saturated(bench.route, prepared_samples(serving, bench.route, samples))
    return summary(answers, outcomes_of(bench.model.task, samples, answers), bench.plan.window)


def summary(answers: Sequence[Answered], outcomes: Sequence[float], window: int) -> dict[str, Any]:
    """What a run spent and how well it answered; windows: means of flops_ratio after the first window."""
    ratios = [answer.flops_ratio for answer in answers]
    return {
        "requests": len(answers),
        "flops_ratio": float(np.mean(ratios[window:] or ratios)),
        "windows": window_means(ratios[window:] or ratios, window),
        "batch_size": float(np.mean([answer.served.batch_size for answer in answers])),
        "prune_temperature": float(
            np.mean([answer.served.setting.prune_temperature for answer in answers[window:] or answers])
        ),
        "accuracy": float(np.mean(outcomes)),
        "outcomes": outcomes,
    }


def _told(run: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in run.items() if name != "outcomes"}


def _judge(found: Found, plan: Plan) -> list[Verdict]:
    verdicts = []
    for mode in KEEP_MODES:
        cells = {name: cell for name, cell in found.items() if name.startswith(f"{mode},")}
        for way, bar in (("on", f"within {100 * MOST_OFF:.0f} %"), ("off", "for contrast")):
            misses = {name: _miss(cell[way], plan) for name, cell in cells.items()}
            worst = max(misses, key=lambda name: abs(misses[name]))
            held = sum(abs(miss) <= MOST_OFF for miss in misses.values())
            verdicts.append(
                Verdict(
                    f"FLOPs per request against {plan.flops_target:g}, {mode}, controller {way}",
                    f"{100 * misses[worst]:+.1f} % at worst ({worst}), {held} of {len(misses)} held",
                    bar,
                    held == len(misses) if way == "on" else None,
                )
            )
        losses = {name: cell["on_against_calibrated"] for name, cell in cells.items()}
        worst = min(losses, key=lambda name: losses[name]["difference"])
        least = losses[worst]
        kept = sum(loss["difference"] >= -MOST_LOST for loss in losses.values())
        verdicts.append(
            Verdict(
                f"accuracy against the calibrated setting, {mode}",
                f"{_points(least)} points at worst ({worst}), {kept} of {len(losses)} kept",
                f"not more than {100 * MOST_LOST:g} point lower",
                kept == len(losses),
            )
        )
    return verdicts


def _miss(run: Mapping[str, Any], plan: Plan) -> float:
    return largest_miss(run["windows"], plan.flops_target)


def _points(paired: Mapping[str, Any]) -> str:
    return f"{100 * paired['difference']:+.2f} ± {100 * paired['margin']:.2f}"


def _tables(found: Found, plan: Plan) -> list[str]:
    titles = ["keep mode", "mix", "", *(f"batch {size}" for size in plan.batch_sizes)]
    rows = []
    for mode in KEEP_MODES:
        for mix in plan.mixes:
            cells = [found[_key(mode, mix, size)] for size in plan.batch_sizes]
            for way in ("on", "off"):
                misses = [f"{100 * _miss(cell[way], plan):+.1f}" for cell in cells]
                rows.append([mode, mix, f"{way}: worst miss, %", *misses])
            for way in ("on", "off"):
                differences = [_points(cell[f"{way}_against_calibrated"]) for cell in cells]
                rows.append([mode, mix, f"{way}: accuracy, points", *differences])
            calibrated = [
                f"{100 * cell['calibrated']['accuracy']:.1f} at {cell['calibrated']['flops_ratio']:.3f}"
                for cell in cells
            ]
            rows.append([mode, mix, "calibrated: accuracy, % at flops_ratio", *calibrated])
    return markdown_table(titles, rows)


CONTROL = Claim("control", "FLOPs per request against the target", TEXT, _steps, _judge, _tables)
