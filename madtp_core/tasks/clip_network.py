"""CLIP as a pruned network: an image or a text through our loop to one embedding, to train and to serve."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel

from madtp_core.alignment import Alignment, alignment_loss
from madtp_core.backbones.clip import clip_blocks, embed_image, embed_text
from madtp_core.encoder import BatchPruning, Encoded, Pruning, Regime, encode
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import OnBlock


@dataclass(frozen=True, eq=False)
class ClipForward:
    """What the losses of one batch are made of, and what both towers left behind.

    image_embeddings, text_embeddings: unit rows [B, E]. logit_scale: what their cosines are multiplied by, a
    scalar. alignment_loss: None unless asked for.
    """

    image_embeddings: Tensor
    text_embeddings: Tensor
    logit_scale: Tensor
    alignment_loss: Tensor | None
    vision: Encoded
    text: Encoded


class ClipNetwork(nn.Module):
    """A Hugging Face CLIP and its alignment tokens.

    clip owns its weights under Hugging Face's names; alignment is None for a model without MAG.
    """

    def __init__(self, clip: CLIPModel, alignment: Alignment | None = None) -> None:
        super().__init__()
        self.clip = clip
        self.alignment = alignment
        self.regimes: dict[str, Regime] = {}  # by branch; heeded in training mode alone

    def encode_image(
        self,
        pixel_values: Tensor,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
    ) -> Encoded:
        """pixel_values [B, 3, height, width] -> [class, kept, merged], not yet normed."""
        tower = self.clip.vision_model
        return encode(
            embed_image(tower, pixel_values),
            clip_blocks(tower),
            VISION,
            pruning=pruning,
            alignment=self.alignment,
            collect_aligned=collect_aligned,
            on_block=on_block,
            regime=self.regimes.get(VISION) if self.training else None,
        )

    def encode_text(
        self,
        token_ids: Tensor,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
    ) -> Encoded:
        """token_ids [Q, L], anything behind EOT -> [EOT, kept, merged], not yet normed."""
        tower = self.clip.text_model
        return encode(
            embed_text(tower, token_ids),
            clip_blocks(tower),
            TEXT,
            pruning=pruning,
            alignment=self.alignment,
            collect_aligned=collect_aligned,
            on_block=on_block,
            regime=self.regimes.get(TEXT) if self.training else None,
        )

    def image_embeddings(self, image: Encoded) -> Tensor:
        """What images are compared by, norm and projection of the class token: unit rows [B, E]."""
        normed = self.clip.vision_model.post_layernorm(image.tokens.protected())
        return F.normalize(self.clip.visual_projection(normed), dim=-1)

    def text_embeddings(self, text: Encoded) -> Tensor:
        """What texts are compared by, norm and projection of EOT: unit rows [Q, E]."""
        normed = self.clip.text_model.final_layer_norm(text.tokens.protected())
        return F.normalize(self.clip.text_projection(normed), dim=-1)

    def logit_scale(self) -> Tensor:
        """What a cosine is multiplied by to become a logit: a scalar."""
        return self.clip.logit_scale.exp()

    def forward(
        self,
        pixel_values: Tensor,
        token_ids: Tensor,
        pruning: BatchPruning | None = None,
        align: bool = False,
    ) -> ClipForward:
        """Embed B images and the B texts that belong to them.

        pixel_values [B, 3, height, width]; token_ids [B, L]. align adds the alignment loss. Row b's prune
        temperature is that of image b and text b.
        """
        vision = self.encode_image(pixel_values, pruning.of(VISION) if pruning else None, align)
        text = self.encode_text(token_ids, pruning.of(TEXT) if pruning else None, align)
        aligned = None
        if align:
            assert vision.aligned is not None and text.aligned is not None
            aligned = alignment_loss(vision.aligned, text.aligned)
        image_embeddings, text_embeddings = self.image_embeddings(vision), self.text_embeddings(text)
        return ClipForward(image_embeddings, text_embeddings, self.logit_scale(), aligned, vision, text)
