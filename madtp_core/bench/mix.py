"""Batches in which a few rows need far more tokens than the others: packed execution against max-keep."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from madtp_core.bench.measure import interleaved_seconds, peak_growth_mib
from madtp_core.bench.schedule import geometric_schedule, scheduled_trace
from madtp_core.bench.tower import VisionTower, assert_kept
from madtp_core.encoder import Encoded
from madtp_core.flops import BranchTrace, vision_macs
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE

DENSE = "dense_sdpa"
_SPREAD = 0.5  # of the easy rows' needs: from three to five quarters of their mean
COLUMNS = {
    "variant": "{}",
    "dtype": "{}",
    "batch": "{}",
    "hard_rows": "{}",
    "needed_per_kept": "{:.3f}",
    "flops_ratio": "{:.3f}",
    "median_ms": "{:.1f}",
    "speedup": "{:.2f}",
    "realised": "{:.3f}",
    "flops_to_max_keep": "{:.3f}",
    "time_to_max_keep": "{:.3f}",
    "peak_memory_mib": "{:.0f}",
}


@dataclass(frozen=True)
class Mix:
    """A batch's kinds of rows: hard_share of them are hard, at least one.

    hard_ratio, easy_ratio: what a hard row, and another one on average, needs of the dense multiply-adds.
    """

    hard_share: float
    easy_ratio: float
    hard_ratio: float

    def hard_rows(self, batch: int) -> int:
        """How many rows of a batch are hard."""
        return max(1, round(self.hard_share * batch))

    def schedules(self, tower: VisionTower, batch: int) -> list[tuple[int, ...]]:
        """Each row's kept counts: no two easy rows need the same, the hard ones stand evenly between them."""
        hard_rows = self.hard_rows(batch)
        places = {(2 * index + 1) * batch // (2 * hard_rows) for index in range(hard_rows)}
        middle = (batch - 1) / 2
        ratios = [
            self.hard_ratio if row in places else self.easy_ratio * (1 + _SPREAD * (row - middle) / batch)
            for row in range(batch)
        ]
        return [geometric_schedule(tower.geometry, tower.alignment_geometry, ratio) for ratio in ratios]


@dataclass(frozen=True)
class MixRun:
    """One way to run a mixed batch, as JSON and table show it.

    needed_per_kept: tokens that the rows needed as a share of those kept, over all blocks. flops_ratio:
    multiply-adds spent, MAG included, as a share of the dense tower's. gmacs: 1e9 multiply-adds an image.
    speedup, realised: as in the other section. flops_to_max_keep, time_to_max_keep: as shares of max-keep's.
    """

    variant: str
    dtype: str
    batch: int
    hard_rows: int
    needed_per_kept: float
    flops_ratio: float
    gmacs: float
    median_ms: float
    fastest_ms: float
    speedup: float
    realised: float | None
    flops_to_max_keep: float
    time_to_max_keep: float
    peak_memory_mib: float | None


def measure_mix(tower: VisionTower, mix: Mix, dtype: str, batch: int, repeats: int) -> list[MixRun]:
    """Run a mixed batch dense, under max-keep and packed, in turn, at one dtype and batch size."""
    pixel_values, schedules = tower.images(batch, dtype), mix.schedules(tower, batch)
    steps: dict[str, Callable[[], Encoded]] = {
        DENSE: partial(tower.dense, pixel_values),
        MAX_KEEP: partial(tower.pruned, pixel_values, schedules, MAX_KEEP),
        PER_INSTANCE: partial(tower.pruned, pixel_values, schedules, PER_INSTANCE),
    }
    neediest = max(schedules, key=sum)
    kept: dict[str, Sequence[Sequence[int] | None]] = {
        DENSE: [None] * batch,
        MAX_KEEP: [neediest] * batch,
        PER_INSTANCE: schedules,
    }
    traces = {name: [scheduled_trace(tower.geometry, row) for row in rows] for name, rows in kept.items()}
    encoded = {name: step() for name, step in steps.items()}
    for name, forward in encoded.items():
        assert_kept(forward, traces[name])
    macs = {name: _mean_macs(tower, rows, name != DENSE) for name, rows in traces.items()}
    seconds = interleaved_seconds(steps, repeats, tower.device)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        MixRun(
            variant=name,
            dtype=dtype,
            batch=batch,
            hard_rows=mix.hard_rows(batch),
            needed_per_kept=int(encoded[name].needed.sum()) / int(encoded[name].kept.sum()),
            flops_ratio=macs[name] / macs[DENSE],
            gmacs=macs[name] / 1e9,
            median_ms=1e3 * median[name],
            fastest_ms=1e3 * min(seconds[name]),
            speedup=median[DENSE] / median[name],
            realised=None if name == DENSE else median[DENSE] / median[name] * macs[name] / macs[DENSE],
            flops_to_max_keep=macs[name] / macs[MAX_KEEP],
            time_to_max_keep=median[name] / median[MAX_KEEP],
            peak_memory_mib=peak_growth_mib(step, tower.device),
        )
        for name, step in steps.items()
    ]


def _mean_macs(tower: VisionTower, traces: list[BranchTrace], is_pruned: bool) -> float:
    """Multiply-adds of an image, on average over the rows."""
    scoring = tower.alignment_geometry if is_pruned else None
    return sum(vision_macs(tower.geometry, trace, scoring) for trace in traces) / len(traces)
