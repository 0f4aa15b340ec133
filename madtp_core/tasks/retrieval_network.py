"""BLIP retrieval as a pruned network: images and texts compared by embeddings, pairs of them matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BlipForImageTextRetrieval

from madtp_core.alignment import alignment_loss
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import BlipNetwork

# Image and text embeddings [B, E] -> the images and the texts [P] of the pairs to match.
ChoosePairs = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class RetrievalForward:
    """What the losses of one batch are made of, and what the branches left behind.

    image_embeddings, text_embeddings: unit rows [B, E]. match_logits: [P, 2] of the chosen pairs, no match
    and match. alignment_loss: None unless asked for.
    """

    image_embeddings: Tensor
    text_embeddings: Tensor
    match_logits: Tensor
    alignment_loss: Tensor | None
    vision: Encoded
    text: Encoded
    match: Encoded


class RetrievalNetwork(BlipNetwork):
    """A Hugging Face BLIP for image-text retrieval and its alignment tokens."""

    blip: BlipForImageTextRetrieval

    def image_embeddings(self, image: Encoded) -> Tensor:
        """What images are compared by: unit rows [B, E]."""
        return F.normalize(self.blip.vision_proj(image.tokens.protected()), dim=-1)

    def text_embeddings(self, text: Encoded) -> Tensor:
        """What texts, encoded without an image, are compared by: unit rows [Q, E]."""
        return F.normalize(self.blip.text_proj(text.tokens.protected()), dim=-1)

    def match(
        self,
        match_ids: Tensor,
        mask: Tensor,
        image: Encoded,
        images: Tensor,
        pruning: Pruning | None = None,
    ) -> Encoded:
        """Encode texts match_ids, mask [P, L] reading an image each; images [P] names it among the encoded.

        Only images that are read are projected, each once.
        """
        read, reader = torch.unique(images, return_inverse=True)
        memory = self.remember(replace(image, tokens=image.tokens.rows(read)), reader)
        return self.encode_text(match_ids, mask, memory, pruning)

    def match_logits(self, match: Encoded) -> Tensor:
        """Logits [P, 2], no match and match, of texts that were encoded reading an image."""
        logits: Tensor = self.blip.itm_head(match.tokens.protected())
        return logits

    def forward(
        self,
        pixel_values: Tensor,
        text_ids: Tensor,
        match_ids: Tensor,
        mask: Tensor,
        choose_pairs: ChoosePairs,
        pruning: BatchPruning | None = None,
        align: bool = False,
    ) -> RetrievalForward:
        """Embed B images and the B texts that belong to them, then match the pairs chosen by embedding.

        pixel_values [B, 3, height, width]; mask [B, L] of text_ids and match_ids [B, L], the same texts as
        they are encoded alone and reading an image. align adds the alignment loss, of the image and its text
        alone. Row b's prune temperature is that of image b, text b, and of pairs with text b.
        """
        vision = self.encode_image(pixel_values, pruning.of(VISION) if pruning else None, align)
        text = self.encode_text(text_ids, mask, None, pruning.of(TEXT) if pruning else None, align)
        image_embeddings, text_embeddings = self.image_embeddings(vision), self.text_embeddings(text)
        images, texts = choose_pairs(image_embeddings, text_embeddings)
        # Differs from the reference: all pairs are one batch, where it encodes the true ones and the negative
        # ones apart, each with a largest need of its own.
        match_pruning = pruning.of(TEXT, texts) if pruning else None
        match = self.match(match_ids[texts], mask[texts], vision, images, match_pruning)
        aligned = None
        if align:
            assert vision.aligned is not None and text.aligned is not None
            aligned = alignment_loss(vision.aligned, text.aligned)
        logits = self.match_logits(match)
        return RetrievalForward(image_embeddings, text_embeddings, logits, aligned, vision, text, match)
