"""What a forward costs, from token counts alone: no tracing, the same functions for every report.

Functions count multiply-adds, as fvcore and the MADTP paper's "GFLOPs" do: one multiply-add counts 1, a
LayerNorm 5 an element. Reports double them: a floating-point operation is half a multiply-add. d width, N
tokens entering a block with its class token, M tokens leaving it. Source: MADTP's reference, reproduced to
the second decimal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

FLOPS_PER_MULTIPLY_ADD = 2
_NORM = 5  # fvcore's count of a LayerNorm, an element


@dataclass(frozen=True)
class BlockWidths:
    """How wide one block is inside: heads x D of its attention, and its feed-forward units.

    cross: heads x D of what reads a memory, one for each memory; () where a block reads none.
    """

    attention: int
    mlp: int
    cross: tuple[int, ...] = ()


@dataclass(frozen=True)
class VisionGeometry:
    """A ViT: its width, feed-forward width, block count, and the image it takes in pixels.

    inner: of every block, where parameters were pruned; () where all blocks are whole.
    """

    width: int
    mlp_width: int
    blocks: int
    patch_size: int
    image_height: int
    image_width: int
    inner: tuple[BlockWidths, ...] = ()

    @property
    def patches(self) -> int:
        return (self.image_height // self.patch_size) * (self.image_width // self.patch_size)

    @cached_property
    def block_widths(self) -> tuple[BlockWidths, ...]:
        """Of every block, whole or pruned."""
        return self.inner or (BlockWidths(self.width, self.mlp_width),) * self.blocks

    def whole(self) -> VisionGeometry:
        """The same tower before parameters were pruned."""
        return replace(self, inner=())


@dataclass(frozen=True)
class TextGeometry:
    """A text tower; memory_width is what it attends to, vocabulary its LM head's, 0 where it has none.

    inner: of every block, where parameters were pruned; () where all blocks are whole.
    """

    width: int
    mlp_width: int
    blocks: int
    memory_width: int = 0
    vocabulary: int = 0
    inner: tuple[BlockWidths, ...] = ()

    @cached_property
    def block_widths(self) -> tuple[BlockWidths, ...]:
        """Of every block, whole or pruned; a whole one may read two memories."""
        return self.inner or (BlockWidths(self.width, self.mlp_width, (self.width,) * 2),) * self.blocks

    def whole(self) -> TextGeometry:
        """The same tower before parameters were pruned."""
        return replace(self, inner=())


class Scoring(Protocol):
    """What a pruning method itself spends."""

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        """Multiply-adds of scoring and merging one block's tokens, class token left out; width is C.

        Sums of products count, as everywhere here; means, norms and maxima of what is there do not.
        """


@dataclass(frozen=True)
class AlignmentGeometry:
    """MAG: K tokens of width dim, and whether a branch reaches that width through a map."""

    num_tokens: int
    dim: int
    vision_mapped: bool = False
    text_mapped: bool = False

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        """Token attention, its map, the threshold and the merge: what MADTP spends on a block."""
        threshold = entering * self.num_tokens
        return self.attention_macs(branch, entering, width) + threshold + (entering - kept) * width

    def attention_macs(self, branch: str, entering: int, width: int) -> int:
        """Token attention and its map alone."""
        mapped = self.vision_mapped if branch == "vision" else self.text_mapped
        return entering * self.dim * self.num_tokens + mapped * entering * width * self.dim


@dataclass(frozen=True)
class BranchTrace:
    """One request's tokens in one branch, an entry a block; class token and padding left out.

    dense: tokens of the unpruned branch. tokens_in counts merged tokens, needed and kept do not; where a
    block pruned nothing, needed = kept = tokens_in.
    """

    dense: int
    tokens_in: tuple[int, ...]
    needed: tuple[int, ...]
    kept: tuple[int, ...]
    appends_merged: bool = True

    @property
    def token_density(self) -> float:
        """Mean over blocks of kept / dense."""
        return sum(self.kept) / (len(self.kept) * self.dense)

    def unpruned(self) -> BranchTrace:
        """The same branch with nothing dropped."""
        full = (self.dense,) * len(self.kept)
        return BranchTrace(self.dense, full, full, full, self.appends_merged)

    def as_needed(self) -> BranchTrace:
        """The trace of a request that keeps what it needs, not what its batch made it keep."""
        entering, tokens_in, kept = self.tokens_in[0], [], []
        for need in self.needed:
            tokens_in.append(entering)
            gains = entering - need > self.appends_merged  # dropping one to append one would not
            kept.append(need if gains else entering)
            entering = kept[-1] + (self.appends_merged and kept[-1] < entering)
        return BranchTrace(self.dense, tuple(tokens_in), tuple(kept), tuple(kept), self.appends_merged)

    def leaving(self) -> tuple[int, ...]:
        """Tokens behind the class token after each block: kept, and the merged one where any were dropped."""
        return tuple(
            k + (self.appends_merged and k < n) for k, n in zip(self.kept, self.tokens_in, strict=True)
        )


@dataclass(frozen=True)
class RequestCost:
    """Floating-point operations of one request, two a multiply-add.

    flops: spent, padding left out. dense_flops: the same request and answer unpruned. needed_flops: had it
    kept only what it needed. padded_flops: what running it in its batch really took, padding included.
    """

    flops: int
    dense_flops: int
    needed_flops: int
    padded_flops: int

    @property
    def flops_ratio(self) -> float:
        return self.flops / self.dense_flops

    @property
    def flops_reduction(self) -> float:
        return 1 - self.flops_ratio


def vision_macs(geometry: VisionGeometry, trace: BranchTrace, scoring: Scoring | None = None) -> int:
    """Multiply-adds of one image through BLIP's ViT: patches, blocks, final norm, and scoring if given."""
    d = geometry.width
    patches = geometry.patches * 3 * geometry.patch_size**2 * d
    blocks = _tower_macs("vision", trace, geometry, scoring)
    return patches + blocks + _NORM * (trace.leaving()[-1] + 1) * d


