"""BLIP captioning as a pruned network: the image through our loop, its caption read from what is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from transformers import BlipForConditionalGeneration

from madtp_core.backbones.blip import text_config
from madtp_core.decoding import TextDecoder
from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.pruning import VISION
from madtp_core.tasks.blip_network import BlipNetwork, reader_of, text_decoder


@dataclass(frozen=True, eq=False)
class CaptionForward:
    """One teacher-forced pass: its loss, and what the image left behind."""

    caption_loss: Tensor
    vision: Encoded


class CaptionNetwork(BlipNetwork):
    """A Hugging Face BLIP captioner and its alignment tokens; the decoder is never pruned."""

    blip: BlipForConditionalGeneration

    def decoder(self) -> TextDecoder:
        """The caption decoder, which reads an image's kept tokens."""
        return text_decoder(self.blip.text_decoder)

    def caption_loss(
        self, image: Encoded, caption_ids: Tensor, prompt_tokens: int, reader: Tensor | None = None
    ) -> Tensor:
        """Teacher-forced cross-entropy of captions, prompt left out; smoothed as the configuration says.

        caption_ids [Q, L]: start token, prompt, caption, end token, then -100. prompt_tokens: how many stand
        before the caption, the start token included. reader [Q] caption -> image, None when they pair up.
        """
        decoder = self.decoder()
        memory = decoder.remember(image.tokens)
        if reader is not None:
            memory = memory.read_by(reader)
        logits, _ = decoder.forward(caption_ids[:, :-1].clamp_min(0), memory)
        wanted = caption_ids[:, prompt_tokens:]
        return F.cross_entropy(
            logits[:, prompt_tokens - 1 :].transpose(1, 2),
            wanted,
            ignore_index=-100,
            label_smoothing=text_config(self.blip.config).label_smoothing,
        )

    def forward(
        self,
        pixel_values: Tensor,
        caption_ids: Tensor,
        prompt_tokens: int,
        reader: Tensor,
        pruning: BatchPruning | None = None,
    ) -> CaptionForward:
        """Teacher-forced loss of Q captions of B images, a request each.

        pixel_values [B, 3, height, width]; caption_ids, prompt_tokens and reader as in `caption_loss`. There
        is no alignment loss: as in the reference, no text is encoded that an image could be aligned with.
        """
        requests = reader_of(reader, len(pixel_values))
        vision = self.encode_image(pixel_values, pruning.of(VISION, requests) if pruning else None)
        return CaptionForward(self.caption_loss(vision, caption_ids, prompt_tokens, reader), vision)
