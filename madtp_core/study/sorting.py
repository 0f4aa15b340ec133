"""Requests sorted by difficulty or not, at one prune temperature: what it does to cost and accuracy.

Source: supplement, Table 10, which sorts by difficulty before batching. Here also by what can be predicted of
difficulty before a request runs, and within windows of 8 batches as a service can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.pruning import MAX_KEEP
from madtp_core.rank_correlation import spearman
from madtp_core.study.batch_size import searched
from madtp_core.study.batches import WINDOW_BATCHES
from madtp_core.study.bench import Bench
from madtp_core.study.cells import Cells, Found
from madtp_core.study.drawing import Curve, Panel
from madtp_core.study.figures import COST, EMPTY, difference, measured, paired, points, section, table
from madtp_core.study.observe import observe
from madtp_core.study.predictors import held_out
from madtp_core.study.variant import Variant
from madtp_core.tasks.base import PrunedModel

FIFO: Final = "as they come"
NEED, PREDICTED = "need", "predicted need"
_ASIDE: Final = 0.06  # octaves between the whiskers of a batch size
ORDERS: Final = (
    FIFO, f"sorted by {NEED}", f"sorted by {PREDICTED}",
    f"by {NEED}, in windows", f"by {PREDICTED}, in windows",
)  # fmt: skip
_HEAD: Final = (
    "batch size", "order", "flops_ratio", "needed / kept", "{measure}", "against as they come", "sign",
)  # fmt: skip
_NOTE: Final = (
    "Accuracy times 100; differences are paired, sample by sample, ± half the 95 % interval. The sign is "
    "that of the difference, in brackets where the interval holds 0. Windows: of 8 batches, in order of "
    "arrival. Sorting lowers the cost at one temperature, so a lower accuracy is the price of fewer "
    "multiply-adds."
)


@dataclass(frozen=True)
class Sorting:
    """flops_ratio: what batches of the reference size spend as they come; its temperature is everyone's."""

    flops_ratio: float = 0.5
    reference: int = 16
    sizes: Sequence[int] = (1, 4, 16, 32)

    def measure(self, model: PrunedModel, bench: Bench, cells: Cells) -> None:
        """Measure all cells that are missing; raises ConfigError for a model without alignment tokens."""
        temperature = searched(model, bench, cells, self.flops_ratio, MAX_KEEP, self.reference)
        tuned = Variant().at(model, temperature)
        keys = self._keys(model, bench, cells, temperature)
        for size in self.sizes:
            for order in ORDERS if size > 1 else ORDERS[:2]:  # alone nobody has batch mates
                rows = ordered(order, keys, len(bench.samples), size)

                def found(rows: Sequence[int] = rows, size: int = size) -> Found:
                    return bench.measured(tuned, batch_size=size, order=rows)

                cells.measured({"model": model.name, "batch_size": size, "order": order}, found)

    def _keys(
        self, model: PrunedModel, bench: Bench, cells: Cells, temperature: float
    ) -> dict[str, NDArray[np.float64]]:
        """Every request's own need, and what cheap figures say of it, fitted on other requests."""

        def found() -> Found:
            seen = observe(model, bench.samples, temperature, bench.on_batch)
            need = np.array([one.need for one in seen])
            predicted = held_out(np.stack([one.features for one in seen]), need)
            return {
                "need": need.round(5).tolist(),
                "predicted": predicted.round(5).tolist(),
                "spearman": spearman(predicted, need),
            }

        known = cells.measured({"model": model.name, "what": "needs"}, found)
        return {NEED: np.array(known["need"]), PREDICTED: np.array(known["predicted"])}


def ordered(order: str, keys: dict[str, NDArray[np.float64]], count: int, batch_size: int) -> list[int]:
    """The numbers of the requests in an order; what needs little comes first."""
    rows = range(count)
    if order == FIFO:
        return list(rows)
    key = keys[PREDICTED if PREDICTED in order else NEED]
    window = WINDOW_BATCHES * batch_size if order.endswith("windows") else count
    starts = range(0, count, window)
    return [row for start in starts for row in sorted(rows[start : start + window], key=lambda row: key[row])]


def tables(cells: Cells) -> str:
    """Markdown: a section a model, a row an order and batch size."""
    parts = []
    for model, about in cells.models.items():
        head, rows = [part.format(**about) for part in _HEAD], []
        for size in sorted({place["batch_size"] for place, _ in cells.of(model=model) if "order" in place}):
            of_size = {
                place["order"]: found
                for place, found in cells.of(model=model, batch_size=size)
                if "order" in place
            }
            rows += [_row(size, order, found, of_size.get(FIFO)) for order, found in of_size.items()]
        parts.append(section(model, {**about, **_correlation(cells, model)}, table(head, rows)))
    return "\n".join(parts) + f"\n{_NOTE}\n"


def panels(cells: Cells) -> list[Panel]:
    """Cost, and what sorting does to accuracy, over batch size, side by side for every model."""
    drawn = []
    for model, about in cells.models.items():
        costs, changes = [], []
        first = {place["batch_size"]: found for place, found in cells.of(model=model, order=FIFO)}
        for colour, order in enumerate(ORDERS):
            found = sorted(cells.of(model=model, order=order), key=lambda cell: cell[0]["batch_size"])
            spent = [(float(place["batch_size"]), one["flops_ratio"]) for place, one in found]
            costs.append(Curve(order, spent, colour=colour))
            dots, spreads = [], []
            for place, one in found:
                pair = paired([first[place["batch_size"]]], [one]) if order != FIFO else None
                if pair is not None:
                    aside = 2 ** (_ASIDE * (colour - len(ORDERS) / 2))
                    dots.append((place["batch_size"] * aside, 100 * pair.difference))
                    spreads.append(100 * pair.margin)
            if dots:
                changes.append(Curve(order, dots, spreads, colour))
        sizes = sorted(first)
        change = f"{measured(about)}, against as they come"
        drawn += [
            Panel(model, "batch size", COST, costs, ticks=sizes),
            Panel(model, "batch size", change, changes, level=0.0, ticks=sizes),
        ]
    return drawn


def _correlation(cells: Cells, model: str) -> dict[str, str]:
    found = [f"{found['spearman']:.2f}" for _, found in cells.of(model=model, what="needs")]
    return {"rank correlation of predicted need": found[0]} if found else {}


def _row(size: int, order: str, found: Found, first: Found | None) -> list[str]:
    against, sign = EMPTY, EMPTY
    if first is not None and order != FIFO and (pair := paired([first], [found])) is not None:
        against = difference([first], [found])
        sign = "0" if pair.difference == 0 else "+" if pair.difference > 0 else "−"
        sign = f"({sign})" if 0 < abs(pair.difference) <= pair.margin else sign
    return [
        str(size), order, f"{found['flops_ratio']:.3f}", f"{found['keep_efficiency']:.3f}",
        points(found["accuracy"]), against, sign,
    ]  # fmt: skip
