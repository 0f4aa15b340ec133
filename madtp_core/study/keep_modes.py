"""Models in both keep modes: whether one trained on max_keep alone also answers per_instance.

Per-instance pruning is this project's own; the paper trains and serves max_keep. Compared are given
checkpoints, and models fine-tuned under one budget on max_keep steps alone or on steps of both modes in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from madtp_core.pruning import KEEP_MODES, MAX_KEEP, PER_INSTANCE
from madtp_core.study.bench import Bench
from madtp_core.study.cells import Cells, Found
from madtp_core.study.drawing import Curve, Panel
from madtp_core.study.figures import (
    COST,
    COST_WIDTH,
    EMPTY,
    difference,
    mean_ratio,
    measured,
    percent,
    ratio,
    section,
    spread,
    table,
    with_spread,
)
from madtp_core.study.fine_tune import FineTuning
from madtp_core.study.variant import NONE, Variant
from madtp_core.tasks.base import PrunedModel

DENSE: Final = "dense"
GIVEN, ONE_MODE, BOTH = "as given", "fine-tuned on max_keep", "fine-tuned on both in turn"
_TRAINED_ON: Final = {ONE_MODE: (MAX_KEEP,), BOTH: (MAX_KEEP, PER_INSTANCE)}
_HEAD: Final = (
    "flops_ratio wanted", "model", "served", "{measure}", "flops_ratio", "against dense",
    "per_instance − max_keep", "both − max_keep alone",
)  # fmt: skip
_NOTE: Final = (
    "Accuracy times 100, ± standard deviation over seeds. Differences: paired, ± half the 95 % interval over "
    "samples, then seed by seed. (!): more than 3 % off the wanted multiply-adds, which are out of reach or "
    "were missed by the search; no difference of such a row is at equal cost."
)


@dataclass(frozen=True, eq=False)
class KeepModes:
    """fine_tuning: None for the given checkpoint alone."""

    ratios: Sequence[float]
    seeds: Sequence[int] = (0,)
    fine_tuning: FineTuning | None = None

    def measure(self, model: PrunedModel, bench: Bench, cells: Cells) -> None:
        """Measure all cells that are missing; a model without alignment tokens only as fine-tuned."""
        cells.measured(
            {"model": model.name, "trained": DENSE}, lambda: bench.measured(Variant(NONE).at(model, 0.0))
        )
        if model.checkpoint.alignment is not None:
            self._served(model, bench, cells, GIVEN, None)
        if self.fine_tuning is not None:
            for seed in self.seeds:
                for trained in _TRAINED_ON:
                    self._served(model, bench, cells, trained, seed)

    def _served(self, model: PrunedModel, bench: Bench, cells: Cells, trained: str, seed: int | None) -> None:
        for wanted in self.ratios:
            for keep_mode in KEEP_MODES:
                place = {
                    "model": model.name,
                    "trained": trained,
                    "seed": seed,
                    "flops_ratio": wanted,
                    "keep_mode": keep_mode,
                }

                def found(wanted: float = wanted, keep_mode: str = keep_mode) -> Found:
                    of = model
                    if seed is not None:
                        assert self.fine_tuning is not None
                        of = self.fine_tuning.model(Variant(), wanted, seed, _TRAINED_ON[trained])
                    tuned = bench.tuned(of, Variant(), wanted, keep_mode=keep_mode)
                    return bench.measured(tuned, keep_mode=keep_mode)

                cells.measured(place, found)


def tables(cells: Cells) -> str:
    """Markdown: a section a model, a row a training, ratio and keep mode."""
    parts = []
    for model, about in cells.models.items():
        dense = [found for _, found in cells.of(model=model, trained=DENSE)]
        rows = [[EMPTY, DENSE, DENSE, with_spread(dense), "1.000", EMPTY, EMPTY, EMPTY]] if dense else []
        for wanted in _ratios(cells, model):
            for trained in (GIVEN, *_TRAINED_ON):
                modes = {mode: _runs(cells, model, trained, wanted, mode) for mode in KEEP_MODES}
                rows += [
                    _row(cells, model, trained, wanted, mode, own, dense, modes)
                    for mode, own in modes.items()
                    if own
                ]
        head = [part.format(**about) for part in _HEAD]
        parts.append(section(model, about, table(head, rows)))
    return "\n".join(parts) + f"\n{_NOTE}\n"


def panels(cells: Cells) -> list[Panel]:
    """Accuracy over cost of every training and keep mode, a panel a model."""
    drawn = []
    for model, about in cells.models.items():
        curves = []
        for colour, trained in enumerate((GIVEN, *_TRAINED_ON)):
            for mode in KEEP_MODES:
                found = [
                    own
                    for wanted in _ratios(cells, model)
                    if (own := _runs(cells, model, trained, wanted, mode))
                ]
                known = [(own, mean) for own in found if (mean := percent(own)) is not None]
                if known:
                    dots = [(mean_ratio(own), mean) for own, mean in known]
                    spreads = [100 * spread(own) for own, _ in known]
                    is_dashed = mode == PER_INSTANCE
                    curves.append(Curve(f"{trained}, {mode}", dots, spreads, colour, is_dashed))
        level = percent([found for _, found in cells.of(model=model, trained=DENSE)])
        drawn.append(Panel(model, COST, measured(about), curves, level=level, least_width=COST_WIDTH))
    return drawn


def _ratios(cells: Cells, model: str) -> list[float]:
    return sorted(value for value in cells.values("flops_ratio", model=model) if value is not None)


def _runs(cells: Cells, model: str, trained: str, wanted: float, mode: str) -> list[Found]:
    found = cells.of(model=model, trained=trained, flops_ratio=wanted, keep_mode=mode)
    return [cell for _, cell in sorted(found, key=lambda one: one[0]["seed"] or 0)]


def _row(
    cells: Cells,
    model: str,
    trained: str,
    wanted: float,
    mode: str,
    own: Sequence[Found],
    dense: Sequence[Found],
    modes: dict[str, list[Found]],
) -> list[str]:
    alone = _runs(cells, model, ONE_MODE, wanted, mode)
    between = mode == PER_INSTANCE and modes[MAX_KEEP]
    return [
        f"{wanted:g}", trained, mode, with_spread(own), ratio(own, wanted),
        difference(dense, own) if dense else EMPTY,
        difference(modes[MAX_KEEP], own) if between else EMPTY,
        difference(alone, own) if trained == BOTH and alone else EMPTY,
    ]  # fmt: skip
