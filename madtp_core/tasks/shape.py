"""What a prune temperature costs requests of another shape than it was calibrated on.

An image against two texts and one against fifty spend very different shares at one temperature, because an
image loses most of its tokens and a text hardly any. How many each block keeps was measured by kind of
sequence; the cost model says what that comes to for as many of each kind as a request has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from madtp_core.calibration import NATURAL, Calibration, Sequences
from madtp_core.flops import BranchTrace, Scoring
from madtp_core.pruning import TEXT, VISION
from madtp_core.pruning.schedule import scheduled_trace
from madtp_core.tasks.cost import CostModel


def calibration_of_shape(
    calibration: Calibration,
    costs: CostModel,
    branches: Collection[str],
    shape: Mapping[str, int],
    keep_mode: str,
) -> Calibration:
    """The natural mix's temperatures in a keep mode, with the flops_ratios that requests of a shape spend.

    shape: how many sequences of each kind (`vision`, `text`, `match`) a request has. branches: the pruned
    ones. Of a request as it was measured, every ratio is as measured; of others it is that ratio x what the
    cost model says of the two. Rows that do not tell their sequences stay as they are.
    """
    scoring = {branch: costs.alignment if branch in branches else None for branch in (VISION, TEXT)}
    expected = _Expected(costs, scoring)
    rows = []
    for row in calibration.rows:
        if (row.keep_mode, row.mix) != (keep_mode, NATURAL):
            continue
        relative = 1.0
        if row.sequences:
            measured = {kind: max(1, round(each.count)) for kind, each in row.sequences.items()}
            relative = expected(row.sequences, shape) / expected(row.sequences, measured)
        rows.append(replace(row, flops_ratio=row.flops_ratio * relative))
    return replace(calibration, rows=tuple(rows))


class _Expected:
    """Spent over dense of a request whose sequences keep what was measured in the mean."""

    def __init__(self, costs: CostModel, scoring: Mapping[str, Scoring | None]) -> None:
        self._costs = costs
        self._scoring = scoring
        self._dense: dict[tuple[tuple[int, int], ...], int] = {}  # alike for all temperatures

    def __call__(self, sequences: Mapping[str, Sequences], counts: Mapping[str, int]) -> float:
        traces = {kind: (_mean_trace(each),) * counts.get(kind, 0) for kind, each in sequences.items()}
        passes: Sequence[tuple[int, int]] = ()  # no model that decodes has requests of several shapes
        lengths = tuple((len(each), each[0].dense if each else 0) for each in traces.values())
        if lengths not in self._dense:
            self._dense[lengths] = self._costs.dense_macs(traces, passes)
        return self._costs.macs(traces, passes, self._scoring) / self._dense[lengths]


def _mean_trace(sequences: Sequences) -> BranchTrace:
    return scheduled_trace(round(sequences.tokens), [max(1, round(kept)) for kept in sequences.kept])
