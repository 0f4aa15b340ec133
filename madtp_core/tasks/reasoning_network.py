"""BLIP for NLVR2 as a pruned network: two images and a statement through our loop, to train and to serve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from madtp_core.alignment import alignment_loss
from madtp_core.backbones.nlvr import BlipForReasoning, twin_text_blocks
from madtp_core.blocks import TwinMemory, TwinTextBlock
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import BlipNetwork, OnBlock


@dataclass(frozen=True, eq=False)
class ReasoningForward:
    """One pass over B statements: losses, logits [B, 2], and what both branches left behind.

    vision holds 2B rows: the left images of all statements, then the right ones.
    """

    answer_loss: Tensor
    alignment_loss: Tensor | None
    logits: Tensor
    vision: Encoded
    text: Encoded


class ReasoningNetwork(BlipNetwork):
    """A BLIP for reasoning over two images, and its alignment tokens; both branches are pruned."""

    blip: BlipForReasoning

    def text_blocks(self) -> list[TwinTextBlock]:
        """Adapters of the text encoder's blocks, which read a TwinMemory."""
        return twin_text_blocks(self.blip.text_encoder)

    def encode_pairs(
        self,
        pixel_values: Tensor,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
    ) -> Encoded:
        """pixel_values [2B, 3, height, width]: all left images, then all right ones, run as one batch.

        So under max_keep both images of all requests count in the batch's maximum, as in the reference. Both
        take the prune temperature of their request; pruning holds one a request, [B].
        """
        if pruning is not None:
            pruning = replace(pruning, prune_temperature=pruning.prune_temperature.repeat(2))
        return self.encode_image(pixel_values, pruning, collect_aligned, on_block)

    def encode_statement(
        self,
        token_ids: Tensor,
        mask: Tensor | None,
        images: Encoded,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
    ) -> Encoded:
        """token_ids, mask [B, L], each statement reading its two images out of `encode_pairs`."""
        memory = TwinMemory.project(images.tokens.split(len(token_ids)), self.text_blocks())
        return self.encode_text(token_ids, mask, memory, pruning, collect_aligned, on_block)

    def classify(self, statement: Encoded) -> Tensor:
        """Logits [B, 2] float32 from the first token of each statement: false, true."""
        logits: Tensor = self.blip.cls_head(statement.tokens.protected())
        return logits.float()

    def forward(
        self,
        pixel_values: Tensor,
        token_ids: Tensor,
        mask: Tensor,
        labels: Tensor,
        pruning: BatchPruning | None = None,
        align: bool = False,
    ) -> ReasoningForward:
        """Losses of B statements about two images each.

        pixel_values [2B, 3, height, width]: all left images, then all right ones; token_ids, mask [B, L];
        labels [B] int64, 1 where the statement is true. align adds the alignment loss, for which both images'
        aligned features are averaged (as in the reference).
        """
        vision_pruning = pruning.of(VISION) if pruning else None
        text_pruning = pruning.of(TEXT) if pruning else None
        vision = self.encode_pairs(pixel_values, vision_pruning, align)
        text = self.encode_statement(token_ids, mask, vision, text_pruning, align)
        logits = self.classify(text)
        aligned = None
        if align:
            assert vision.aligned is not None and text.aligned is not None
            left, right = vision.aligned.chunk(2)
            aligned = alignment_loss((left + right) / 2, text.aligned)
        return ReasoningForward(F.cross_entropy(logits, labels), aligned, logits, vision, text)
