"""One adapter per Hugging Face block kind: the loop in `encoder` never knows which kind it drives.

An adapter owns no weights. It takes hidden states as padded [B, N, C] or packed [T, C] alike; what differs
between pre-norm and post-norm blocks, and between names, ends here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from madtp_core.attention import cross_attend
from madtp_core.errors import ConfigError
from madtp_core.flops import BlockWidths
from madtp_core.packed import attend_runs, runs_of
from madtp_core.tokens import Tokens, unpack_rows

MemoryT = TypeVar("MemoryT", contravariant=True)  # what a block's cross-attention reads


class Block(Protocol[MemoryT]):
    """What the encoder loop needs of a transformer block."""

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """hidden [..., C] -> query, key, value [..., H, D]."""

    def add_attention(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Project the attention context [..., C] and add it to hidden [..., C]."""

    def add_cross_attention(self, tokens: Tokens, memory: MemoryT, block: int) -> Tensor:
        """Attend to a memory and add the result; returns hidden in the tokens' layout."""

    def add_mlp(self, hidden: Tensor) -> Tensor:
        """Add the feed-forward part to hidden [..., C]."""


class Measured(Protocol):
    """What costs are counted from: a block that says how wide it is inside."""

    @property
    def widths(self) -> BlockWidths:
        """Those of its linear layers as they are, from which parameters may have been pruned."""


