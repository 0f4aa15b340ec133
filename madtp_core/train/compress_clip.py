"""Compression of CLIP: images and their texts compared by embedding, no pair is matched."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from madtp_core.encoder import BatchPruning
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.clip_cost import ClipCostModel
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tasks.embedding import whole_traces
from madtp_core.train.batches import ImageTexts
from madtp_core.train.compression import ALIGNMENT, Losses, request
from madtp_core.train.contrast import ContrastiveCompression, Embedded

_LARGEST_LOG_SCALE = math.log(100)  # CLIP (ICML 2021), section 2.5


class CompressClip(ContrastiveCompression):
    """Contrastive loss + alpha * both alignment losses; both towers are pruned."""

    network: ClipNetwork
    cost_model: ClipCostModel

    def embed(
        self, network: ClipNetwork, batch: ImageTexts, pruning: BatchPruning | None, align: bool
    ) -> Embedded:
        vision = network.encode_image(batch.pixel_values, pruning.of(VISION) if pruning else None, align)
        text = network.encode_text(batch.text_ids, pruning.of(TEXT) if pruning else None, align)
        images, texts = network.image_embeddings(vision), network.text_embeddings(text)
        return Embedded(vision, text, images.float(), texts.float())

    def scale(self) -> Tensor:
        return self.network.logit_scale()

    def losses(self, batch: ImageTexts, pruning: BatchPruning | None, step: int) -> Losses:
        own = self.embed(self.network, batch, pruning, self.has_alignment)
        parts = self.contrast(own, batch, pruning, step)
        if self.has_alignment:
            parts[ALIGNMENT] = own.alignment_loss()
        pairs = zip(whole_traces(own.vision), whole_traces(own.text), strict=True)
        return Losses(parts, [request({VISION: [image], TEXT: [text]}) for image, text in pairs])

    @torch.no_grad()
    def after_step(self, figures: Mapping[str, float]) -> None:
        """As of every contrastive compression; the scale stays below 100."""
        self.network.clip.logit_scale.clamp_(max=_LARGEST_LOG_SCALE)
        super().after_step(figures)
