"""The loop: one pass over a branch's blocks, pruning as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp_core.alignment import Alignment, aligned_features
from madtp_core.attention import GUIDANCE, attend
from madtp_core.blocks import Block, MemoryT
from madtp_core.pruning import BRANCHES, PER_INSTANCE, Pruner, PruneStep
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
) -> Encoded:
    """Drive the tokens through the blocks, each optionally pruned and attending to a memory.

    per_instance runs packed, max_keep padded. collect_aligned sums what the alignment loss compares. on_block
    sees what each block leaves, to draw it for instance.
    """
    needs = pruning.pruner.needs if pruning else frozenset()
    if pruning and pruning.keep_mode == PER_INSTANCE:
        tokens = tokens.pack()
    aligned: Tensor | None = None
    state: dict[str, object] = {}
    tokens_in, needed, kept = [], [], []
    for index, block in enumerate(blocks):
        guidance = None
        if alignment is not None and (collect_aligned or GUIDANCE in needs):
            queries = alignment.queries(tokens.hidden, branch, index)
            guidance = tokens.to_padded(alignment.token_attention(queries))[:, 1:]  # [B, N, K]
            if collect_aligned:
                mask = None if tokens.mask is None else tokens.mask[:, 1:]
                gathered = aligned_features(tokens.to_padded(queries)[:, 1:], guidance, mask)
                aligned = gathered if aligned is None else aligned + gathered
        query, key, value = block.qkv(tokens.hidden)
        context, signals = attend(query, key, value, tokens, needs)
        tokens = tokens.with_hidden(block.add_attention(tokens.hidden, context))
        tokens_in.append(tokens.lengths() - 1)
        if pruning is not None:
            step = PruneStep(
                branch, index, len(blocks), pruning.keep_mode, pruning.prune_temperature, guidance, state
            )
            pruned = pruning.pruner(tokens, signals, step)
            tokens = pruned.tokens
            needed.append(pruned.needed)
            kept.append(pruned.kept)
        if memory is not None:
            tokens = tokens.with_hidden(block.add_cross_attention(tokens, memory, index))
        tokens = tokens.with_hidden(block.add_mlp(tokens.hidden))
        if on_block is not None:
            on_block(tokens)
    entering = torch.stack(tokens_in)  # [blocks, B]
    if not needed:
        return Encoded(tokens, entering, entering, entering, aligned)
    merges = pruning is None or pruning.pruner.appends_merged
    return Encoded(tokens, entering, torch.stack(needed), torch.stack(kept), aligned, merges)
