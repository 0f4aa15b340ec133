"""Pruning methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning.base import (
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    Pruned,
    Pruner,
    PruneStep,
    check_keep_mode,
    keep_and_merge,
)
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.pruning.none import NonePruner
from madtp_core.pruning.static import StaticPruner

PRUNERS: dict[str, Callable[..., Pruner]] = {
    "none": NonePruner,
    "madtp": MadtpPruner,
    "static": StaticPruner,
}

__all__ = [
    "KEEP_MODES",
    "MAX_KEEP",
    "PER_INSTANCE",
    "PRUNERS",
    "PruneStep",
    "Pruned",
    "Pruner",
    "build_pruner",
    "check_keep_mode",
    "keep_and_merge",
]


def build_pruner(name: str, **options: Any) -> Pruner:
    """Make the pruner called name; raises UnknownNameError, or ConfigError for options it does not take."""
    if name not in PRUNERS:
        raise UnknownNameError("pruner", name, PRUNERS)
    try:
        return PRUNERS[name](**options)
    except TypeError as error:
        raise ConfigError(f"pruner {name!r}: {error}") from error
