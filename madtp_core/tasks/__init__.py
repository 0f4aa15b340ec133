"""The tasks: one class of model each, found by the name that a checkpoint gives its task."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from madtp_core.checkpoint import read_config
from madtp_core.config import PruningConfig

if TYPE_CHECKING:
    from madtp_core.tasks.base import PrunedModel

# Imported when asked for: serving one task loads the code of no other.
_MODELS = {
    "vqa": ("madtp_core.tasks.vqa", "BlipVqa"),
    "caption": ("madtp_core.tasks.caption", "BlipCaption"),
    "retrieval": ("madtp_core.tasks.retrieval", "BlipRetrieval"),
    "reasoning": ("madtp_core.tasks.reasoning", "BlipReasoning"),
    "clip": ("madtp_core.tasks.clip", "ClipRetrieval"),
}


def model_class(task: str) -> type[PrunedModel]:
    """The class of a task's model; task is one of `config.TASKS`."""
    module, name = _MODELS[task]
    found: type[PrunedModel] = getattr(import_module(module), name)
    return found


def load_model(
    path_or_hub_id: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    pruning: PruningConfig | None = None,
) -> PrunedModel:
    """Load a checkpoint directory or a hub repository, of whatever task it is for.

    pruning replaces the checkpoint's own. Raises CheckpointError, or ConfigError where the pruning method
    needs what the model lacks.
    """
    model = model_class(read_config(path_or_hub_id).task)
    return model.from_pretrained(path_or_hub_id, device=device, dtype=dtype, pruning=pruning)
