"""What a scene contains, as numbers to be read off one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp_core.data.shapes.scene import (
    BACKGROUNDS,
    COLOURS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
)

_VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
_COUNTS = 1 + sum(len(values) for values in _VALUES.values())  # of all objects, and of each value's


def contents_of(scene: Scene) -> list[int]:
    """The background's kind, then how many objects there are, and of each shape, colour, size, texture."""
    counts = [
        sum(getattr(thing, name) == value for thing in scene.objects)
        for name, values in _VALUES.items()
        for value in values
    ]
    return [scene.clutter, scene.num_objects, *counts]


def contents_tensor(scenes: Sequence[Scene]) -> Tensor:
    """`contents_of` each scene: int64 [B, 1 + counts]."""
    return torch.tensor([contents_of(scene) for scene in scenes])


class Contents(nn.Module):
    """A head that reads `contents_of` off a class token; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.background = nn.Linear(width, len(BACKGROUNDS))
        self.counts = nn.Linear(width, _COUNTS * (MAX_OBJECTS + 1))

    def forward(self, class_token: Tensor, contents: Tensor) -> Tensor:
        """Cross-entropy of background and counts: class_token [B, C], contents [B, 1 + counts]."""
        background = F.cross_entropy(self.background(class_token).float(), contents[:, 0])
        counts = self.counts(class_token).float().unflatten(1, (MAX_OBJECTS + 1, _COUNTS))
        return background + F.cross_entropy(counts, contents[:, 1:])
