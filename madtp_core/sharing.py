"""Weights that several checkpoints have alike, stored once.

The form is Hugging Face's own for sharded weights: an index says which file holds which tensor, and here one
of the files lies in a directory beside. So transformers reads such checkpoints as they are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from madtp_core.errors import CheckpointError

WHOLE, OWN = "model.safetensors", "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def share_weights(directories: Sequence[Path], shared: Path, prefix: str) -> None:
    """Move the tensors whose names begin with prefix out of checkpoint directories into one file.

    directories: hold `model.safetensors` whole; shared: a directory, made for the file. The files refer to
    each other by relative paths. Raises CheckpointError, and changes nothing, where a directory lacks such
    tensors, or has others than the first one.
    """
    weights = {directory: _whole(directory) for directory in directories}
    common: dict[str, Tensor] | None = None
    for directory, tensors in weights.items():
        named = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        common = named if common is None else common
        if not named or set(named) != set(common):
            raise CheckpointError(f"{directory.name} has other tensors under {prefix!r} than the first one")
        for name, tensor in named.items():
            if tensor.dtype != common[name].dtype or not torch.equal(tensor, common[name]):
                raise CheckpointError(f"{name} of {directory.name} differs from the first one's")
    if common is None:
        return
    shared.mkdir(parents=True, exist_ok=True)
    _save(common, shared / WHOLE)
    for directory, tensors in weights.items():
        place = os.path.relpath(shared / WHOLE, directory)
        _save({name: tensor for name, tensor in tensors.items() if name not in common}, directory / OWN)
        index = {
            "metadata": {"total_size": sum(map(_bytes, tensors.values()))},
            "weight_map": {name: place if name in common else OWN for name in sorted(tensors)},
        }
        (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        (directory / WHOLE).unlink()


def _whole(directory: Path) -> dict[str, Tensor]:
    path = directory / WHOLE
    if not path.is_file():
        raise CheckpointError(f"{directory.name} has no {WHOLE}: is it shared already?")
    return load_file(path)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes 0600, which a container's user could not read


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
