"""The vision tower that is measured, and the pruner that makes noise spend a wanted share.

The weights are scrambled: they cost what trained ones cost, but no prune temperature makes them spend
a wanted share, and no image is harder than another. So the pruned forwards keep scheduled counts, and every
block pays for MADTP's whole scoring: token attention, attention signals, importance, threshold, ranking and
merge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from madtp_core.alignment import Alignment
from madtp_core.attention import Signals
from madtp_core.backbones.blip import (
    blip_config,
    build_blip_vision,
    embed_image,
    scramble,
    vision_blocks,
    vision_geometry,
)
from madtp_core.encoder import Encoded, Pruning, encode
from madtp_core.flops import AlignmentGeometry, BranchTrace
from madtp_core.pruning import MAX_KEEP, VISION, PruneStep
from madtp_core.pruning.madtp import MadtpPruner
from madtp_core.tokens import Tokens

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEOMETRIES = {  # options of blip_config, and MAG's K; d_k is the width
    "base": ({"width": 768, "heads": 12, "vision_blocks": 12, "image_size": 384, "patch_size": 16}, 100),
    "tiny": ({"width": 32, "heads": 4, "vision_blocks": 4, "image_size": 64, "patch_size": 8}, 8),
}


class RowSchedulePruner(MadtpPruner):
    """MADTP that scores in full, threshold included, and then needs a scheduled count: each row its own.

    counts: [B, blocks] int64, or [1, blocks] for all rows; class and merged token left out.
    """

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.counts = counts

    def decide(self, tokens: Tokens, signals: Signals, step: PruneStep) -> tuple[Tensor, Tensor]:
        importance, _ = super().decide(tokens, signals, step)
        return importance, (tokens.lengths() - 1).minimum(self.counts[:, step.block])


class VisionTower:
    """A BLIP vision tower with scrambled weights and alignment tokens, and the forwards that are compared."""

    def __init__(self, geometry: str, device: torch.device) -> None:
        options, alignment_tokens = GEOMETRIES[geometry]
        width, size = options["width"], options["image_size"]
        config = blip_config(**options)
        self.model: Any = build_blip_vision(config)
        self.alignment = Alignment(alignment_tokens, width, {VISION: (width, options["vision_blocks"])})
        self.geometry = vision_geometry(config.vision_config, size, size)
        self.alignment_geometry = AlignmentGeometry(alignment_tokens, width)
        for module in self.modules:
            scramble(module)
            module.to(device=device).eval()
        self.device = device

    @property
    def modules(self) -> tuple[nn.Module, nn.Module]:
        """What holds weights."""
        return self.model, self.alignment

    def images(self, batch: int, dtype: str) -> Tensor:
        """Noise [B, 3, height, width] for weights of this dtype, to which the tower is brought."""
        for module in self.modules:
            module.to(dtype=DTYPES[dtype])
        shape = (batch, 3, self.geometry.image_height, self.geometry.image_width)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return noise.to(self.device, DTYPES[dtype])

    def hugging_face(self, pixel_values: Tensor) -> Tensor:
        """Hugging Face's own forward, whose attention is an explicit softmax."""
        hidden: Tensor = self.model(pixel_values).last_hidden_state
        return hidden

    def dense(self, pixel_values: Tensor) -> Encoded:
        """Our forward over torch's fused attention."""
        return self._encode(pixel_values, None)

    def pruned(
        self, pixel_values: Tensor, schedules: Sequence[Sequence[int]], keep_mode: str = MAX_KEEP
    ) -> Encoded:
        """Our forward, every row pruned to its schedule, or all rows to a single one."""
        counts = torch.tensor(schedules, device=self.device)
        on = torch.ones(len(pixel_values), device=self.device)
        return self._encode(pixel_values, Pruning(RowSchedulePruner(counts), on, keep_mode))

    def _encode(self, pixel_values: Tensor, pruning: Pruning | None) -> Encoded:
        tokens, blocks = embed_image(self.model, pixel_values), vision_blocks(self.model)
        encoded = encode(tokens, blocks, VISION, pruning=pruning, alignment=self.alignment)
        normed = encoded.tokens.with_hidden(self.model.post_layernorm(encoded.tokens.hidden))
        return Encoded(normed, encoded.tokens_in, encoded.needed, encoded.kept, None)


def assert_kept(encoded: Encoded, traces: Sequence[BranchTrace]) -> None:
    """Assert that a forward kept what its multiply-adds are counted for, row by row, and stayed finite."""
    assert encoded.tokens_in.T.tolist() == [list(trace.tokens_in) for trace in traces]
    assert encoded.kept.T.tolist() == [list(trace.kept) for trace in traces]
    assert bool(encoded.tokens.hidden.isfinite().all())
