"""What retrieval and CLIP share: image and text embeddings against momentum features and their queue."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.alignment import alignment_loss
from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.pruning import Pruner
from madtp_core.tasks.cost import CostModel
from madtp_core.train.batches import ImageTexts
from madtp_core.train.compression import ALPHA, Compression, Measure, served_ratio
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.momentum import (
    MomentumConfig,
    MomentumCopy,
    Queue,
    contrastive_loss,
    soft_targets,
)
from madtp_core.train.processes import gathered

MOMENTUM_ALIGNMENT = "momentum_alignment"


@dataclass(frozen=True, eq=False)
class Embedded:
    """Both towers' outputs of a batch and the unit rows [B, E] float32 that they are compared by."""

    vision: Encoded
    text: Encoded
    images: Tensor
    texts: Tensor

    def alignment_loss(self) -> Tensor:
        """Of each image and its own text."""
        assert self.vision.aligned is not None and self.text.aligned is not None
        return alignment_loss(self.vision.aligned, self.text.aligned)


class ContrastiveCompression(Compression[ImageTexts]):
    """A compression whose task loss compares images with texts by embedding.

    Subclasses embed, and say by what cosines are multiplied. The momentum copy is pruned like the network.
    Its own alignment loss, weighted by alpha, stands in the sum as in the reference; as there, it has no
    gradient.
    Differs from the reference: a row's candidates are the momentum features of all processes' batches, not of
    its own process, so several processes train as one with their batches put together.
    """

    cost_model: Any

    def __init__(
        self,
        network: nn.Module,
        data: Dataset[ImageTexts],
        cost_model: CostModel,
        hooks: Hooks,
        costs: CostsInTurn | None = None,
        *,
        momentum: MomentumConfig | None = None,
        pruner: Pruner | None = None,
        alpha: float = ALPHA,
        weights: Mapping[str, float] | None = None,
        measure: Measure = served_ratio,
    ) -> None:
        super().__init__(
            network,
            data,
            cost_model,
            hooks,
            costs,
            pruner=pruner,
            alpha=alpha,
            weights=weights,
            measure=measure,
        )
        self.momentum = MomentumConfig() if momentum is None else momentum
        self.copy = MomentumCopy(network, self.momentum.momentum)
        self.copy.network.regimes = {}  # no path is dropped in what others learn from
        self.queue = Queue(self.momentum.queue, self.cost_model.embedding_width)
        device = next(network.parameters()).device
        self.modules = nn.ModuleDict({"network": network, "copy": self.copy, "queue": self.queue}).to(device)

    @abstractmethod
    def embed(self, network: Any, batch: ImageTexts, pruning: BatchPruning | None, align: bool) -> Embedded:
        """Embed the images and texts of a batch by the network or by its copy."""

    @abstractmethod
    def scale(self) -> Tensor:
        """What a cosine is multiplied by to become a logit: a scalar."""

    def requests_of(self, batch: ImageTexts) -> int:
        return len(batch.image_keys)

    def weight(self, batch: ImageTexts) -> float:
        """What the loss is a mean over: pairs."""
        return len(batch.image_keys)

    def contrast(
        self, own: Embedded, batch: ImageTexts, pruning: BatchPruning | None, step: int
    ) -> dict[str, Tensor]:
        """The contrastive loss and the momentum copy's alignment loss; the queue takes the batch in."""
        scale, keys = self.scale(), gathered(batch.image_keys)
        with torch.no_grad():
            copied = self.embed(self.copy.network, batch, pruning, self.has_alignment)
            every = gathered(copied.images), gathered(copied.texts), keys
            images, texts, candidate_keys = self.queue.behind(*every)
            share = self.momentum.soft_share_at(step)
            of_images = soft_targets(batch.image_keys, candidate_keys, scale * copied.images @ texts.T, share)
            of_texts = soft_targets(batch.image_keys, candidate_keys, scale * copied.texts @ images.T, share)
        loss = (
            contrastive_loss(scale * own.images @ texts.T, of_images)
            + contrastive_loss(scale * own.texts @ images.T, of_texts)
        ) / 2
        self.queue.push(*every)
        parts = {"contrastive": loss}
        if self.has_alignment:
            parts[MOMENTUM_ALIGNMENT] = copied.alignment_loss()
        return parts

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Steer, and let the copy follow what the step has made of the network."""
        super().after_step(figures)
        self.copy.follow(self.network)
