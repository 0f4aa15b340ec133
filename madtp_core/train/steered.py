"""What the demo's pruned stages have in common: their data, and costs in turn that are steered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.encoder import BatchPruning
from madtp_core.images import ImageGeometry
from madtp_core.pruning import Pruner
from madtp_core.tasks.cost import CostModel, Passes, Traces
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks

BatchT = TypeVar("BatchT")


class Steered(ABC, Generic[BatchT]):
    """A stage whose steps take turns between costs; a subclass has the modules that learn and their loss.

    hooks: None for a stage whose weights go on in memory and lie in the loop's last checkpoint. cost_model:
    of the served request; a stage of no task has none, and measures its own cost without `steering`.
    """

    modules: nn.Module
    cost_model: CostModel

    def __init__(
        self,
        data: Dataset[BatchT],
        geometry: ImageGeometry,
        costs: CostsInTurn,
        pruner: Pruner,
        hooks: Hooks | None = None,
    ) -> None:
        self.data, self.geometry, self.hooks = data, geometry, hooks
        self.costs, self.pruner = costs, pruner
        self._step = 0

    @abstractmethod
    def loss(self, batch: BatchT, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss to descend and figures to log."""

    def batches(self) -> Dataset[BatchT]:
        return self.data

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Steer the prune temperature of this step's cost."""
        self.costs.note(self._step, figures)

    def evaluate(self) -> Mapping[str, float]:
        return self.hooks.evaluate() if self.hooks else {}

    def state(self) -> dict[str, Any]:
        return self.costs.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.costs.load_state(state)

    def save(self, directory: Path) -> None:
        if self.hooks:
            self.hooks.save(directory)

    def begin(self, step: int, requests: int) -> BatchPruning:
        """How this step's requests are pruned."""
        self._step = step
        return self.costs.pruning(self.pruner, step, requests)

    def steering(self, traces: Sequence[Traces], passes: Passes, pruning: BatchPruning) -> dict[str, float]:
        """Figures of the step's cost: spent over dense of requests with these traces and decoder passes."""
        spent = sum(self.cost_model.spent_macs(each, passes, pruning) for each in traces)
        dense = sum(self.cost_model.dense_macs(each, passes) for each in traces)
        return self.costs.figures(self._step, spent / dense)
