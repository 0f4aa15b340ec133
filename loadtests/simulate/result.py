"""What came out of a simulated run, in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.errors import LoadTestError
from loadtests.simulate.fleet import BatchLog, Run
from loadtests.simulate.setup import Setup
from loadtests.simulate.workload import Array, Workload

WINDOW_REQUESTS = 512  # over which a target is held
WARM_UP_SHARE = 0.25  # of the time, left out


@dataclass(frozen=True)
class Result:
    """Latencies are in seconds; shed, expired and busy are shares, of the requests offered and of the time.

    off_rms, off_most: root mean square and largest of mean flops_ratio / target - 1 over all windows of 512
    requests answered in a row, None where fewer were. prune_temperature: mean over requests; at equal
    flops_ratio a lower one has pruned less of what was needed. least_target: the lowest target in force,
    degraded or not.
    """

    label: str
    needed_per_kept: float
    flops_ratio: float
    off_rms: float | None
    off_most: float | None
    prune_temperature: float
    least_target: float
    batch_size: float
    offered_per_s: float
    answered_per_s: float
    p50_s: float
    p99_s: float
    p999_s: float
    shed: float
    expired: float
    busy: float


def summarise(setup: Setup, workload: Workload, run: Run) -> Result:
    """Counts requests that arrived after the warm-up, whenever they left, and batches that ended in it.

    Raises LoadTestError where there is neither.
    """
    begin_s = WARM_UP_SHARE * setup.duration_s
    batches = [batch for batch in run.batches if begin_s <= batch.finished_s <= setup.duration_s]
    first = int(np.searchsorted(workload.arrival_s, begin_s))
    latency_s = run.latency_s[first:]
    answered = latency_s[np.isfinite(latency_s)]
    if not batches or not len(answered):
        raise LoadTestError(f"{setup.label}: nothing was answered in {setup.duration_s:g} s: make it longer")
    offered = max(1, len(latency_s))
    sizes = np.array([batch.size for batch in batches])
    p50_s, p99_s, p999_s = np.quantile(answered, (0.5, 0.99, 0.999))
    measured_s = setup.duration_s - begin_s
    off = _off_target(_flops_ratios(batches), setup.target)
    return Result(
        label=setup.label,
        needed_per_kept=sum(b.outcome.needed for b in batches) / sum(b.outcome.kept for b in batches),
        flops_ratio=float(np.mean(_flops_ratios(batches))),
        off_rms=None if off is None else float(np.sqrt(np.mean(off**2))),
        off_most=None if off is None else float(np.abs(off).max()),
        prune_temperature=float(np.average([b.prune_temperature for b in batches], weights=sizes)),
        least_target=min(batch.target for batch in batches),
        batch_size=float(sizes.mean()),
        offered_per_s=len(latency_s) / measured_s,
        answered_per_s=float(sizes.sum()) / measured_s,
        p50_s=float(p50_s),
        p99_s=float(p99_s),
        p999_s=float(p999_s),
        shed=sum(key >= first for key in run.shed) / offered,
        expired=sum(key >= first for key in run.expired) / offered,
        busy=_busy_s(run.batches, setup.duration_s) / (setup.duration_s * setup.replicas),
    )


def _busy_s(batches: Sequence[BatchLog], end_s: float) -> float:
    return sum(max(0.0, min(batch.finished_s, end_s) - batch.began_s) for batch in batches)


def _flops_ratios(batches: Sequence[BatchLog]) -> list[float]:
    return [ratio for batch in batches for ratio in batch.outcome.flops_ratios]


def _off_target(flops_ratios: Sequence[float], target: float) -> Array | None:
    if len(flops_ratios) < WINDOW_REQUESTS:
        return None
    sums = np.concatenate([[0.0], np.cumsum(flops_ratios)])
    means = (sums[WINDOW_REQUESTS:] - sums[:-WINDOW_REQUESTS]) / WINDOW_REQUESTS
    off: Array = means / target - 1
    return off
