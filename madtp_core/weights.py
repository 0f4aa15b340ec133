"""Weight files of others, read without executing what is in them.

A pickle is a program. `torch.load(weights_only=True)` runs only the part of it that builds tensors and plain
containers, and refuses the rest. A TorchScript archive is read in the same spirit by `torchscript`, not by
`torch.jit.load`, which compiles and runs code of the archive.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from madtp_core.errors import CheckpointError
from madtp_core.torchscript import is_torchscript, read_torchscript

_UNREADABLE = (  # what damaged or forged files make the readers raise
    pickle.UnpicklingError, SafetensorError, zipfile.BadZipFile, struct.error, RuntimeError, EOFError,
    OSError, ValueError, TypeError, AttributeError, LookupError,
)  # fmt: skip


def read_weights_file(path: Path) -> dict[str, Any]:
    """The contents of a weight file by name: tensors, and the plain values a training script put beside them.

    Reads .safetensors, what torch.save wrote, and TorchScript archives. Raises CheckpointError when there is
    no such file, when it is damaged, or when it holds more than tensors and plain values; nothing in it is
    executed.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {str(path)!r}")
    try:
        content = _read(path)
    except _UNREADABLE as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as weights, and nothing in it was executed: {_reason(error)}. "
            "A pickle may hold tensors, numbers, strings, lists and dicts only"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{str(path)!r} holds a {type(content).__name__}, not weights by name; save model.state_dict()"
        )
    return {str(name): value for name, value in content.items()}


def tensors_of(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The tensors of a state dict, detached; raises CheckpointError naming what is none."""
    strangers = sorted(str(name) for name, value in content.items() if not isinstance(value, Tensor))
    if strangers:
        raise CheckpointError(f"the state dict in {source!r} holds more than tensors: {', '.join(strangers)}")
    return {str(name): value.detach() for name, value in content.items()}


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice on how to load the file unsafely."""
    text = str(error).split("WeightsUnpickler error:")[-1].strip() or type(error).__name__
    return text.split("\n")[0].rstrip(". ")
