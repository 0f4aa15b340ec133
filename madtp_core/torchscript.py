"""The weights in a TorchScript archive, the form that OpenAI released CLIP in, read without executing it.

An archive is a zip: `data.pkl` holds the module tree with its attributes, `data/N` the bytes of its tensors,
and `code/` the program. `torch.jit.load` compiles the program and runs parts of it; here only the tree is
built, of inert objects, from a closed list of names, and the program is not looked at.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive and not what torch.save writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor attribute of the module tree, parameters and buffers alike, by its dotted name.

    Raises pickle.UnpicklingError for a name outside the closed list, and what the standard library raises for
    a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).split("/")[0]
        with archive.open(f"{root}/data.pkl") as stream:
            tree = _TreeReader(stream, archive, root).load()
    if not isinstance(tree, _Module):
        raise pickle.UnpicklingError(f"the archive holds a {type(tree).__name__}, not a module")
    found: dict[str, Tensor] = {}
    _collect(tree, "", found, set())
    return found


class _Module:
    """A module of the archive with its attributes, and nothing it can do."""


class _TreeReader(pickle.Unpickler):
    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch.jit._pickle" and name in _LISTS:
            return _as_it_is
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _as_it_is
        raise pickle.UnpicklingError(f"the archive names {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> Tensor:
        """pid: ("storage", type, file, device, number of elements) -> the elements in a row."""
        _, dtype, file, _, count = pid
        data = self.archive.read(f"{self.root}/data/{file}")
        if count == 0:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=dtype, count=count)


def _rebuild(storage: Tensor, offset: int, size: Any, stride: Any, *unused: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _as_it_is(value: Any, *unused: Any) -> Any:
    return value


def _collect(module: _Module, prefix: str, found: dict[str, Tensor], seen: set[int]) -> None:
    if id(module) in seen:
        return  # shared, or a circle in a forged archive
    seen.add(id(module))
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", found, seen)
