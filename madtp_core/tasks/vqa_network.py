"""BLIP-VQA as a pruned network: image, question and answer through our loop, to train and to serve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BlipForQuestionAnswering

from madtp_core.alignment import Alignment, alignment_loss
from madtp_core.backbones.blip import embed_image, embed_text, text_blocks, vision_blocks
from madtp_core.blocks import Memory
from madtp_core.decoding import TextDecoder
from madtp_core.encoder import Encoded, Pruning, encode
from madtp_core.pruning import Pruner

VISION, TEXT = "vision", "text"


@dataclass(frozen=True, eq=False)
class VqaForward:
    """One teacher-forced pass: losses, and what both branches left behind."""

    answer_loss: Tensor
    alignment_loss: Tensor | None
    vision: Encoded
    text: Encoded


@dataclass(frozen=True, eq=False)
class BatchPruning:
    """A pruner for a batch: prune_temperature [Q], one a question, and the branches that it prunes."""

    pruner: Pruner
    prune_temperature: Tensor
    keep_mode: str
    branches: frozenset[str] = frozenset({VISION, TEXT})

    def of(self, branch: str, rows: Tensor | None = None) -> Pruning | None:
        """This branch's pruning, for the given rows of the batch; None where it runs dense."""
        if branch not in self.branches:
            return None
        temperature = self.prune_temperature if rows is None else self.prune_temperature[rows]
        return Pruning(self.pruner, temperature, self.keep_mode)


class VqaNetwork(nn.Module):
    """A Hugging Face BLIP-VQA and its alignment tokens; the answer decoder is never pruned.

    blip owns its weights under Hugging Face's names; alignment is None for a model without MAG.
    """

    def __init__(self, blip: BlipForQuestionAnswering, alignment: Alignment | None = None) -> None:
        super().__init__()
        self.blip = blip
        self.alignment = alignment

    def encode_image(
        self, pixel_values: Tensor, pruning: Pruning | None = None, collect_aligned: bool = False
    ) -> Encoded:
        """pixel_values [B, 3, height, width] -> the final norm of [class, kept, merged]."""
        vision = self.blip.vision_model
        encoded = encode(
            embed_image(vision, pixel_values),
            vision_blocks(vision),
            VISION,
            pruning=pruning,
            alignment=self.alignment,
            collect_aligned=collect_aligned,
        )
        normed = encoded.tokens.with_hidden(vision.post_layernorm(encoded.tokens.hidden))
        return Encoded(normed, encoded.tokens_in, encoded.needed, encoded.kept, encoded.aligned)

    def encode_question(
        self,
        token_ids: Tensor,
        mask: Tensor | None,
        image: Encoded,
        reader: Tensor | None = None,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
    ) -> Encoded:
        """token_ids, mask [Q, L] reading the images; reader [Q] question -> image, None when they pair up."""
        blocks = text_blocks(self.blip.text_encoder)
        return encode(
            embed_text(self.blip.text_encoder, token_ids, mask),
            blocks,
            TEXT,
            pruning=pruning,
            alignment=self.alignment,
            memory=Memory.project(image.tokens, list(blocks), reader),
            collect_aligned=collect_aligned,
        )

    def decoder(self) -> TextDecoder:
        """The answer decoder."""
        text = self.blip.text_decoder
        start_id, end_id = text.config.bos_token_id, text.config.sep_token_id
        assert start_id is not None and end_id is not None
        return TextDecoder(text.bert.embeddings, text_blocks(text.bert), text.cls, start_id, end_id)

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
        asker = torch.zeros(len(pixel_values), dtype=torch.int64, device=reader.device)  # image -> a question
        asker[reader] = torch.arange(len(reader), device=reader.device)
        vision_pruning = pruning.of(VISION, asker) if pruning else None
        text_pruning = pruning.of(TEXT) if pruning else None
        vision = self.encode_image(pixel_values, vision_pruning, align)
        text = self.encode_question(question_ids, question_mask, vision, reader, text_pruning, align)
        decoder = self.decoder()
        inputs = answer_ids[:, :-1].clamp_min(0)
        logits, _ = decoder.forward(inputs, decoder.remember(text.tokens))
        answer = F.cross_entropy(logits.transpose(1, 2), answer_ids[:, 1:], ignore_index=-100)
        aligned = None
        if align:
            assert vision.aligned is not None and text.aligned is not None
            aligned = alignment_loss(vision.aligned[reader], text.aligned)
        return VqaForward(answer, aligned, vision, text)