def clip_vision_macs(
    geometry: VisionGeometry, trace: BranchTrace, embedding_width: int, scoring: Scoring | None = None
) -> int:
    """Multiply-adds of one image through CLIP's ViT, which norms before the first block, to its embedding."""
    d = geometry.width
    patches = geometry.patches * 3 * geometry.patch_size**2 * d + _NORM * (geometry.patches + 1) * d
    blocks = _tower_macs("vision", trace, geometry, scoring)
    return patches + blocks + _NORM * d + linear_macs(d, embedding_width)  # of the class token


def clip_text_macs(
    geometry: TextGeometry, trace: BranchTrace, embedding_width: int, scoring: Scoring | None = None
) -> int:
    """Multiply-adds of one text through CLIP's causal tower to its embedding; EOT is its protected token.

    Attention counts whole, as fvcore counts it: what causality masks out is not subtracted.
    """
    d = geometry.width
    blocks = _tower_macs("text", trace, geometry, scoring)
    return blocks + _NORM * d + linear_macs(d, embedding_width)  # of EOT


def text_encoder_macs(
    geometry: TextGeometry,
    trace: BranchTrace,
    memory_tokens: int | None,
    scoring: Scoring | None = None,
) -> int:
    """Multiply-adds of one text through the BERT, attending to memory_tokens image tokens, if any."""
    d = geometry.width
    total = _NORM * (trace.tokens_in[0] + 1) * d + _tower_macs("text", trace, geometry, scoring)
    if memory_tokens is None:
        return total
    for leaving, widths in zip(trace.leaving(), geometry.block_widths, strict=True):
        m = leaving + 1
        total += _cross_attention_macs(d, widths.cross[0], m, memory_tokens) + _NORM * m * d
    return total + memory_macs(geometry, memory_tokens)


def twin_text_encoder_macs(
    geometry: TextGeometry,
    trace: BranchTrace,
    memory_tokens: tuple[int, int],
    merge_start: int,
    scoring: Scoring | None = None,
) -> int:
    """Multiply-adds of one text through NLVR2's BERT, whose every block reads two images side by side.

    memory_tokens: of each image. From block merge_start on a layer merges what was read; before, the mean.
    """
    d = geometry.width
    total = text_encoder_macs(geometry, trace, None, scoring)
    for block, (leaving, widths) in enumerate(zip(trace.leaving(), geometry.block_widths, strict=True)):
        m = leaving + 1
        for inner, memory in zip(widths.cross, memory_tokens, strict=True):
            total += _cross_attention_macs(d, inner, m, memory)
        total += _NORM * m * d + (linear_macs(2 * d, d, rows=m) if block >= merge_start else 0)
    return total + sum(memory_macs(geometry, memory, side) for side, memory in enumerate(memory_tokens))


