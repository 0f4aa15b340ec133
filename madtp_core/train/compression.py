"""What the compression of every task shares: its losses weighted, its cost measured, its temperature steered.

Source: MADTP (CVPR 2024), equation 11: L = L_task + alpha * L_sim, in one stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.encoder import BatchPruning
from madtp_core.flops import BranchTrace
from madtp_core.pruning import BRANCHES, MAX_KEEP, Pruner
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks.cost import CostModel, Passes, Traces
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks

BatchT = TypeVar("BatchT")
Requests = Sequence[tuple[Traces, Passes]]
# Requests as they ran, and their pruning (None: dense) -> spent / dense.
Measure = Callable[[CostModel, Requests, BatchPruning | None], float]
ALPHA = 0.1  # Tables 1 and 2 of the supplement
ALIGNMENT = "alignment"


@dataclass(frozen=True, eq=False)
class Losses:
    """A batch's losses by name, unweighted, and what each of its requests would have run when served."""

    parts: Mapping[str, Tensor]
    requests: Requests


def served_ratio(cost_model: CostModel, requests: Requests, pruning: BatchPruning | None) -> float:
    """The share of their dense multiply-adds that requests spend, each with the tokens that it kept."""
    spent = sum(cost_model.spent_macs(traces, passes, pruning) for traces, passes in requests)
    return spent / sum(cost_model.dense_macs(traces, passes) for traces, passes in requests)


class Compression(ABC, Generic[BatchT]):
    """A task of the loop that compresses a network, or trains it dense where no costs are given.

    Subclasses give `losses`. data: micro-batch index -> batch. cost_model: of the network's requests. hooks:
    how to evaluate and save. costs: what to spend, in turn; the first that prunes is what the model is
    evaluated and saved with. branches: those that are pruned, by pruner. weights: of losses by name, 1 unless
    given; alpha is that of every alignment loss, which is there where the network has alignment tokens.
    measure: what share of the dense cost a batch spent, `served_ratio` or one of `cost_basis`.
    """

    branches: tuple[str, ...] = BRANCHES

    network: Any

    def __init__(
        self,
        network: nn.Module,
        data: Dataset[BatchT],
        cost_model: CostModel,
        hooks: Hooks,
        costs: CostsInTurn | None = None,
        *,
        pruner: Pruner | None = None,
        alpha: float = ALPHA,
        weights: Mapping[str, float] | None = None,
        measure: Measure = served_ratio,
    ) -> None:
        self.network, self.data, self.cost_model, self.hooks = network, data, cost_model, hooks
        self.costs, self.alpha, self.measure = costs, alpha, measure
        self.pruner = MadtpPruner() if pruner is None else pruner
        self.weights = dict(weights or {})
        self.modules: nn.Module = nn.ModuleDict({"network": network})
        self._step = 0

    @abstractmethod
    def losses(self, batch: BatchT, pruning: BatchPruning | None, step: int) -> Losses:
        """The losses of one micro-batch, pruned as told; under autocast, in training mode."""

    @abstractmethod
    def requests_of(self, batch: BatchT) -> int:
        """How many requests, rows with a prune temperature each, a batch holds."""

    @property
    def has_alignment(self) -> bool:
        """Whether there are alignment tokens to train."""
        return self.network.alignment is not None and self.alpha > 0

    @property
    def device(self) -> torch.device:
        """Where the network stands."""
        return next(self.modules.parameters()).device

    def batches(self) -> Dataset[BatchT]:
        return self.data

    def loss(self, batch: BatchT, step: int) -> tuple[Tensor, Mapping[str, float]]:
        self._step = step
        pruning = self._pruning(batch, step)
        losses = self.losses(batch, pruning, step)
        loss = torch.stack([self.weight_of(name) * part for name, part in losses.parts.items()]).sum()
        suffix = "" if self.costs is None else f"/{self.costs.at(step)}"
        figures = {f"{name}_loss{suffix}": part.item() for name, part in losses.parts.items()}
        if self.costs is not None:
            figures |= self.costs.figures(step, self.measure(self.cost_model, losses.requests, pruning))
        return loss, figures

    def _pruning(self, batch: BatchT, step: int) -> BatchPruning | None:
        if self.costs is None:
            return None
        cost, temperature = self.costs.at(step), self.costs.prune_temperature(step)
        temperatures = torch.full((self.requests_of(batch),), temperature, device=self.device)
        keep_mode = MAX_KEEP if cost.is_dense else cost.keep_mode
        return BatchPruning(self.pruner, temperatures, keep_mode, frozenset(self.branches))

    def weight_of(self, name: str) -> float:
        """The weight of a loss in the sum."""
        return self.weights.get(name, self.alpha if name.endswith(ALIGNMENT) else 1.0)

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Move this step's prune temperature by the flops_ratio that all processes measured in the mean."""
        if self.costs is not None:
            self.costs.note(self._step, figures)

    @property
    def prune_temperature(self) -> float:
        """The temperature that the model is evaluated and saved with, 0 for a dense one."""
        if self.costs is None:
            return 0.0
        return next(iter(self.costs.states.values())).prune_temperature

    def evaluate(self) -> Mapping[str, float]:
        return self.hooks.evaluate()

    def state(self) -> dict[str, Any]:
        return {} if self.costs is None else self.costs.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.costs is not None:
            self.costs.load_state(state)

    def save(self, directory: Path) -> None:
        self.hooks.save(directory)


def text_tokens(mask: Tensor) -> list[int]:
    """Tokens of each text, its first one left out: mask [Q, L] -> [Q]."""
    counts: list[int] = (mask.sum(1) - 1).tolist()
    return counts


def request(traces: Mapping[str, Sequence[BranchTrace]], passes: Passes = ()) -> tuple[Traces, Passes]:
    """One request's sequences by kind, and its decoder's passes."""
    return {kind: tuple(each) for kind, each in traces.items()}, passes
