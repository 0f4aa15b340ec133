"""What the demo's tasks have in common that read the shared vision tower as it is."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.images import ImageGeometry
from madtp_core.pruning import VISION
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tasks.blip_network import BlipNetwork
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.shapes_data import pixel_values
from madtp_core.train.steered import Steered

NetworkT = TypeVar("NetworkT", bound=BlipNetwork)
BatchT = TypeVar("BatchT")


class OnSharedTower(Steered[BatchT], Generic[NetworkT, BatchT]):
    """A task on a vision tower that is pruned, and left as it is; a subclass has the modules that learn.

    The alignment tokens belong to the tower: they decide what it keeps. Texts align themselves with them.

    costs: those of the served request, in turn, so that the task reads what any of them leaves of an image.
    """

    def __init__(
        self,
        network: NetworkT,
        data: Dataset[BatchT],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
    ) -> None:
        super().__init__(data, geometry, costs, MadtpPruner(), hooks)
        self.network = network

    @torch.no_grad()
    def see(self, images: Tensor, pruning: BatchPruning, requests: Tensor) -> Encoded:
        """Encode images, uint8 [B, H, W, 3], with what they align to; requests [B]: one that each is of."""
        pixels = pixel_values(images, self.geometry)
        return self.network.encode_image(pixels, pruning.of(VISION, requests), collect_aligned=True)
