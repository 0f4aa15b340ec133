"""The best of a run's evaluated models among those that cost no more than wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madtp_core.train.processes import current_processes
from madtp_core.train.task import TrainTask

FLOPS_RATIO = "flops_ratio"


@dataclass(frozen=True)
class BestRule:
    """Which evaluation is best: the highest `metric` with a flops_ratio of at most target + tolerance.

    target: the wanted flops_ratio, None where cost does not matter. tolerance: 0.02 unless given, since a
    batch maximum moves the ratio by about as much from one held-out sample to another.
    """

    metric: str
    target: float | None = None
    tolerance: float = 0.02

    def admits(self, figures: Mapping[str, float]) -> bool:
        """Whether an evaluated model is within the target."""
        return self.target is None or figures[FLOPS_RATIO] <= self.target + self.tolerance


class BestModel:
    """Keeps the model of the best evaluation so far in a directory."""

    def __init__(self, rule: BestRule | None, directory: Path) -> None:
        self.rule, self.directory = rule, directory
        self.value: float | None = None

    def judged(self, task: TrainTask, figures: Mapping[str, float]) -> dict[str, float]:
        """The figures as they are; saves the task's model where they are the best so far."""
        if self.rule is not None and current_processes().is_first and self.rule.admits(figures):
            value = figures[self.rule.metric]
            if self.value is None or value > self.value:
                self.value = value
                task.save(self.directory)
        return dict(figures)

    def state(self) -> dict[str, Any]:
        """How good the best was, to be saved."""
        return {"value": self.value}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""
        self.value = state["value"]
