"""Compression of captioning: a language-model loss over the caption behind its prompt."""

from __future__ import annotations

from madtp_core.encoder import BatchPruning
from madtp_core.flops import greedy_passes
from madtp_core.pruning import VISION
from madtp_core.tasks.caption_cost import CaptionCostModel
from madtp_core.tasks.caption_network import CaptionNetwork
from madtp_core.tasks.cost import branch_traces
from madtp_core.train.batches import Captions
from madtp_core.train.compression import Compression, Losses, request


class CompressCaption(Compression[Captions]):
    """Caption loss alone: as in the reference, no text is encoded that an image could be aligned with.

    So the alignment tokens learn from the caption loss only, through the weights of what merges.
    """

    network: CaptionNetwork
    branches = (VISION,)
    cost_model: CaptionCostModel

    def requests_of(self, batch: Captions) -> int:
        return len(batch.reader)

    def weight(self, batch: Captions) -> float:
        """What the loss is a mean over: tokens behind the prompt."""
        return int((batch.caption_ids[:, batch.prompt_tokens :] != -100).sum())

    def losses(self, batch: Captions, pruning: BatchPruning | None, step: int) -> Losses:
        out = self.network(batch.pixel_values, batch.caption_ids, batch.prompt_tokens, batch.reader, pruning)
        images = branch_traces(out.vision, [self.cost_model.vision.patches] * len(batch.pixel_values))
        emitted = (batch.caption_ids[:, batch.prompt_tokens :] != -100).sum(1).tolist()
        return Losses(
            {"caption": out.caption_loss},
            [
                request({VISION: [images[image]]}, greedy_passes(steps, first=batch.prompt_tokens))
                for image, steps in zip(batch.reader.tolist(), emitted, strict=True)
            ],
        )
