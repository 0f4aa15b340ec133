"""The search for what parameters to prune: a task trained dense while what matters least fades out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.parameter_pruning.masks import Masks
from madtp_core.parameter_pruning.ranking import ratio_at
from madtp_core.train.batches import to_device
from madtp_core.train.compression import Compression
from madtp_core.train.processes import gathered

UPDATES = 50  # rankings of a search, evenly spaced


class MaskSearch:
    """A task of the loop around another one, whose weights it trains under masks.

    Every now and then the structures are ranked anew by what their masks' gradients came to; those that may
    go by then hold p_t of the parameters and get the factor 1 - p_t / p, so one that turns out to matter
    comes back. Behind the last step the factors are 0 and 1. Source: UPop (ICML 2023), algorithm 1.
    """

    def __init__(self, task: Compression[Any], masks: Masks, ratio: float, steps: int) -> None:
        self.task, self.masks, self.ratio, self.steps = task, masks, ratio, steps
        self._step = 0
        task.modules.add_module("masks", masks)

    @property
    def modules(self) -> nn.Module:
        return self.task.modules

    def batches(self) -> Dataset[Any]:
        return self.task.batches()

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, float]]:
        self._step = step
        return self.task.loss(batch, step)

    def weight(self, batch: Any) -> float:
        """As the task's own, where it has one."""
        own = getattr(self.task, "weight", None)
        return 1.0 if own is None else float(own(batch))

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Sum up importance, and rank by it when it is time."""
        self.task.after_step(figures)
        self.masks.collect(lambda gradient: gathered(gradient.unsqueeze(0)).mean(0))
        done = self._step + 1
        if done == self.steps or done % max(1, self.steps // UPDATES) == 0:
            pruned = ratio_at(self._step, self.steps, self.ratio)
            self.masks.shrink(pruned, 1 - pruned / self.ratio)

    def evaluate(self) -> Mapping[str, float]:
        return self.task.evaluate()

    def state(self) -> dict[str, Any]:
        return self.task.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.task.load_state(state)

    def save(self, directory: Path) -> None:
        self.task.save(directory)


def measure_importance(task: Compression[Any], masks: Masks, batches: int) -> None:
    """Sum up the importance of a model's structures over a few batches, training nothing."""
    trained = [parameter for parameter in task.modules.parameters() if parameter.requires_grad]
    task.modules.eval()
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        for index in range(batches):
            loss, _ = task.loss(to_device(task.batches()[index], task.device), index)
            torch.autograd.backward(loss)
            masks.collect()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
