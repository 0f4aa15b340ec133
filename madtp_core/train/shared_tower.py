"""What the demo's tasks have in common that read the shared vision tower as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.images import ImageGeometry
from madtp_core.pruning import VISION
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks.blip_network import BlipNetwork
from madtp_core.tasks.cost import CostModel, Passes, Traces
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.shapes_data import pixel_values

NetworkT = TypeVar("NetworkT", bound=BlipNetwork)
BatchT = TypeVar("BatchT")


class OnSharedTower(ABC, Generic[NetworkT, BatchT]):
    """A task on a vision tower that is pruned, and left as it is; a subclass has the modules that learn.

    The alignment tokens belong to the tower: they decide what it keeps. Texts align themselves with them.

    costs: those of the served request, in turn, so that the task reads what any of them leaves of an image.
    """

    modules: nn.Module
    cost_model: CostModel

    def __init__(
        self,
        network: NetworkT,
        data: Dataset[BatchT],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
    ) -> None:
        self.network, self.data, self.geometry, self.hooks = network, data, geometry, hooks
        self.costs, self.pruner = costs, MadtpPruner()
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
        return self.hooks.evaluate()

    def state(self) -> dict[str, Any]:
        return self.costs.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.costs.load_state(state)

    def save(self, directory: Path) -> None:
        self.hooks.save(directory)

    def begin(self, step: int, requests: int) -> BatchPruning:
        """How this step's requests are pruned."""
        self._step = step
        return self.costs.pruning(self.pruner, step, requests)

    @torch.no_grad()
    def see(self, images: Tensor, pruning: BatchPruning, requests: Tensor) -> Encoded:
        """Encode images, uint8 [B, H, W, 3], with what they align to; requests [B]: one that each is of."""
        pixels = pixel_values(images, self.geometry)
        return self.network.encode_image(pixels, pruning.of(VISION, requests), collect_aligned=True)

    def steering(self, traces: Sequence[Traces], passes: Passes, pruning: BatchPruning) -> dict[str, float]:
        """Figures of the step's cost: spent over dense of requests with these traces and decoder passes."""
        spent = sum(self.cost_model.spent_macs(each, passes, pruning) for each in traces)
        dense = sum(self.cost_model.dense_macs(each, passes) for each in traces)
        return self.costs.figures(self._step, spent / dense)
