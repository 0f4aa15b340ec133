"""The loop: one pass over a branch's blocks, pruning as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from madtp_core.alignment import Alignment, aligned_features
from madtp_core.attention import GUIDANCE, attend
from madtp_core.blocks import Block, MemoryT
from madtp_core.pruning import BRANCHES, PER_INSTANCE, Pruned, Pruner, PruneStep
from madtp_core.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Pruning:
    """How one forward prunes: the method, each row's prune temperature [B], and the keep mode."""

    pruner: Pruner
    prune_temperature: Tensor
    keep_mode: str


@dataclass(frozen=True, eq=False)
class BatchPruning:
    """A pruner for a batch: prune_temperature [R], one a request, and the branches that it prunes."""

    pruner: Pruner
    prune_temperature: Tensor
    keep_mode: str
    branches: frozenset[str] = frozenset(BRANCHES)

    def of(self, branch: str, rows: Tensor | None = None) -> Pruning | None:
        """This branch's pruning; rows [B] names each row's request, None when they are the requests.

        None where the branch runs dense.
        """
        if branch not in self.branches:
            return None
        temperature = self.prune_temperature if rows is None else self.prune_temperature[rows]
        return Pruning(self.pruner, temperature, self.keep_mode)


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a branch leaves behind.

    tokens: the kept ones, in the layout they ran in. tokens_in, needed, kept: [blocks, B] int64, class token
    left out; needed and kept leave out the merged token that the block makes, too.
    aligned: F summed over the blocks [B, K, d_k], when asked for. appends_merged: whether a block that drops
    tokens adds one for them.
    """

    tokens: Tokens
    tokens_in: Tensor
    needed: Tensor
    kept: Tensor
    aligned: Tensor | None
    appends_merged: bool = True


@dataclass(frozen=True)
class Regime:
    """How a branch runs while it is trained.

    drop_path: the share of the rows in which the last block's two sub-layers add nothing, falling linearly to
    0 at the first block, as in BLIP; for pre-norm blocks. recomputes: a block's activations are not kept but
    computed again for the backward pass, pruning included, from the same random numbers.
    """

    drop_path: float = 0.0
    recomputes: bool = False


def encode(
    tokens: Tokens,
    blocks: Sequence[Block[MemoryT]],
    branch: str,
    *,
    pruning: Pruning | None = None,
    alignment: Alignment | None = None,
    memory: MemoryT | None = None,
    collect_aligned: bool = False,
    on_block: Callable[[Tokens], None] | None = None,
    regime: Regime | None = None,
) -> Encoded:
    """Drive the tokens through the blocks, each optionally pruned and attending to a memory.

    per_instance runs packed, max_keep padded. collect_aligned sums what the alignment loss compares. on_block
    sees what each block leaves, to draw it for instance. regime: of training; None runs as it serves.
    """
    if pruning and pruning.keep_mode == PER_INSTANCE:
        tokens = tokens.pack()
    through = _Pass(blocks, branch, pruning, alignment, memory, collect_aligned, regime or Regime())
    run: Callable[..., _Left] = through
    if through.regime.recomputes and torch.is_grad_enabled():
        run = partial(checkpoint, through, use_reentrant=False)
    aligned: Tensor | None = None
    tokens_in, needed, kept = [], [], []
    for index in range(len(blocks)):
        tokens_in.append(tokens.lengths() - 1)
        tokens, pruned, gathered = run(index, tokens)
        if pruned is not None:
            needed.append(pruned.needed)
            kept.append(pruned.kept)
        if gathered is not None:
            aligned = gathered if aligned is None else aligned + gathered
        if on_block is not None:
            on_block(tokens)
    entering = torch.stack(tokens_in)  # [blocks, B]
    if not needed:
        return Encoded(tokens, entering, entering, entering, aligned)
    merges = pruning is None or pruning.pruner.appends_merged
    return Encoded(tokens, entering, torch.stack(needed), torch.stack(kept), aligned, merges)


# What a block leaves: tokens, what it pruned, and what the alignment tokens gathered of its input.
_Left = tuple[Tokens, Pruned | None, Tensor | None]


@dataclass(frozen=True, eq=False)
class _Pass(Generic[MemoryT]):
    """One forward through a branch: what stays the same from block to block, and the way through one.

    state: of methods that accumulate over blocks.
    """

    blocks: Sequence[Block[MemoryT]]
    branch: str
    pruning: Pruning | None
    alignment: Alignment | None
    memory: MemoryT | None
    collect_aligned: bool
    regime: Regime
    state: dict[str, object] = field(default_factory=dict)

    def __call__(self, index: int, tokens: Tokens) -> _Left:
        block, pruned = self.blocks[index], None
        drop_path = self.regime.drop_path * index / max(1, len(self.blocks) - 1)
        guidance, gathered = self._read(index, tokens)
        query, key, value = block.qkv(tokens.hidden)
        context, signals = attend(query, key, value, tokens, self._needs)
        attended = block.add_attention(tokens.hidden, context)
        tokens = tokens.with_hidden(_drop_path(tokens, attended, drop_path))
        if self.pruning is not None:
            pruned = self.pruning.pruner(tokens, signals, self._step(index, self.pruning, guidance))
            tokens = pruned.tokens
        if self.memory is not None:
            tokens = tokens.with_hidden(block.add_cross_attention(tokens, self.memory, index))
        fed = block.add_mlp(tokens.hidden)
        return tokens.with_hidden(_drop_path(tokens, fed, drop_path)), pruned, gathered

    @property
    def _needs(self) -> frozenset[str]:
        return self.pruning.pruner.needs if self.pruning else frozenset()

    def _read(self, index: int, tokens: Tokens) -> tuple[Tensor | None, Tensor | None]:
        """Token attention [B, N, K] and, where it is asked for, aligned features [B, K, d_k] of a block."""
        if self.alignment is None or not (self.collect_aligned or GUIDANCE in self._needs):
            return None, None
        queries = self.alignment.queries(tokens.hidden, self.branch, index)
        guidance = tokens.to_padded(self.alignment.token_attention(queries))[:, 1:]
        if not self.collect_aligned:
            return guidance, None
        mask = None if tokens.mask is None else tokens.mask[:, 1:]
        return guidance, aligned_features(tokens.to_padded(queries)[:, 1:], guidance, mask)

    def _step(self, index: int, pruning: Pruning, guidance: Tensor | None) -> PruneStep:
        blocks, temperature = len(self.blocks), pruning.prune_temperature
        return PruneStep(self.branch, index, blocks, pruning.keep_mode, temperature, guidance, self.state)


def _drop_path(tokens: Tokens, updated: Tensor, rate: float) -> Tensor:
    """tokens.hidden and what a sub-layer added to it, the latter in a share of the rows and larger for it.

    updated: like tokens.hidden. Source: Deep Networks with Stochastic Depth (ECCV 2016), scaled in training.
    """
    if rate == 0:
        return updated
    stays = torch.rand(tokens.batch_size, device=updated.device) >= rate
    scale = (stays / (1 - rate)).to(updated.dtype).view(-1, 1, 1).expand(-1, tokens.width, 1)
    return tokens.hidden + (updated - tokens.hidden) * tokens.to_layout(scale)
