"""What every task's model shares: its checkpoint, its pruning, and how it describes itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from madtp_core.attention import GUIDANCE
from madtp_core.calibration import Calibration
from madtp_core.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from madtp_core.config import PruningConfig
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.errors import ConfigError
from madtp_core.flops import TextGeometry, VisionGeometry
from madtp_core.image_cache import ImageCache
from madtp_core.images import ImageGeometry
from madtp_core.pruning import TEXT, VISION, BranchGeometry, Pruner, PruningGeometry, check_keep_mode
from madtp_core.tasks.cost import CostModel
from madtp_core.tasks.text import TextCodec


class PrunedModel(ABC):
    """A model ready to serve one task, dense or pruned.

    Subclasses add `predict(queries, *, prune_temperature, keep_mode)`. A row of a `per_instance` batch
    answers as it would alone; under `max_keep` a batch keeps what its neediest row needs, as in the paper.
    image_cache: keeps encoded images from one batch to the next; None, as it is at first, keeps none.
    """

    task: ClassVar[str]
    architecture: ClassVar[str] = "blip"
    network: Any
    codec: TextCodec
    cost_model: CostModel
    image_cache: ImageCache | None = None

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        if checkpoint.config.task != self.task:
            raise ConfigError(f"the checkpoint is for {checkpoint.config.task!r}, not for {self.task!r}")
        self.checkpoint = checkpoint
        self.name = name or f"{self.architecture}-{self.task}"
        self.device = torch.device(device)
        self.network = self._build_network().to(self.device).eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        pruning: PruningConfig | None = None,
    ) -> Self:
        """Load a checkpoint directory or a hub repository.

        pruning replaces the checkpoint's own: a training-free method for a model without alignment tokens,
        for instance. Raises CheckpointError, or ConfigError where the method needs what the model lacks.
        """
        checkpoint = load_checkpoint(path_or_hub_id, dtype)
        if pruning is not None:
            config = replace(checkpoint.config, pruning=pruning)
            checkpoint = replace(checkpoint, config=config, calibration=None)
        model = cls(checkpoint, name=Path(path_or_hub_id).name, device=device)
        _ = model._pruner  # a method that does not fit is refused here, not at the first request
        return model

    def save_pretrained(self, directory: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint directory that `from_pretrained`, and for its own part Hugging Face, reads."""
        save_checkpoint(self.checkpoint, Path(directory), dtype)

    @property
    def image_geometry(self) -> ImageGeometry:
        return self.checkpoint.image_geometry

    @property
    def pruning(self) -> PruningConfig | None:
        return self.checkpoint.config.pruning

    @property
    def calibration(self) -> Calibration | None:
        return self.checkpoint.calibration

    @property
    @abstractmethod
    def vision_geometry(self) -> VisionGeometry:
        """Cost geometry of the vision tower at the served image size."""

    @property
    @abstractmethod
    def text_geometry(self) -> TextGeometry:
        """Cost geometry of the text tower."""

    @classmethod
    def shape_of(cls, query: Any) -> Mapping[str, int]:
        """How many sequences of each kind a query has, where its task's queries differ in that; else {}."""
        return {}

    def calibration_of(self, shape: Mapping[str, int], keep_mode: str) -> Calibration | None:
        """The calibration in a keep mode of requests of a shape; {}: of such as it was measured on."""
        return self.calibration

    def encode_image(self, pixel_values: Tensor, pruning: Pruning | None) -> Encoded:
        """Encode images, pixel_values [B, 3, height, width]; those that the cache holds are taken from it."""

        def encode(pixels: Tensor, own: Pruning | None) -> Encoded:
            encoded: Encoded = self.network.encode_image(pixels.to(self.device), own)
            return encoded

        if self.image_cache is None:
            return encode(pixel_values, pruning)
        return self.image_cache.encode(encode, pixel_values, pruning)

    @abstractmethod
    def _build_network(self) -> nn.Module:
        """The task's network around the checkpoint's model and alignment tokens."""

    def describe(self) -> dict[str, Any]:
        """What a caller may want to know, as plain JSON values."""
        config, vision, text = self.checkpoint.config, self.vision_geometry, self.text_geometry
        return {
            "task": self.task,
            "architecture": self.architecture,
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "dtype": str(self.checkpoint.model.dtype).removeprefix("torch."),
            "image": {
                "height": vision.image_height,
                "width": vision.image_width,
                "patch_size": vision.patch_size,
            },
            "vision": {"blocks": vision.blocks, "width": vision.width, "tokens": vision.patches},
            "text": {"blocks": text.blocks, "width": text.width, "vocabulary": text.vocabulary},
            "pruning": config.to_dict()["pruning"],
            "calibration": None if self.calibration is None else self.calibration.summary(),
            "limits": {"max_text_tokens": config.max_text_tokens},
        }

    def check_image(self, pixel_values: NDArray[np.float32]) -> None:
        """Raise ConfigError unless pixel_values are one image of the served size, [3, height, width]."""
        wanted = (3, self.image_geometry.height, self.image_geometry.width)
        if pixel_values.shape != wanted:
            raise ConfigError(f"pixel_values have shape {pixel_values.shape}, expected {wanted}")

    def batch_pruning(
        self, prune_temperature: float | Sequence[float], count: int, keep_mode: str
    ) -> BatchPruning | None:
        """The pruning of count requests at one temperature, or one each; None where all are 0: dense.

        Raises ConfigError for values that are not temperatures, or where the model has no pruning.
        """
        check_keep_mode(keep_mode)
        given = (
            [prune_temperature] * count if isinstance(prune_temperature, int | float) else prune_temperature
        )
        if len(given) != count:
            raise ConfigError(f"got {len(given)} prune temperatures for {count} requests")
        if any(not value >= 0 for value in given):
            raise ConfigError(f"prune temperatures must be >= 0, got {list(given)}")
        if not any(given):
            return None
        if self.pruning is None or self._pruner is None:
            raise ConfigError(
                f"{self.name} has no pruning: serve it at prune temperature 0, choose a training-free "
                "method, or compress it with MADTP training"
            )
        temperature = torch.tensor(given, dtype=torch.float32, device=self.device)
        return BatchPruning(self._pruner, temperature, keep_mode, frozenset(self.pruning.branches))

    def with_pruner(self, wrap: Callable[[Pruner], Pruner]) -> Self:
        """The same model and weights under a pruner made from its own one, say one that also watches."""
        model = copy(self)
        model._pruner = None if self._pruner is None else wrap(self._pruner)
        return model

    @cached_property
    def _pruner(self) -> Pruner | None:
        return None if self.pruning is None else self._build_pruner(self.pruning)

    def _build_pruner(self, pruning: PruningConfig) -> Pruner:
        pruner = pruning.build(self._pruning_geometry(pruning.branches))
        if GUIDANCE in pruner.needs and self.checkpoint.alignment is None:
            raise ConfigError(
                f"{self.name} has no alignment tokens, which {pruning.method!r} needs: compress it with "
                "MADTP training first, or choose a training-free method"
            )
        return pruner

    def _pruning_geometry(self, branches: Sequence[str]) -> PruningGeometry:
        """What static methods must know of the branches that they prune."""
        costs, config = self.cost_model, self.checkpoint.model.config
        image = costs.vision
        grid = image.image_height // image.patch_size, image.image_width // image.patch_size
        parts = {VISION: (config.vision_config, grid), TEXT: (config.text_config, None)}
        geometries = {
            branch: BranchGeometry(
                partial(costs.branch_macs, branch),
                part.num_hidden_layers,
                part.hidden_size // part.num_attention_heads,
                patches,
                partial(costs.whole.branch_macs, branch),
            )
            for branch, (part, patches) in parts.items()
            if branch in branches
        }
        return PruningGeometry(geometries, costs.alignment)
