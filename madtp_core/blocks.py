"""One adapter per Hugging Face block kind: the loop in `encoder` never knows which kind it drives.

An adapter owns no weights. It takes hidden states as padded [B, N, C] or packed [T, C] alike; what differs
between pre-norm and post-norm blocks, and between names, ends here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from madtp_core.attention import cross_attend
from madtp_core.errors import ConfigError
from madtp_core.tokens import Tokens


class Block(Protocol):
    """What the encoder loop needs of a transformer block."""

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [..., C] -> query, key, value [..., H, D]."""

    def add_attention(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Project the attention context [..., C] and add it to hidden [..., C]."""

    def add_cross_attention(self, tokens: Tokens, memory: Memory, block: int) -> Tensor:
        """Attend to a memory and add the result; returns hidden in the tokens' layout."""

    def add_mlp(self, hidden: Tensor) -> Tensor:
        """Add the feed-forward part to hidden [..., C]."""


class CrossBlock(Block, Protocol):
    """A block with cross-attention."""

    def cross_key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project a memory [..., C_memory] to key, value [..., H, D]."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What text attends to, its keys and values projected once per memory, not once per reader.

    keys, values: one [M, L, H, D] a block. mask: [M, L] or None. reader: [B] row -> memory, None when M = B.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    reader: Tensor | None = None

    @classmethod
    def project(cls, tokens: Tokens, blocks: list[CrossBlock], reader: Tensor | None = None) -> Memory:
        """Project the tokens of M memories for every block that will read them."""
        pairs = [block.cross_key_value(tokens.hidden) for block in blocks]
        keys = tuple(tokens.to_padded(key) for key, _ in pairs)
        values = tuple(tokens.to_padded(value) for _, value in pairs)
        return cls(keys, values, tokens.mask, reader)

    def read_by(self, reader: Tensor) -> Memory:
        """The same memories under other readers: reader [B'] -> memory index."""
        return Memory(self.keys, self.values, self.mask, reader)

    def for_block(self, block: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Key, value [B, L, H, D] and mask [B, L] for one block, a row for each reader."""
        key, value, mask = self.keys[block], self.values[block], self.mask
        if self.reader is None:
            return key, value, mask
        return key[self.reader], value[self.reader], None if mask is None else mask[self.reader]


class BlipVisionBlock:
    """`transformers` BlipEncoderLayer: pre-norm, fused qkv."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.heads: int = self.layer.self_attn.num_heads

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed = self.layer.self_attn.qkv(self.layer.layer_norm1(hidden))
        query, key, value = mixed.unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return query, key, value

    def add_attention(self, hidden: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.layer.self_attn.projection(context) + hidden
        return out

    def add_cross_attention(self, tokens: Tokens, memory: Memory, block: int) -> Tensor:
        raise ConfigError("a BLIP vision block has no cross-attention; call the encoder without a memory")

    def add_mlp(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer.mlp(self.layer.layer_norm2(hidden)) + hidden
        return out


class BlipTextBlock:
    """`transformers` BlipTextLayer: post-norm BERT with cross-attention."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.heads: int = self.layer.attention.self.num_attention_heads

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention = self.layer.attention.self
        return (
            self._heads(attention.query(hidden)),
            self._heads(attention.key(hidden)),
            self._heads(attention.value(hidden)),
        )

    def add_attention(self, hidden: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.layer.attention.output(context, hidden)
        return out

    def cross_key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        attention = self.layer.crossattention.self
        return self._heads(attention.key(memory)), self._heads(attention.value(memory))

    def add_cross_attention(self, tokens: Tokens, memory: Memory, block: int) -> Tensor:
        query = tokens.to_padded(self._heads(self.layer.crossattention.self.query(tokens.hidden)))
        context = cross_attend(query, *memory.for_block(block))  # [B, N, C]
        out: Tensor = self.layer.crossattention.output(tokens.to_layout(context), tokens.hidden)
        return out

    def add_mlp(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer.feed_forward_chunk(hidden)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)  # [..., H, D]
