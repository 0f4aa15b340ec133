"""The bench's schedules: kept counts of a vision tower that spend a wanted share of its multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from madtp_core.flops import AlignmentGeometry, BranchTrace, VisionGeometry, vision_macs
from madtp_core.pruning import schedule
from madtp_core.pruning.schedule import TOLERANCE, check_reached, geometric_counts, nearest_rate

__all__ = ["TOLERANCE", "flops_ratio", "geometric_schedule", "scheduled_trace"]


def scheduled_trace(geometry: VisionGeometry, kept: Sequence[int] | None) -> BranchTrace:
    """What a forward keeps that needs kept[b] tokens behind block b, or all of them when kept is None."""
    return schedule.scheduled_trace(geometry.patches, kept or (geometry.patches,) * geometry.blocks)


def flops_ratio(geometry: VisionGeometry, trace: BranchTrace, alignment: AlignmentGeometry | None) -> float:
    """Multiply-adds spent, those of MAG included where given, as a share of the dense tower's."""
    return schedule.flops_ratio(partial(vision_macs, geometry), trace, alignment)


def geometric_schedule(
    geometry: VisionGeometry, alignment: AlignmentGeometry | None, target_ratio: float
) -> tuple[int, ...]:
    """Kept counts, one a block, that spend target_ratio of the dense multiply-adds within `TOLERANCE`.

    alignment: whose whole scoring every block pays. Raises ConfigError for a ratio that no rate reaches.
    """

    def counts(rate: float) -> tuple[int, ...]:
        return geometric_counts(geometry.patches, [rate] * geometry.blocks)

    def spent(rate: float) -> float:
        return flops_ratio(geometry, scheduled_trace(geometry, counts(rate)), alignment)

    rate = nearest_rate(spent, target_ratio)
    check_reached(spent, rate, target_ratio, geometry.patches)
    return counts(rate)
