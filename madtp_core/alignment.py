"""MAG, Multi-modality Alignment Guidance: learnable tokens that both modalities are read through.

Source: MADTP (CVPR 2024), section 3.2; the reference calls the tokens `space_dict` and, in CLIP, the maps
`query_model.q_map.0`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Alignment(nn.Module):
    """K alignment tokens, shared by the branches, and a map to their width where a branch's differs.

    tokens: [K, d_k], initialised N(0, 1). maps: per branch, one Linear(C, d_k) a block, or none where
    C = d_k and widths that are equal are not mapped, as in BLIP.
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        widths: Mapping[str, tuple[int, int]],
        *,
        maps_equal_widths: bool = False,
    ) -> None:
        """widths: branch name -> (C, number of blocks). maps_equal_widths: a map also where C = d_k."""
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_tokens, dim))
        self.maps = nn.ModuleDict(
            {
                branch: nn.ModuleList(nn.Linear(width, dim) for _ in range(blocks))
                for branch, (width, blocks) in widths.items()
                if width != dim or maps_equal_widths
            }
        )

    @property
    def num_tokens(self) -> int:
        return self.tokens.shape[0]

    @property
    def dim(self) -> int:
        return self.tokens.shape[1]

    def queries(self, hidden: Tensor, branch: str, block: int) -> Tensor:
        """Bring a block's input [..., C] to the alignment width: [..., d_k]."""
        if branch not in self.maps:
            return hidden
        maps = self.maps[branch]
        assert isinstance(maps, nn.ModuleList)
        mapped: Tensor = maps[block](hidden)
        return mapped

    def token_attention(self, queries: Tensor) -> Tensor:
        """A = q E^T, not scaled: queries [..., d_k] -> float32 [..., K]."""
        return (queries @ self.tokens.to(queries.dtype).T).float()


def aligned_features(queries: Tensor, attention: Tensor, mask: Tensor | None) -> Tensor:
    """F = softmax over tokens (A^T / sqrt(d_k)) q: what each alignment token gathers from a branch.

    queries [B, N, d_k], attention [B, N, K], mask [B, N] or None (class token left out) -> [B, K, d_k].
    """
    logits = attention.transpose(1, 2) / queries.shape[-1] ** 0.5  # [B, K, N]
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(1), float("-inf"))
    gathered: Tensor = logits.softmax(-1).to(queries.dtype) @ queries
    return gathered


def alignment_loss(vision: Tensor, text: Tensor) -> Tensor:
    """L_sim = mean over B, K of (1 - cos) between both branches' summed aligned features [B, K, d_k]."""
    return (1 - F.cosine_similarity(vision.float(), text.float(), dim=-1)).mean()
