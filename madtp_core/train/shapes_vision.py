"""Pre-training of a vision tower on synthetic scenes: what stands in every patch, and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from madtp_core.data.shapes import NUM_PATCH_LABELS
from madtp_core.images import ImageGeometry
from madtp_core.tasks.blip_network import BlipNetwork
from madtp_core.train.patches import patches_loss
from madtp_core.train.shapes_data import SceneBatch, ShapesBatches, pixel_values


class ShapesVision:
    """Trains the network's vision tower alone; head: a linear one that names every patch.

    held_out: scenes of another split, for the share of their objects' patches that is named right.
    """

    def __init__(
        self,
        network: BlipNetwork,
        head: nn.Linear,
        data: ShapesBatches,
        held_out: ShapesBatches,
        geometry: ImageGeometry,
    ) -> None:
        self.network, self.data, self.held_out = network, data, held_out
        self.geometry = geometry
        vision = network.blip.vision_model
        self.head = head
        self.modules: nn.Module = nn.ModuleDict({"vision": vision, "head": self.head})

    def batches(self) -> Dataset[SceneBatch]:
        return self.data

    def loss(self, batch: SceneBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        loss = patches_loss(self._logits(batch), batch)
        return loss, {"patch_loss": loss.item()}

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Nothing is steered."""

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        right = asked = 0
        self.modules.eval()
        steps = range(len(self.held_out.scenes) // self.held_out.batch_size)
        for batch in DataLoader(self.held_out, batch_size=None, sampler=steps):
            is_object = batch.patch_labels > 0
            named = self._logits(batch)[..., :NUM_PATCH_LABELS].argmax(-1)
            right += int((named == batch.patch_labels)[is_object].sum())
            asked += int(is_object.sum())
        return {"accuracy/object_patches": right / asked}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, directory: Path) -> None:
        """Nothing: what it trained goes on in memory, and lies in the loop's last checkpoint."""

    def _logits(self, batch: SceneBatch) -> Tensor:
        """What the head says of every patch: [B, patches, outputs] float32."""
        tokens = self.network.encode_image(pixel_values(batch.images, self.geometry)).tokens
        logits: Tensor = self.head(tokens.hidden[:, 1:]).float()
        return logits
