"""What a forward costs, from token counts alone: no tracing, the same functions for every report.

Functions count multiply-adds, as fvcore and the MADTP paper's "GFLOPs" do: one multiply-add counts 1, a
LayerNorm 5 an element. Reports double them: a floating-point operation is half a multiply-add. d width, N
tokens entering a block with its class token, M tokens leaving it. Source: MADTP's reference, reproduced to
the second decimal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FLOPS_PER_MULTIPLY_ADD = 2
_NORM = 5  # fvcore's count of a LayerNorm, an element


@dataclass(frozen=True)
class VisionGeometry:
    """A ViT: its width, feed-forward width, block count, and the image it takes in pixels."""

    width: int
    mlp_width: int
    blocks: int
    patch_size: int
    image_height: int
    image_width: int

    @property
    def patches(self) -> int:
        return (self.image_height // self.patch_size) * (self.image_width // self.patch_size)


@dataclass(frozen=True)
class TextGeometry:
    """A BERT with cross-attention: memory_width is what it attends to; vocabulary is the LM head's."""

    width: int
    mlp_width: int
    blocks: int
    memory_width: int
    vocabulary: int


@dataclass(frozen=True)
class AlignmentGeometry:
    """MAG: K tokens of width dim, and whether a branch reaches that width through a map."""

    num_tokens: int
    dim: int
    vision_mapped: bool = False
    text_mapped: bool = False


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

    @property
    def token_density(self) -> float:
        """Mean over blocks of kept / dense."""
        return sum(self.kept) / (len(self.kept) * self.dense)

    def unpruned(self) -> BranchTrace:
        """The same branch with nothing dropped."""
        full = (self.dense,) * len(self.kept)
        return BranchTrace(self.dense, full, full, full)

    def as_needed(self) -> BranchTrace:
        """The trace of a request that keeps what it needs, not what its batch made it keep."""
        entering, tokens_in, kept = self.tokens_in[0], [], []
        for need in self.needed:
            tokens_in.append(entering)
            kept.append(need if entering - need > 1 else entering)  # dropping one would gain nothing
            entering = kept[-1] + (kept[-1] < entering)
        return BranchTrace(self.dense, tuple(tokens_in), tuple(kept), tuple(kept))

    def leaving(self) -> tuple[int, ...]:
        """Tokens behind the class token after each block: kept, and the merged one where any were dropped."""
        return tuple(k + (k < n) for k, n in zip(self.kept, self.tokens_in, strict=True))


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


def vision_macs(
    geometry: VisionGeometry, trace: BranchTrace, alignment: AlignmentGeometry | None = None
) -> int:
    """Multiply-adds of one image through the ViT: patch convolution, blocks, final norm, and MAG if given."""
    d, ff = geometry.width, geometry.mlp_width
    total = geometry.patches * 3 * geometry.patch_size**2 * d
    for entering, leaving in zip(trace.tokens_in, trace.leaving(), strict=True):
        n, m = entering + 1, leaving + 1
        total += 4 * n * d * d + 2 * n * n * d + 2 * m * d * ff + _NORM * (n + m) * d
    mapped = alignment is not None and alignment.vision_mapped
    return total + _NORM * (trace.leaving()[-1] + 1) * d + _scoring_macs(trace, d, alignment, mapped)


def text_encoder_macs(
    geometry: TextGeometry,
    trace: BranchTrace,
    memory_tokens: int | None,
    alignment: AlignmentGeometry | None = None,
) -> int:
    """Multiply-adds of one text through the BERT, attending to memory_tokens image tokens, if any."""
    d, ff = geometry.width, geometry.mlp_width
    total = _NORM * (trace.tokens_in[0] + 1) * d
    for entering, leaving in zip(trace.tokens_in, trace.leaving(), strict=True):
        n, m = entering + 1, leaving + 1
        total += 4 * n * d * d + 2 * n * n * d + _NORM * n * d
        if memory_tokens is not None:
            total += 2 * m * d * d + 2 * m * memory_tokens * d + _NORM * m * d
        total += 2 * m * d * ff + _NORM * m * d
    if memory_tokens is not None:
        total += memory_macs(geometry, memory_tokens)
    mapped = alignment is not None and alignment.text_mapped
    return total + _scoring_macs(trace, d, alignment, mapped)


def memory_macs(geometry: TextGeometry, memory_tokens: int) -> int:
    """Multiply-adds that project a memory's keys and values for all blocks: once, however many read it."""
    return 2 * memory_tokens * geometry.memory_width * geometry.width * geometry.blocks


def decoder_macs(geometry: TextGeometry, passes: Iterable[tuple[int, int]], memory_tokens: int) -> int:
    """Multiply-adds of decoder passes over a question of memory_tokens, its keys and values projected once.

    passes: (new tokens, tokens attended to with the cache) of every row of every step. The LM head runs on
    each new token.
    """
    d, ff = geometry.width, geometry.mlp_width
    total = geometry.blocks * 2 * memory_tokens * d * d
    for new, keys in passes:
        attention = 4 * new * d * d + 2 * new * keys * d + 2 * new * d * d + 2 * new * memory_tokens * d
        block = attention + 2 * new * d * ff + 3 * _NORM * new * d
        head = new * (d * d + _NORM * d + d * geometry.vocabulary)
        total += geometry.blocks * block + head + _NORM * new * d
    return total


def greedy_passes(steps: int, rows: int = 1) -> list[tuple[int, int]]:
    """Decoder passes of a cached search of so many steps, rows (beams) wide."""
    return [(1, step + 1) for step in range(steps) for _ in range(rows)]


def widest(traces: Sequence[BranchTrace]) -> BranchTrace:
    """The trace of a row padded to its batch: in every block as wide as the longest row, before and after."""
    tokens_in = tuple(max(block) for block in zip(*(trace.tokens_in for trace in traces), strict=True))
    leaving = tuple(max(block) for block in zip(*(trace.leaving() for trace in traces), strict=True))
    kept = tuple(m - (m < n) for m, n in zip(leaving, tokens_in, strict=True))
    return BranchTrace(max(trace.dense for trace in traces), tokens_in, kept, kept)


def attention_padding_macs(
    vision: VisionGeometry,
    text: TextGeometry,
    own: tuple[BranchTrace, BranchTrace],
    batch: tuple[BranchTrace, BranchTrace],
) -> int:
    """Multiply-adds that packed execution still spends on padding: attention alone runs at the batch's width.

    own, batch: (vision, text) traces of the request and of the widest row of each block.
    """

    def attention(vision_trace: BranchTrace, text_trace: BranchTrace) -> int:
        memory = vision_trace.leaving()[-1] + 1
        total = sum(2 * (n + 1) ** 2 * vision.width for n in vision_trace.tokens_in)
        for entering, leaving in zip(text_trace.tokens_in, text_trace.leaving(), strict=True):
            total += 2 * (entering + 1) ** 2 * text.width + 2 * (leaving + 1) * memory * text.width
        return total

    return attention(*batch) - attention(*own)


def _scoring_macs(trace: BranchTrace, width: int, alignment: AlignmentGeometry | None, mapped: bool) -> int:
    """Token attention, its map, the threshold and the merge: our own additions, always counted."""
    if alignment is None:
        return 0
    total = 0
    for entering, kept in zip(trace.tokens_in, trace.kept, strict=True):
        total += entering * alignment.dim * alignment.num_tokens + entering * alignment.num_tokens
        total += entering * width * alignment.dim if mapped else 0
        total += (entering - kept) * width
    return total
