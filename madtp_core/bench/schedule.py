"""Kept counts per block that spend a wanted share of a vision tower's multiply-adds: plain integers."""

from __future__ import annotations

from collections.abc import Sequence

from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, BranchTrace, VisionGeometry, vision_macs

TOLERANCE = 0.01  # of the wanted share
_BISECTIONS = 40


def scheduled_trace(geometry: VisionGeometry, kept: Sequence[int] | None) -> BranchTrace:
    """What a forward keeps that needs kept[b] tokens behind block b, or all of them when kept is None.

    As in `keep_and_merge`, a block that would drop fewer than two tokens drops none, else adds a merged one.
    """
    available = geometry.patches
    tokens_in, counts = [], []
    for count in kept or (available,) * geometry.blocks:
        tokens_in.append(available)
        prunes = available - count > 1
        counts.append(count if prunes else available)
        available = count + 1 if prunes else available
    return BranchTrace(geometry.patches, tuple(tokens_in), tuple(counts), tuple(counts))


def flops_ratio(geometry: VisionGeometry, trace: BranchTrace, alignment: AlignmentGeometry | None) -> float:
    """Multiply-adds spent, those of MAG included where given, as a share of the dense tower's."""
    return vision_macs(geometry, trace, alignment) / vision_macs(geometry, trace.unpruned())


def geometric_schedule(
    geometry: VisionGeometry, alignment: AlignmentGeometry | None, target_ratio: float
) -> tuple[int, ...]:
    """Kept counts, one a block, that spend target_ratio of the dense multiply-adds within one percent.

    Every block keeps the same share of the tokens, kept_b = round(patches * share^(b + 1)): a threshold near
    the mean importance drops a share of what enters, not a number. The counts never rise; the class token and
    the merged token, which both stay, are left out. Raises ConfigError for a ratio that no share reaches.
    """

    def counts(share: float) -> tuple[int, ...]:
        return tuple(max(1, round(geometry.patches * share ** (b + 1))) for b in range(geometry.blocks))

    def spent(share: float) -> float:
        return flops_ratio(geometry, scheduled_trace(geometry, counts(share)), alignment)

    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) < target_ratio else (low, middle)
    share = min(low, high, key=lambda end: abs(spent(end) - target_ratio))
    if abs(spent(share) - target_ratio) > TOLERANCE * target_ratio:
        raise ConfigError(
            f"no schedule spends {target_ratio:g} of the dense multiply-adds within {TOLERANCE:.0%}, the "
            f"nearest {spent(share):.4f}; ask for a ratio from {spent(0.0):.2f} to {spent(1.0):.2f}"
        )
    return counts(share)