def memory_macs(geometry: TextGeometry, memory_tokens: int, side: int = 0) -> int:
    """Multiply-adds that project a memory's keys and values for all blocks: once, however many read it.

    side: which memory it is, of a tower that reads two.
    """
    inner = sum(widths.cross[side] for widths in geometry.block_widths)
    return 2 * memory_tokens * geometry.memory_width * inner


def decoder_macs(
    geometry: TextGeometry,
    passes: Iterable[tuple[int, int]],
    memory_tokens: int,
    memory_width: int | None = None,
) -> int:
    """Multiply-adds of decoder passes over one memory of memory_tokens, its keys and values projected once.

    passes: (new tokens, tokens attended to with the cache) of every row of every step; (L, L) is a
    teacher-forced text. The LM head runs on each new token. memory_width: of what is read, the decoder's own
    width (a question's states) unless given (an image's: `geometry.memory_width`).
    """
    d, widths = geometry.width, geometry.block_widths
    attention, cross, mlp = (  # products grow with the widths, so those of all blocks are counted at once
        sum(block.attention for block in widths),
        sum(block.cross[0] for block in widths),
        sum(block.mlp for block in widths),
    )
    norms = 1 + 3 * geometry.blocks
    total = 2 * memory_tokens * (memory_width or d) * cross
    for new, keys in passes:
        total += _attention_macs(d, attention, new, keys) + linear_macs(d, mlp, d, rows=new)
        total += _cross_attention_macs(d, cross, new, memory_tokens)
        total += norms * _NORM * new * d + lm_head_macs(geometry, new)
    return total


def lm_head_macs(geometry: TextGeometry, tokens: int) -> int:
    """Multiply-adds of BERT's language-model head on so many tokens: transform, norm, vocabulary."""
    d = geometry.width
    return linear_macs(d, d, geometry.vocabulary, rows=tokens) + _NORM * tokens * d


def linear_macs(*widths: int, rows: int = 1) -> int:
    """Multiply-adds of linear layers one after another, from width to width, on so many rows.

    Heads and projections are such chains, and so are similarities: a query against so many keys.
    """
    return rows * sum(inputs * outputs for inputs, outputs in pairwise(widths))


def greedy_passes(steps: int, rows: int = 1, first: int = 1) -> list[tuple[int, int]]:
    """Decoder passes of a cached search of so many steps, rows (beams) wide; first: tokens it starts from."""
    return [(1 if step else first, first + step) for step in range(steps) for _ in range(rows)]


def widest(traces: Sequence[BranchTrace]) -> BranchTrace:
    """The trace of a row padded to its batch: in every block as wide as the longest row, before and after."""
    tokens_in = tuple(max(block) for block in zip(*(trace.tokens_in for trace in traces), strict=True))
    leaving = tuple(max(block) for block in zip(*(trace.leaving() for trace in traces), strict=True))
    merges = traces[0].appends_merged
    kept = tuple(m - (merges and m < n) for m, n in zip(leaving, tokens_in, strict=True))
    return BranchTrace(max(trace.dense for trace in traces), tokens_in, kept, kept, merges)


def _tower_macs(
    branch: str, trace: BranchTrace, geometry: VisionGeometry | TextGeometry, scoring: Scoring | None
) -> int:
    """Self-attention, pruning and MLP of all blocks with their norms, the protected token counted in."""
    total, d = 0, geometry.width
    counts = zip(trace.tokens_in, trace.kept, trace.leaving(), geometry.block_widths, strict=True)
    for entering, kept, leaving, widths in counts:
        n, m = entering + 1, leaving + 1
        total += _attention_macs(d, widths.attention, n, n) + linear_macs(d, widths.mlp, d, rows=m)
        total += _NORM * (n + m) * d
        if scoring is not None:
            total += scoring.macs(branch, entering, kept, d)
    return total


def _attention_macs(d: int, inner: int, n: int, keys: int) -> int:
    """Projections of n tokens and their attention to so many keys, inner = heads x D, without the norm."""
    return 4 * n * d * inner + 2 * n * keys * inner


def _cross_attention_macs(d: int, inner: int, m: int, memory_tokens: int) -> int:
    """Query and output projections of m tokens and their attention, without the norm and `memory_macs`."""
    return 2 * m * d * inner + 2 * m * memory_tokens * inner
