"""Batch size and prune temperature: how cost and accuracy drift under one temperature, and are repaired.

Source: supplement, Table 9. Under max_keep a batch keeps what its neediest request needs, so at one
temperature larger batches spend more and answer better; a temperature of its own for every batch size undoes
that. A per_instance request spends and answers the same in whatever batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from madtp_core.pruning import MAX_KEEP, PER_INSTANCE
from madtp_core.study.bench import Bench
from madtp_core.study.cells import Cells, Found
from madtp_core.study.drawing import Curve, Panel
from madtp_core.study.figures import (
    COST,
    EMPTY,
    NEAR,
    difference,
    measured,
    paired,
    percent,
    points,
    section,
    table,
)
from madtp_core.study.variant import NONE, Variant
from madtp_core.tasks.base import PrunedModel

DENSE: Final = "dense"
ONE, OWN, CALIBRATED = "one temperature", "its own temperature", "the calibration's temperature"
_HEAD: Final = (
    "keep mode", "batch size", "temperature", "T", "flops_ratio", "off target", "{measure}",
    "against batches of {batch_size}", "holds",
)  # fmt: skip
_HOLDS: Final = 0.005  # of accuracy
_NOTE: Final = (
    "Accuracy times 100; differences are paired, sample by sample, ± half the 95 % interval, against the "
    "same keep mode at the reference batch size, which the one temperature is for. Holds: within 3 % of the "
    "wanted multiply-adds and 0.5 points of the reference."
)


@dataclass(frozen=True)
class BatchSizes:
    """flops_ratio: wanted of every batch size. reference: the one whose temperature all are tried at."""

    flops_ratio: float = 0.5
    reference: int = 16
    sizes: Sequence[int] = (1, 2, 4, 8, 16, 32)

    def measure(self, model: PrunedModel, bench: Bench, cells: Cells) -> None:
        """Measure all cells that are missing; a model without a calibration has no lookups in one.

        Raises ConfigError for a model without alignment tokens.
        """
        variant = Variant()
        dense = {"model": model.name, "temperature": DENSE, "batch_size": self.reference}
        cells.measured(dense, lambda: bench.measured(Variant(NONE).at(model, 0.0)))
        for keep_mode, size, said in self._places(model):
            place = {
                "model": model.name,
                "keep_mode": keep_mode,
                "batch_size": size,
                "temperature": said,
                "flops_ratio": self.flops_ratio,
            }

            def found(keep_mode: str = keep_mode, size: int = size, said: str = said) -> Found:
                if said == CALIBRATED:
                    assert model.calibration is not None
                    temperature = model.calibration.temperature_for(self.flops_ratio, size, keep_mode)
                else:
                    of = self.reference if said == ONE else size
                    temperature = searched(model, bench, cells, self.flops_ratio, keep_mode, of)
                tuned = variant.at(model, temperature)
                return bench.measured(tuned, keep_mode=keep_mode, batch_size=size)

            cells.measured(place, found)

    def _places(self, model: PrunedModel) -> Iterator[tuple[str, int, str]]:
        """Keep mode, batch size, and whose temperature; the reference first."""
        sizes = list(dict.fromkeys([self.reference, *self.sizes]))
        table = model.calibration
        modes = set() if table is None else {row.keep_mode for row in table.rows}
        for keep_mode in (MAX_KEEP, PER_INSTANCE):
            for size in sizes:
                yield keep_mode, size, ONE
                if keep_mode == MAX_KEEP and size != self.reference:
                    yield keep_mode, size, OWN
                if keep_mode in modes and (keep_mode == MAX_KEEP or size == self.reference):
                    yield keep_mode, size, CALIBRATED


def searched(
    model: PrunedModel, bench: Bench, cells: Cells, flops_ratio: float, keep_mode: str, batch_size: int
) -> float:
    """The prune temperature that spends flops_ratio in batches of a size, searched once."""
    place = {
        "model": model.name,
        "searched": keep_mode,
        "batch_size": batch_size,
        "flops_ratio": flops_ratio,
    }

    def found() -> Found:
        tuned = bench.tuned(model, Variant(), flops_ratio, keep_mode=keep_mode, batch_size=batch_size)
        return {"setting": tuned.setting}

    return float(cells.measured(place, found)["setting"])


def tables(cells: Cells) -> str:
    """Markdown: a section a model, a row a measurement."""
    parts = []
    for model, about in cells.models.items():
        head = [part.format(**about) for part in _HEAD]
        rows = []
        for _, found in cells.of(model=model, temperature=DENSE):
            rows.append([DENSE, EMPTY, EMPTY, "0", "1.000", EMPTY, points(found["accuracy"]), EMPTY, EMPTY])
        for keep_mode in (MAX_KEEP, PER_INSTANCE):
            for said in (ONE, OWN, CALIBRATED):
                rows += [
                    _row(cells, place, found) for place, found in _by_size(cells, model, keep_mode, said)
                ]
        parts.append(section(model, about, table(head, rows)))
    return "\n".join(parts) + f"\n{_NOTE}\n"


def panels(cells: Cells) -> list[Panel]:
    """Cost and accuracy over batch size, side by side for every model."""
    drawn = []
    for model, about in cells.models.items():
        curves: dict[str, list[Curve]] = {"flops_ratio": [], "accuracy": []}
        for colour, (keep_mode, said) in enumerate(
            [(MAX_KEEP, ONE), (MAX_KEEP, OWN), (MAX_KEEP, CALIBRATED), (PER_INSTANCE, ONE)]
        ):
            found = _by_size(cells, model, keep_mode, said)
            for name, into in curves.items():
                dots = [
                    (float(place["batch_size"]), (100 if name == "accuracy" else 1) * one[name])
                    for place, one in found
                    if one[name] is not None
                ]
                if dots:
                    into.append(Curve(f"{keep_mode}, {said}", dots, colour=colour))
        level = percent([found for _, found in cells.of(model=model, temperature=DENSE)])
        wanted, sizes = about["flops_ratio"], _sizes(cells, model)
        cost, answers = curves["flops_ratio"], curves["accuracy"]
        drawn += [
            Panel(model, "batch size", COST, cost, level=wanted, ticks=sizes),
            Panel(model, "batch size", measured(about), answers, level=level, ticks=sizes),
        ]
    return drawn


def _sizes(cells: Cells, model: str) -> list[int]:
    return sorted({place["batch_size"] for place, _ in cells.of(model=model)})


def _by_size(cells: Cells, model: str, keep_mode: str, said: str) -> list[tuple[Any, Found]]:
    found = cells.of(model=model, keep_mode=keep_mode, temperature=said)
    return sorted(found, key=lambda cell: cell[0]["batch_size"])


def _row(cells: Cells, place: Any, found: Found) -> list[str]:
    wanted = place["flops_ratio"]
    off = found["flops_ratio"] / wanted - 1
    reference = _reference(cells, place)
    against, holds = EMPTY, EMPTY
    if reference is not None and place != reference[0]:
        against = difference([reference[1]], [found])
        pair = paired([reference[1]], [found])
        is_close = pair is None or abs(pair.difference) <= _HOLDS
        holds = "yes" if abs(off) <= NEAR and is_close else "no"
    return [
        place["keep_mode"], str(place["batch_size"]), place["temperature"], f"{found['setting']:.3g}",
        f"{found['flops_ratio']:.3f}", f"{100 * off:+.1f} %", points(found["accuracy"]), against, holds,
    ]  # fmt: skip


def _reference(cells: Cells, place: Any) -> tuple[Any, Found] | None:
    size = cells.models[place["model"]]["batch_size"]
    wanted = {
        "model": place["model"],
        "keep_mode": place["keep_mode"],
        "batch_size": size,
        "temperature": ONE,
    }
    return next(cells.of(**wanted), None)
