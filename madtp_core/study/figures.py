"""Figures of studies in words: accuracies over seeds, paired differences, Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from madtp_core.evaluate import Paired, compare
from madtp_core.study.cells import Found

NEAR: Final = 0.03  # of a flops_ratio: what is farther apart is not compared as equal
EMPTY: Final = "–"
COST: Final = "multiply-adds / dense"
COST_WIDTH: Final = 0.2  # what an axis of it spans at the least
_TWO_SIDED_95: Final = 1.96


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def section(title: str, about: Any, body: str) -> str:
    """A heading, what was measured on and with, and the table."""
    told = "; ".join(f"{name.replace('_', ' ')}: {_told(value)}" for name, value in about.items())
    return f"### {title}\n\n{told}\n\n{body}\n"


def points(value: float | None) -> str:
    """An accuracy, or another measure, times 100."""
    return EMPTY if value is None else f"{100 * value:.2f}"


def percent(runs: Sequence[Found]) -> float | None:
    """The mean accuracy of runs times 100; None without runs or labels."""
    mean = mean_accuracy(runs)
    return None if mean is None else 100 * mean


def measured(about: Any) -> str:
    """What a model's accuracy is, as an axis says it."""
    return f"{about.get('measure', 'accuracy')}, times 100"


def mean_accuracy(runs: Sequence[Found]) -> float | None:
    """The mean over the runs of several seeds; None without labels."""
    known = [run["accuracy"] for run in runs if run["accuracy"] is not None]
    return float(np.mean(known)) if known else None


def spread(runs: Sequence[Found]) -> float:
    """The standard deviation of accuracy over seeds, 0 for one."""
    known = [run["accuracy"] for run in runs if run["accuracy"] is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else 0.0


def with_spread(runs: Sequence[Found]) -> str:
    """Accuracy in the mean over seeds, with its standard deviation where there are several."""
    mean = points(mean_accuracy(runs))
    return f"{mean} ± {100 * spread(runs):.2f}" if len(runs) > 1 and mean != EMPTY else mean


def mean_ratio(runs: Sequence[Found]) -> float:
    """The mean flops_ratio of several runs."""
    return float(np.mean([run["flops_ratio"] for run in runs]))


def ratio(runs: Sequence[Found], wanted: float) -> str:
    """The measured flops_ratio, marked where it is not the wanted one."""
    found = mean_ratio(runs)
    return f"{found:.3f}" if is_near(found, wanted) else f"{found:.3f} (!)"


def is_near(found: float, wanted: float) -> bool:
    """Whether two flops_ratios count as equal."""
    return abs(found - wanted) <= NEAR * wanted


def outcomes(runs: Sequence[Found]) -> list[float] | None:
    """Every sample's outcome in the mean over the runs; None without labels."""
    if not runs or any("outcomes" not in run for run in runs):
        return None
    means: list[float] = np.mean([run["outcomes"] for run in runs], axis=0).tolist()
    return means


def paired(first: Sequence[Found], second: Sequence[Found]) -> Paired | None:
    """Second minus first, sample by sample, each in the mean over its seeds; None without labels."""
    before, after = outcomes(first), outcomes(second)
    return None if before is None or after is None else compare(before, after)


def difference(first: Sequence[Found], second: Sequence[Found]) -> str:
    """Second minus first in points with the half width of its 95 % interval, then seed by seed."""
    found = paired(first, second)
    if found is None:
        return EMPTY
    told = f"{100 * found.difference:+.2f} ± {100 * found.margin:.2f}"
    if len(second) > 1 and len(first) in (1, len(second)):
        earlier = first if len(first) > 1 else list(first) * len(second)
        each = [100 * (b["accuracy"] - a["accuracy"]) for a, b in zip(earlier, second, strict=True)]
        told += f" ({', '.join(f'{one:+.1f}' for one in each)})"
    return told


def margin(run: Found) -> float:
    """Half the width of the 95 % interval of one run's accuracy."""
    values = run.get("outcomes", ())
    return float(_TWO_SIDED_95 * np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_told(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
