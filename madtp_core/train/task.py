"""What a task gives the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.data import Dataset


class TrainTask(Protocol):
    """What a task gives the loop."""

    @property
    def modules(self) -> nn.Module:
        """Every module with parameters to train, and whatever else a resumed run must find again."""

    def batches(self) -> Dataset[Any]:
        """A map from a micro-batch's index to that micro-batch: what makes a run resumable.

        A step has accumulate x processes of them, one after another; without either, the index is the step.
        """

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        """The loss to descend and figures to log; called under autocast in training mode."""

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Adjust what is steered rather than learned, from the step's figures, the mean of all batches."""

    def evaluate(self) -> Mapping[str, float]:
        """Figures on held-out data."""

    def state(self) -> dict[str, Any]:
        """What is steered, to be saved with a checkpoint."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`."""

    def save(self, directory: Path) -> None:
        """Write the trained model."""


@runtime_checkable
class Weighted(Protocol):
    """A task whose loss is a mean over something that batches hold different numbers of, as tokens.

    With it, several micro-batches or processes descend the very loss of their batches put together.
    """

    def weight(self, batch: Any) -> float:
        """How many a batch holds."""
