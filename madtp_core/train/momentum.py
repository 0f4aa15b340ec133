"""Contrastive learning against a queue of past embeddings, with soft targets from a momentum copy.

Source: MoCo (CVPR 2020) for the copy and the queue, ALBEF (NeurIPS 2021), section 3.2 and equation 6, for the
soft targets; BLIP and the MADTP reference train retrieval and CLIP so.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp_core.alignment import Alignment
from madtp_core.errors import ConfigError

NO_KEY = -100  # of a place in the queue that no picture has taken yet


@dataclass(frozen=True)
class MomentumConfig:
    """The copy and the queue.

    momentum: weight of the copy's own past in a step. queue: embeddings kept of either kind; 0 compares
    within the batch alone. soft_targets: weight of the copy's similarities in the targets, reached linearly
    over soft_ramp_steps; the rest says which texts belong to which image. BLIP ramps over the first epoch.
    """

    momentum: float = 0.995
    queue: int = 57_600
    soft_targets: float = 0.4
    soft_ramp_steps: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1 or self.queue < 0 or not 0 <= self.soft_targets < 1:
            raise ConfigError(f"need momentum and soft_targets in [0, 1) and queue >= 0, got {self}")

    def soft_share_at(self, step: int) -> float:
        """The weight of the copy's similarities at a step."""
        return self.soft_targets * (min(1.0, step / self.soft_ramp_steps) if self.soft_ramp_steps else 1.0)


class MomentumCopy(nn.Module):
    """A copy of a network that follows it slowly and learns nothing itself.

    Its alignment tokens are the network's own, as in the reference; maps to them are copied.
    """

    network: Any

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.network = deepcopy(network).requires_grad_(False)
        own, copied = (getattr(module, "alignment", None) for module in (network, self.network))
        if isinstance(own, Alignment) and isinstance(copied, Alignment):
            copied.tokens = own.tokens

    @torch.no_grad()
    def follow(self, network: nn.Module) -> None:
        """Move towards the network: p_m <- momentum * p_m + (1 - momentum) * p."""
        for own, leader in zip(self.network.parameters(), network.parameters(), strict=True):
            if own is not leader:
                own.lerp_(leader, 1 - self.momentum)


class Queue(nn.Module):
    """The last momentum embeddings of images and texts, and of which picture they are.

    images, texts: unit rows [size, E]; keys [size] int64, `NO_KEY` where nothing stands yet, where the rows
    are random directions as in the original. place: where the next one goes.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)  # alike in every process
        self.images: Tensor
        self.texts: Tensor
        self.keys: Tensor
        self.place: Tensor
        for name in ("images", "texts"):
            rows = F.normalize(torch.randn(size, width, generator=generator), dim=-1)
            self.register_buffer(name, rows)
        self.register_buffer("keys", torch.full((size,), NO_KEY))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def behind(self, images: Tensor, texts: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch's rows [G, E] and keys [G] with all of the queue behind them: [G + size, ...]."""
        return (
            torch.cat([images, self.images]),
            torch.cat([texts, self.texts]),
            torch.cat([keys, self.keys]),
        )

    @torch.no_grad()
    def push(self, images: Tensor, texts: Tensor, keys: Tensor) -> None:
        """Put a batch in the place of the oldest ones; of a batch larger than the queue, its end stays."""
        size = len(self.keys)
        if size == 0:
            return
        places = (int(self.place) + torch.arange(len(keys), device=keys.device))[-size:] % size
        self.images[places], self.texts[places] = images[-size:], texts[-size:]
        self.keys[places] = keys[-size:]
        self.place.copy_((self.place + len(keys)) % size)


def soft_targets(keys: Tensor, candidate_keys: Tensor, momentum_logits: Tensor, soft_share: float) -> Tensor:
    """What each row should find: (1 - s) * its own picture's candidates alike + s * the copy's softmax.

    keys [B], candidate_keys [M], momentum_logits [B, M] -> [B, M], rows sum to one.
    """
    belongs = (keys.unsqueeze(1) == candidate_keys).float()
    hard = belongs / belongs.sum(1, keepdim=True)
    return soft_share * momentum_logits.softmax(1) + (1 - soft_share) * hard


def contrastive_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of rows [B, M] with soft targets [B, M], in the mean."""
    return -(logits.log_softmax(1) * targets).sum(1).mean()
