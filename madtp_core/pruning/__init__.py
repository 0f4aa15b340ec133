"""Pruning methods by name."""

from __future__ import annotations

from typing import Any

from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning.base import (
    BRANCHES,
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    TEXT,
    VISION,
    Pruned,
    Pruner,
    PruneStep,
    check_keep_mode,
    keep_and_merge,
)
from madtp_core.pruning.evit import EvitPruner
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.pruning.none import NonePruner
from madtp_core.pruning.random_choice import RandomPruner
from madtp_core.pruning.rollout import RolloutPruner
from madtp_core.pruning.schedule import BranchGeometry, PruningGeometry
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.pruning.spatial import SpatialPruner
from madtp_core.pruning.static import StaticPruner
from madtp_core.pruning.stp import StpPruner
from madtp_core.pruning.tome import TomePruner
from madtp_core.pruning.topk import TopkPruner

PRUNERS: dict[str, type[Pruner]] = {
    "none": NonePruner,
    "madtp": MadtpPruner,
    "static": StaticPruner,
    "stp": StpPruner,
    "random": RandomPruner,
    "topk": TopkPruner,
    "spatial": SpatialPruner,
    "evit": EvitPruner,
    "tome": TomePruner,
    "rollout": RolloutPruner,
}

__all__ = [
    "BRANCHES",
    "KEEP_MODES",
    "MAX_KEEP",
    "PER_INSTANCE",
    "PRUNERS",
    "TEXT",
    "VISION",
    "BranchGeometry",
    "PruneStep",
    "Pruned",
    "Pruner",
    "PruningGeometry",
    "build_pruner",
    "check_keep_mode",
    "keep_and_merge",
]


def build_pruner(name: str, *, geometry: PruningGeometry | None = None, **options: Any) -> Pruner:
    """Make the pruner called name; geometry: of the model, which static methods fit their schedules to.

    Raises UnknownNameError, or ConfigError for options that the method does not take.
    """
    if name not in PRUNERS:
        raise UnknownNameError("pruner", name, PRUNERS)
    method = PRUNERS[name]
    fitted = {"geometry": geometry} if issubclass(method, ScheduledPruner) else {}
    try:
        return method(**fitted, **options)
    except TypeError as error:
        raise ConfigError(f"pruner {name!r}: {error}") from error