class CrossReader(Protocol):
    """What reads a memory: a block with cross-attention, or one side of a block that reads two."""

    def cross_key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Project a memory [..., C_memory] to key, value [..., H, D]."""


@dataclass(frozen=True, eq=False)
class Memory:
    """What text attends to, its keys and values projected once per memory, not once per reader.

    keys, values: one [M, L, H, D] a block, or [T, H, D] where memories of different lengths lie packed, one
    after another. mask: [M, L] or None. reader: [B] row -> memory, None when M = B.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None
    reader: Tensor | None = None
    is_packed: bool = False

    @classmethod
    def project(cls, tokens: Tokens, blocks: Sequence[CrossReader], reader: Tensor | None = None) -> Memory:
        """Project the tokens of M memories for every block that will read them."""
        is_packed = tokens.is_packed and tokens.mask is not None
        pairs = [block.cross_key_value(tokens.hidden) for block in blocks]
        if not is_packed:
            pairs = [(tokens.to_padded(key), tokens.to_padded(value)) for key, value in pairs]
        keys, values = (tuple(pair[side] for pair in pairs) for side in (0, 1))
        return cls(keys, values, tokens.mask, reader, is_packed)

    def read_by(self, reader: Tensor) -> Memory:
        """The same memories under other readers: reader [B'] -> memory index."""
        return replace(self, reader=reader)

    def read(self, query: Tensor, tokens: Tokens, block: int) -> Tensor:
        """What the tokens' queries [..., H, D] gather from a block's memories: [..., C] in their layout.

        Without gradients, and unless the memories are padded, each row attends to its own length, and
        neighbours that read the same memory attend as one.
        """
        if torch.is_grad_enabled() or (self.mask is not None and not self.is_packed):
            return tokens.to_layout(cross_attend(tokens.to_padded(query), *self.for_block(block)))
        key, value = self.keys[block], self.values[block]
        memory_lengths = [key.shape[1]] * len(key) if self.mask is None else self.mask.sum(1).tolist()
        if not self.is_packed:
            key, value = key.flatten(0, 1), value.flatten(0, 1)
        lengths = tokens.row_lengths() if tokens.is_packed else [tokens.width] * tokens.batch_size
        reader = None if self.reader is None else self.reader.tolist()
        context = attend_runs(query.flatten(0, -3), key, value, runs_of(lengths, memory_lengths, reader))
        return context.view_as(query).flatten(-2)

    def for_block(self, block: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Key, value [B, L, H, D] and mask [B, L] for one block, a row for each reader."""
        key, value = self.keys[block], self.values[block]
        if self.is_packed:
            assert self.mask is not None
            key, value = unpack_rows(key, self.mask), unpack_rows(value, self.mask)
        if self.reader is None:
            return key, value, self.mask
        return key[self.reader], value[self.reader], None if self.mask is None else self.mask[self.reader]


class BlipVisionBlock:
    """`transformers` BlipEncoderLayer: pre-norm, fused qkv."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.heads: int = self.layer.self_attn.num_heads

    @property
    def widths(self) -> BlockWidths:
        return BlockWidths(self.layer.self_attn.projection.in_features, self.layer.mlp.fc2.in_features)

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


class ClipBlock:
    """`transformers` CLIPEncoderLayer, of either tower: pre-norm, separate q, k, v."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.heads: int = self.layer.self_attn.num_heads

    @property
    def widths(self) -> BlockWidths:
        return BlockWidths(self.layer.self_attn.out_proj.in_features, self.layer.mlp.fc2.in_features)

    def qkv(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        attention, normed = self.layer.self_attn, self.layer.layer_norm1(hidden)
        return (
            self._heads(attention.q_proj(normed)),
            self._heads(attention.k_proj(normed)),
            self._heads(attention.v_proj(normed)),
        )

    def add_attention(self, hidden: Tensor, context: Tensor) -> Tensor:
        out: Tensor = self.layer.self_attn.out_proj(context) + hidden
        return out

    def add_cross_attention(self, tokens: Tokens, memory: Memory, block: int) -> Tensor:
        raise ConfigError("a CLIP block has no cross-attention; call the encoder without a memory")

    def add_mlp(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer.mlp(self.layer.layer_norm2(hidden)) + hidden
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)  # [..., H, D]


class BertBlock:
    """The part of a post-norm BERT layer that does not depend on what it reads."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.heads: int = self.layer.attention.self.num_attention_heads

    @property
    def widths(self) -> BlockWidths:
        attention, output = self.layer.attention.output.dense, self.layer.output.dense
        return BlockWidths(attention.in_features, output.in_features, self._cross_widths())

    def _cross_widths(self) -> tuple[int, ...]:
        """heads x D of what reads each memory."""
        return ()

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

    def add_mlp(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer.feed_forward_chunk(hidden)
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1)  # [..., H, D]


class BlipTextBlock(BertBlock):
    """`transformers` BlipTextLayer: post-norm BERT with cross-attention."""

    def _cross_widths(self) -> tuple[int, ...]:
        return (self.layer.crossattention.output.dense.in_features,)

    @property
    def cross(self) -> BlipCrossAttention:
        return BlipCrossAttention(self.layer.crossattention.self)

    def cross_key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.cross.cross_key_value(memory)

    def add_cross_attention(self, tokens: Tokens, memory: Memory, block: int) -> Tensor:
        context = self.cross.read(tokens, memory, block)
        out: Tensor = self.layer.crossattention.output(context, tokens.hidden)
        return out


class BlipCrossAttention:
    """`transformers` BlipTextSelfAttention over a memory, up to the context: no output projection."""

    def __init__(self, attention: Any) -> None:
        self.attention = attention

    def cross_key_value(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.attention.key(memory)), self._heads(self.attention.value(memory))

    def read(self, tokens: Tokens, memory: Memory, block: int) -> Tensor:
        """What the tokens gather from the memory: the context [..., C] in their layout."""
        return memory.read(self._heads(self.attention.query(tokens.hidden)), tokens, block)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.attention.num_attention_heads, -1)  # [..., H, D]


@dataclass(frozen=True, eq=False)
class TwinMemory:
    """The two images that a statement is about, each projected once by the twins that read it."""

    sides: tuple[Memory, Memory]

    @classmethod
    def project(cls, images: tuple[Tokens, Tokens], blocks: Sequence[TwinTextBlock]) -> TwinMemory:
        """Project the tokens of the M first and the M second images for every block."""
        first, second = (
            Memory.project(tokens, [block.twins[side] for block in blocks])
            for side, tokens in enumerate(images)
        )
        return cls((first, second))


class TwinTextBlock(BertBlock):
    """NLVR2's text layer (`backbones.nlvr`): BERT whose cross-attention reads two images through twins."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        cross = layer.crossattention
        self.twins = BlipCrossAttention(cross.self0), BlipCrossAttention(cross.self1)

    def _cross_widths(self) -> tuple[int, ...]:
        output = self.layer.crossattention.output
        return output.dense0.in_features, output.dense1.in_features

    def add_cross_attention(self, tokens: Tokens, memory: TwinMemory, block: int) -> Tensor:
        twins = zip(self.twins, memory.sides, strict=True)
        contexts = [twin.read(tokens, side, block) for twin, side in twins]  # 2 of [..., C]
        out: Tensor = self.layer.crossattention.output(contexts, tokens.hidden)
        return out
