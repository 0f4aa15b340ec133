"""What a prune temperature costs requests of another shape than it was calibrated on.

An image against two texts and one against fifty spend very different shares at one temperature, because an
image loses most of its tokens and a text hardly any. How many each block keeps was measured by kind of
sequence; the cost model says what that comes to for as many of each kind as a request has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from madtp_core.calibration import Calibration, CalibrationRow, Sequences
from madtp_core.flops import BranchTrace
from madtp_core.pruning import TEXT, VISION
from madtp_core.pruning.schedule import scheduled_trace
from madtp_core.tasks.cost import CostModel


def calibration_of_shape(
    calibration: Calibration, costs: CostModel, branches: Collection[str], shape: Mapping[str, int]
) -> Calibration:
    """The same temperatures with the flops_ratios that requests of this shape spend.

    shape: how many sequences of each kind (`vision`, `text`, `match`) a request has. branches: the pruned
    ones. Of a request as it was measured, every ratio is as measured; of others it is that ratio x what the
    cost model says of the two. Rows that do not tell their sequences stay as they are.
    """
    rows = tuple(
        replace(row, flops_ratio=row.flops_ratio * _relative(row, costs, branches, shape))
        if row.sequences
        else row
        for row in calibration.rows
    )
    return replace(calibration, rows=rows)


def _relative(
    row: CalibrationRow, costs: CostModel, branches: Collection[str], shape: Mapping[str, int]
) -> float:
    """The expected ratio of a shape over that of the shape that was measured."""
    measured = {kind: max(1, round(sequences.count)) for kind, sequences in row.sequences.items()}
    return _expected(row, costs, branches, shape) / _expected(row, costs, branches, measured)


def _expected(
    row: CalibrationRow, costs: CostModel, branches: Collection[str], counts: Mapping[str, int]
) -> float:
    """Spent over dense of a request with so many sequences that keep what was measured in the mean."""
    traces = {
        kind: (_mean_trace(sequences),) * counts.get(kind, 0) for kind, sequences in row.sequences.items()
    }
    passes: Sequence[tuple[int, int]] = ()  # only models that decode nothing have requests of several shapes
    scoring = {branch: costs.alignment if branch in branches else None for branch in (VISION, TEXT)}
    return costs.macs(traces, passes, scoring) / costs.dense_macs(traces, passes)


def _mean_trace(sequences: Sequences) -> BranchTrace:
    return scheduled_trace(round(sequences.tokens), [max(1, round(kept)) for kept in sequences.kept])
