"""Ways of pruning that are compared with each other, put on one model's weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from madtp_core.config import PruningConfig
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning import BRANCHES, PRUNERS, VISION
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tasks import model_class
from madtp_core.tasks.base import PrunedModel

NONE: Final = "none"
GUIDED: Final = ("madtp", "static")  # methods that read alignment tokens
_MILDEST, _STRONGEST = 1e-3, 1e4  # prune temperatures
_SMALLEST_SHARE: Final = 0.02


@dataclass(frozen=True, eq=False)
class Tuned:
    """A model under a way of pruning at one setting.

    setting: a prune temperature, or of a static method the share of every branch's operations.
    """

    model: PrunedModel
    prune_temperature: float
    setting: float


@dataclass(frozen=True)
class Variant:
    """A pruning method, the branches that it prunes, and its options.

    branches: empty for all that the task prunes. Raises UnknownNameError for a method or branch that is none.
    """

    method: str = "madtp"
    branches: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in PRUNERS:
            raise UnknownNameError("pruner", self.method, PRUNERS)
        for branch in self.branches:
            if branch not in BRANCHES:
                raise UnknownNameError("branch", branch, BRANCHES)

    @classmethod
    def named(cls, name: str) -> Variant:
        """A method by name, `stp`, or one that prunes a single branch, `stp:vision`."""
        method, _, branch = name.partition(":")
        return cls(method, (branch,) if branch else ())

    @property
    def name(self) -> str:
        """A name for a folder, told by all that makes the variant."""
        options = [f"{key}={value}" for key, value in sorted(self.options.items())]
        return re.sub(r"[^\w=]+", "_", "_".join([self.method, *self.branches, *options])).strip("_")

    @property
    def is_scheduled(self) -> bool:
        """Whether it is set beforehand how many tokens stay."""
        return issubclass(PRUNERS[self.method], ScheduledPruner)

    @property
    def pressures(self) -> tuple[float, float]:
        """The mildest and the strongest that `at` takes."""
        return (1.0, 1 / _SMALLEST_SHARE) if self.is_scheduled else (_MILDEST, _STRONGEST)

    def at(self, model: PrunedModel, pressure: float) -> Tuned:
        """The model under this pruning; a larger pressure prunes more.

        It is the prune temperature, or the reciprocal of the share that a static schedule gives every branch.
        Raises ConfigError for a share that no schedule reaches, or a method that needs alignment tokens where
        there are none.
        """
        if self.method == NONE:
            return Tuned(model, 0.0, 0.0)
        share = {"flops_ratio": 1 / pressure} if self.is_scheduled else {}
        pruning = PruningConfig(
            self.method, pruned_branches(model, self.branches), options={**self.options, **share}
        )
        checkpoint = model.checkpoint
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, pruning=pruning), calibration=None)
        pruned = model_class(model.task)(checkpoint, name=model.name, device=str(model.device))
        temperature = 1.0 if self.is_scheduled else pressure
        pruned.batch_pruning(temperature, 1, pruning.keep_mode)  # what does not fit is refused here
        return Tuned(pruned, temperature, 1 / pressure if self.is_scheduled else pressure)


def pruned_branches(model: PrunedModel, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The wanted branches, or all that the model's task prunes; a caption's text never is.

    Raises ConfigError for a branch that the task does not prune.
    """
    known = (VISION,) if model.task == "caption" else BRANCHES
    if not set(wanted) <= set(known):
        raise ConfigError(f"{model.task} prunes {' and '.join(known)}, not {' and '.join(wanted)}")
    return wanted or known
