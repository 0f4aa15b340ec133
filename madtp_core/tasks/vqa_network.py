"""BLIP-VQA as a pruned network: image, question and answer through our loop, to train and to serve."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import BlipForQuestionAnswering

from madtp_core.alignment import alignment_loss
from madtp_core.decoding import TextDecoder
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import BlipNetwork, OnBlock, reader_of, text_decoder


@dataclass(frozen=True, eq=False)
class VqaForward:
    """One teacher-forced pass: losses, and what both branches left behind."""

    answer_loss: Tensor
    alignment_loss: Tensor | None
    vision: Encoded
    text: Encoded


class VqaNetwork(BlipNetwork):
    """A Hugging Face BLIP-VQA and its alignment tokens; the answer decoder is never pruned."""

    blip: BlipForQuestionAnswering

    def encode_question(
        self,
        token_ids: Tensor,
        mask: Tensor | None,
        image: Encoded,
        reader: Tensor | None = None,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
    ) -> Encoded:
        """token_ids, mask [Q, L] reading the images; reader [Q] question -> image, None when they pair up."""
        memory = self.remember(image, reader)
        return self.encode_text(token_ids, mask, memory, pruning, collect_aligned, on_block)

    def decoder(self) -> TextDecoder:
        """The answer decoder."""
        return text_decoder(self.blip.text_decoder)

    def answer_loss(self, text: Encoded, answer_ids: Tensor) -> Tensor:
        """Teacher-forced cross-entropy of answer_ids [Q, A]: start token, answer, end token, then -100."""
        decoder = self.decoder()
        logits, _ = decoder.forward(answer_ids[:, :-1].clamp_min(0), decoder.remember(text.tokens))
        return F.cross_entropy(logits.transpose(1, 2), answer_ids[:, 1:], ignore_index=-100)

    def forward(
        self,
        pixel_values: Tensor,
        question_ids: Tensor,
        question_mask: Tensor,
        reader: Tensor,
        answer_ids: Tensor,
        pruning: BatchPruning | None = None,
        align: bool = False,
    ) -> VqaForward:
        """Teacher-forced losses of Q questions about B images.

        pixel_values [B, 3, height, width]; question_ids, question_mask [Q, L]; reader [Q] question -> image;
        answer_ids [Q, A]: start token, answer, end token, then -100. align adds the alignment loss.
        """
        asker = reader_of(reader, len(pixel_values))
        vision_pruning = pruning.of(VISION, asker) if pruning else None
        text_pruning = pruning.of(TEXT) if pruning else None
        vision = self.encode_image(pixel_values, vision_pruning, align)
        text = self.encode_question(question_ids, question_mask, vision, reader, text_pruning, align)
        answer = self.answer_loss(text, answer_ids)
        aligned = None
        if align:
            assert vision.aligned is not None and text.aligned is not None
            aligned = alignment_loss(vision.aligned[reader], text.aligned)
        return VqaForward(answer, aligned, vision, text)
