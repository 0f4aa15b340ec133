"""What every BLIP network shares: its image and its texts, driven through our loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from madtp_core.alignment import Alignment
from madtp_core.backbones.blip import embed_image, embed_text, text_blocks, vision_blocks
from madtp_core.blocks import Block, Memory, TwinMemory
from madtp_core.decoding import TextDecoder
from madtp_core.encoder import Encoded, Pruning, Regime, encode
from madtp_core.pruning import TEXT, VISION
from madtp_core.tokens import Tokens

OnBlock = Callable[[Tokens], None]


class BlipNetwork(nn.Module):
    """A Hugging Face BLIP of some task, and its alignment tokens.

    blip owns its weights under Hugging Face's names; alignment is None for a model without MAG.
    """

    def __init__(self, blip: Any, alignment: Alignment | None = None) -> None:
        super().__init__()
        self.blip = blip
        self.alignment = alignment
        self.regimes: dict[str, Regime] = {}  # by branch; heeded in training mode alone

    def text_blocks(self) -> Sequence[Block[Any]]:
        """Adapters of the text encoder's blocks; they read a Memory unless a task's own read another kind."""
        return text_blocks(self.blip.text_encoder)

    def encode_image(
        self,
        pixel_values: Tensor,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
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
            on_block=on_block,
            regime=self.regimes.get(VISION) if self.training else None,
        )
        normed = encoded.tokens.with_hidden(vision.post_layernorm(encoded.tokens.hidden))
        return replace(encoded, tokens=normed)

    def encode_text(
        self,
        token_ids: Tensor,
        mask: Tensor | None,
        memory: Memory | TwinMemory | None = None,
        pruning: Pruning | None = None,
        collect_aligned: bool = False,
        on_block: OnBlock | None = None,
    ) -> Encoded:
        """token_ids, mask [Q, L] -> the kept tokens; memory is what they read, None for the text alone."""
        return encode(
            embed_text(self.blip.text_encoder, token_ids, mask),
            self.text_blocks(),
            TEXT,
            pruning=pruning,
            alignment=self.alignment,
            memory=memory,
            collect_aligned=collect_aligned,
            on_block=on_block,
            regime=self.regimes.get(TEXT) if self.training else None,
        )

    def remember(self, image: Encoded, reader: Tensor | None = None) -> Memory:
        """Project images once for all texts that read them; reader [Q] text -> image, None: they pair up."""
        return Memory.project(image.tokens, text_blocks(self.blip.text_encoder), reader)


def text_decoder(tower: Any) -> TextDecoder:
    """The decoder of a Hugging Face BlipTextLMHeadModel; it is never pruned."""
    start_id, end_id = tower.config.bos_token_id, tower.config.sep_token_id
    assert start_id is not None and end_id is not None
    return TextDecoder(tower.bert.embeddings, text_blocks(tower.bert), tower.cls, start_id, end_id)


def reader_of(reader: Tensor, memories: int) -> Tensor:
    """One of each memory's readers: reader [Q] -> [memories] int64; 0 for a memory that none reads."""
    readers = torch.zeros(memories, dtype=torch.int64, device=reader.device)
    readers[reader] = torch.arange(len(reader), device=reader.device)
    return readers
