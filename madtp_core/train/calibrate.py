"""Calibration: what each prune temperature costs and how well it answers, through the served path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tqdm import tqdm

from madtp_core.calibration import Calibration, CalibrationRow
from madtp_core.errors import ConfigError
from madtp_core.evaluate import Sample, evaluate
from madtp_core.pruning import KEEP_MODES, MAX_KEEP, PER_INSTANCE
from madtp_core.pruning.temperature import temperature_between
from madtp_core.tasks.base import PrunedModel
from madtp_core.train.ledger import Ledger, place

WANTED_RATIOS: Final = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32)
_TOLERANCE: Final = 0.012  # of a ratio: lookups between points must hold their target within 3 %
_REFINEMENTS: Final = 5  # measurements for a wanted ratio
_STRIDE: Final = 8.0  # between temperatures on the way to the ends of what can be reached
_SATURATED: Final = 0.003  # a stride that changes the ratio by less has reached the end
_LEVEL_STRIDES: Final = 4
_BOUNDS: Final = (1e-5, 1e5)
_PACKED_BATCH: Final = 16  # of per_instance, whose requests spend the same in any batch


def calibrate(
    model: PrunedModel,
    mixes: Mapping[str, Sequence[Sample]],
    *,
    keep_modes: Sequence[str] = KEEP_MODES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    wanted: Sequence[float] = WANTED_RATIOS,
    ledger: Ledger | None = None,
    progress: bool = False,
) -> Calibration:
    """Measure each mix of samples in each keep mode and batch size, at temperatures near all wanted ratios.

    Temperatures are searched for, cell by cell, so that every wanted flops_ratio that can be reached has a
    point within 0.012 and both ends of what can be reached are in the table. per_instance is measured once a
    mix, its rows stand at batch size 1. ledger: keeps every finished row, and repeats none that it holds.
    Raises ConfigError for a model without a prune temperature.
    """
    if model.pruning is None or model.pruning.is_scheduled:
        raise ConfigError(f"{model.name} has no prune temperature to calibrate")
    ledger = ledger or Ledger()
    sizes = {MAX_KEEP: tuple(batch_sizes), PER_INSTANCE: (1,)}
    cells = [(mode, size, mix) for mix in mixes for mode in keep_modes for size in sizes[mode]]
    dense_accuracy, dense_ratio = {}, 1.0
    with tqdm(total=len(cells), desc="calibrate", unit="cell", disable=not progress) as bar:
        for mix, samples in mixes.items():
            kept = list(samples)  # drawn and decoded once
            bench = _Bench(model, kept, mix, ledger, lambda row: bar.set_postfix_str(_said(row)))
            dense = bench.row(MAX_KEEP, _PACKED_BATCH, 0.0)
            dense_ratio = dense.flops_ratio
            if dense.accuracy is not None:
                dense_accuracy[mix] = dense.accuracy
            for mode, size in ((mode, size) for mode, size, of in cells if of == mix):
                search(bench.measure(mode, size), wanted, model.pruning.prune_temperature or 1.0)
                bar.update()
    rows = [row for row in ledger.rows if row.prune_temperature > 0]
    return Calibration(tuple(sorted(rows, key=place)), dense_accuracy, dense_ratio)


def search(measure: Callable[[float], float], wanted: Sequence[float], start: float) -> None:
    """Measure temperatures from `start` on until every wanted ratio has one near it, or proves out of reach.

    measure: T -> flops_ratio, falling or level in T up to noise. First strides to both ends, as far as wanted
    or until nothing changes; then bisection between the two nearest points of each ratio without one.
    """
    points = {start: measure(start)}
    for factor in (_STRIDE, 1 / _STRIDE):
        temperature, level = start, 0
        while level < _LEVEL_STRIDES and _BOUNDS[0] < temperature * factor < _BOUNDS[1]:
            before = points[temperature]
            if before < min(wanted) if factor > 1 else before > max(wanted):
                break
            temperature *= factor
            points[temperature] = measure(temperature)
            is_level = abs(points[temperature] - before) < _SATURATED
            level += is_level
            if is_level and abs(points[temperature] - points[start]) >= _SATURATED:
                break  # behind the slope; before it, a start far off is given a few strides to find one

    for ratio in wanted:
        for _ in range(_REFINEMENTS):
            between = _between_neighbours(points, ratio)
            if between is None:
                break
            points[between] = measure(between)


def _between_neighbours(points: Mapping[float, float], ratio: float) -> float | None:
    """The temperature that interpolation says spends the ratio; None where a point is near or none around."""
    above = [temperature for temperature, found in points.items() if found >= ratio]
    below = [temperature for temperature, found in points.items() if found < ratio]
    if not above or not below or max(above) >= min(below):
        return None
    low, high = max(above), min(below)
    if min(abs(found - ratio) for found in points.values()) <= _TOLERANCE:
        return None
    return temperature_between((low, points[low]), (high, points[high]), ratio)


@dataclass(frozen=True)
class _Bench:
    """One model and one mix of samples, measured as often as asked, each setting once."""

    model: PrunedModel
    samples: Sequence[Sample]
    mix: str
    ledger: Ledger
    on_row: Callable[[CalibrationRow], None]

    def measure(self, keep_mode: str, batch_size: int) -> Callable[[float], float]:
        """T -> flops_ratio."""
        return lambda temperature: self.row(keep_mode, batch_size, temperature).flops_ratio

    def row(self, keep_mode: str, batch_size: int, prune_temperature: float) -> CalibrationRow:
        """The measurement, made now or before."""
        row = self.ledger.find(keep_mode, batch_size, self.mix, prune_temperature)
        if row is None:
            result = evaluate(
                self.model,
                self.samples,
                batch_size=batch_size if keep_mode == MAX_KEEP else _PACKED_BATCH,
                prune_temperature=prune_temperature,
                keep_mode=keep_mode,
            )
            row = CalibrationRow(
                keep_mode,
                batch_size,
                prune_temperature,
                result.flops_ratio(),
                result.mean(),
                len(self.samples),
                self.mix,
                result.sequences(),
            )
            self.ledger.add(row)
        self.on_row(row)
        return row


def _said(row: CalibrationRow) -> str:
    accuracy = "" if row.accuracy is None else f", accuracy {row.accuracy:.3f}"
    return (
        f"{row.mix} {row.keep_mode} x{row.batch_size} T={row.prune_temperature:.3g}: "
        f"flops_ratio {row.flops_ratio:.3f}{accuracy}"
    )
