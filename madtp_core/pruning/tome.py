"""ToMe: the most similar tokens merge, pair by pair, and count as often as the tokens that they stand for.

Source: "Token Merging: Your ViT But Faster", ICLR 2023, section 3 (bipartite soft matching on the mean keys,
size-weighted merging, proportional attention), and its public code. Defined for images; a text is matched in
the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp_core.attention import KEYS, PROPORTIONAL, Signals
from madtp_core.errors import ConfigError
from madtp_core.flops import AlignmentGeometry, Scoring
from madtp_core.pruning.base import MergeScoring, Pruned, PruneStep, keep_and_absorb
from madtp_core.pruning.scheduled import ScheduledPruner
from madtp_core.tokens import Tokens


class TomePruner(ScheduledPruner):
    """Merges the best matches of every other token into their partners, at most half of what enters a block.

    Differs from the source: every block keeps a share of its tokens, not all but a fixed number; tokens stay
    in the order of their positions, which decides who is matched with whom in the next block; in a causal
    text a token merges only into a later one, so that nothing is seen too early.
    """

    needs = frozenset({KEYS, PROPORTIONAL})
    appends_merged = False

    def fewest_kept(self, entering: int) -> int:
        return entering - entering // 2

    def score(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Tensor:
        return self.decide(tokens, signals, step)[0]

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        assert signals.keys is not None
        return self._ranked(tokens, bipartite_matching(tokens, signals.keys)[0], step)

    def __call__(self, tokens: Tokens, signals: Signals, step: PruneStep) -> Pruned:
        assert signals.keys is not None
        similarity, partner = bipartite_matching(tokens, signals.keys)
        scores, needed = self._ranked(tokens, similarity, step)
        destination = torch.arange(tokens.width, device=partner.device).repeat(tokens.batch_size, 1)
        destination[:, 2::2] = partner
        return keep_and_absorb(tokens, scores, needed, step.keep_mode, destination)

    def _ranked(self, tokens: Tokens, similarity: Tensor, step: PruneStep) -> tuple[Tensor, Tensor]:
        """Importance and needed: the most similar A token matters least, whatever has no partner stays."""
        scores = similarity.new_full((len(similarity), tokens.width - 1), float("inf"))
        scores[:, 1::2] = -similarity
        mergeable = similarity.isfinite().sum(1)
        return scores, self.needed(tokens, step).maximum(tokens.lengths() - 1 - mergeable)

    def scoring(self, alignment: AlignmentGeometry | None) -> Scoring:
        widths = {name: branch.head_width for name, branch in self.geometry.branches.items()}
        if not widths:
            raise ConfigError("tome's cost follows from the width of a head: build it with a geometry")
        return MatchingScoring(widths)


def bipartite_matching(tokens: Tokens, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Each A token's most similar B token: keys [B, 1 + N, D] -> similarity, place in the row [B, N // 2].

    B are the first, third, ... token behind the protected one, A the others. The similarity is the cosine of
    the keys; -inf where there is no partner, and for padding.
    """
    directions = keys / keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    places = torch.arange(tokens.width, device=keys.device)
    of_a, of_b = places[2::2], places[1::2]
    similarity = directions[:, of_a] @ directions[:, of_b].transpose(1, 2)  # [B, |A|, |B|]
    if tokens.is_causal:
        similarity = similarity.masked_fill(of_b < of_a.unsqueeze(1), float("-inf"))
    if tokens.mask is not None:
        pairs = tokens.mask[:, of_a].unsqueeze(2) & tokens.mask[:, of_b].unsqueeze(1)
        similarity = similarity.masked_fill(~pairs, float("-inf"))
    if not len(of_a):
        return similarity.new_zeros(len(keys), 0), places.new_zeros(len(keys), 0)
    best, partner = similarity.max(-1)
    return best, of_b[partner]


@dataclass(frozen=True)
class MatchingScoring:
    """The similarities of all pairs, of width D, and the merges."""

    head_width: Mapping[str, int]

    def macs(self, branch: str, entering: int, kept: int, width: int) -> int:
        pairs = (entering // 2) * (entering - entering // 2)
        return pairs * self.head_width[branch] + MergeScoring().macs(branch, entering, kept, width)
