"""Compression of BLIP retrieval: images and texts compared by embedding, and hard pairs of them matched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp_core.encoder import BatchPruning
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import MATCH, branch_traces
from madtp_core.tasks.embedding import whole_traces
from madtp_core.tasks.retrieval_cost import RetrievalCostModel
from madtp_core.tasks.retrieval_network import RetrievalNetwork
from madtp_core.train.batches import ImageTexts
from madtp_core.train.compression import ALIGNMENT, Losses, request, text_tokens
from madtp_core.train.contrast import ContrastiveCompression, Embedded
from madtp_core.train.negatives import hard_pairs
from madtp_core.train.processes import current_processes, gathered, gathered_ragged

_FIRST_TEMPERATURE, _TEMPERATURES = 0.07, (0.001, 0.5)  # the original BLIP's


class Scale(nn.Module):
    """What similarities are divided by, learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(_FIRST_TEMPERATURE))


class CompressRetrieval(ContrastiveCompression):
    """Contrastive loss + matching loss + alpha * both alignment losses.

    The image, the text alone and the text that reads an image are pruned. Negative pairs are drawn among
    all processes' images and texts; a process matches those of its own images.
    """

    network: RetrievalNetwork
    cost_model: RetrievalCostModel

    def __init__(self, *args: Any, **options: Any) -> None:
        """As `ContrastiveCompression`."""
        super().__init__(*args, **options)
        self.similarity = Scale().to(self.device)
        self.modules.add_module("similarity", self.similarity)

    def embed(
        self, network: RetrievalNetwork, batch: ImageTexts, pruning: BatchPruning | None, align: bool
    ) -> Embedded:
        vision = network.encode_image(batch.pixel_values, pruning.of(VISION) if pruning else None, align)
        text = network.encode_text(
            batch.text_ids, batch.mask, None, pruning.of(TEXT) if pruning else None, align
        )
        images, texts = network.image_embeddings(vision), network.text_embeddings(text)
        return Embedded(vision, text, images.float(), texts.float())

    def scale(self) -> Tensor:
        return 1 / self.similarity.temperature

    def losses(self, batch: ImageTexts, pruning: BatchPruning | None, step: int) -> Losses:
        own = self.embed(self.network, batch, pruning, self.has_alignment)
        parts = self.contrast(own, batch, pruning, step)
        if self.has_alignment:
            parts[ALIGNMENT] = own.alignment_loss()
        parts["match"], matches = self._match(own, batch, pruning, step)
        traces = zip(whole_traces(own.vision), whole_traces(own.text), matches, strict=True)
        return Losses(
            parts,
            [request({VISION: [image], TEXT: [text], MATCH: [match]}) for image, text, match in traces],
        )

    @torch.no_grad()
    def after_step(self, figures: Mapping[str, float]) -> None:
        """As of every contrastive compression; the similarities' temperature stays within BLIP's bounds."""
        self.similarity.temperature.clamp_(*_TEMPERATURES)
        super().after_step(figures)

    def _match(
        self, own: Embedded, batch: ImageTexts, pruning: BatchPruning | None, step: int
    ) -> tuple[Tensor, list[Any]]:
        """The matching loss of this process' images, and the traces of their true pairs.

        A text is sent to its image, not an image to its text: ids are a few numbers and need no gradient.
        """
        processes, rows = current_processes(), len(batch.image_keys)
        keys = gathered(batch.image_keys)
        logits = self.scale().detach() * gathered(own.images) @ gathered(own.texts).T
        generator = torch.Generator().manual_seed((step << 32) + int(keys.sum()) % (1 << 32))
        every = hard_pairs(logits, keys, generator)
        first = processes.rank * rows
        pairs = every.of_images(first, first + rows)
        match_ids, mask = gathered_ragged(batch.match_ids, 0), gathered_ragged(batch.mask.long(), 0)
        device = self.device
        images, texts, labels = (x.to(device) for x in (pairs.images, pairs.texts, pairs.labels))
        read_by = torch.zeros_like(images)  # all rows have the step's one prune temperature
        match = self.network.match(
            match_ids[texts], mask[texts], own.vision, images, pruning.of(TEXT, read_by) if pruning else None
        )
        total = F.cross_entropy(self.network.match_logits(match).float(), labels, reduction="sum")
        loss = total * processes.count / len(every.labels)  # processes are averaged
        return loss, branch_traces(match, text_tokens(mask[texts]))[:rows]
