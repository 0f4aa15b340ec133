"""A user's own requests: one JSON object a line, its images as files beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

from madtp_core.errors import ConfigError
from madtp_core.evaluate.samples import Picture, Sample, Samples

# What a line of each task must have besides its images; `truth` is what is right, where that is known.
_FIELDS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "vqa": (("question",), "str"),
    "caption": ((), "list of str"),
    "reasoning": (("statement",), "bool"),
    "retrieval": (("text", "texts"), "list of int"),
    "clip": (("text", "texts"), "list of int"),
}


@dataclass(frozen=True)
class Manifest(Samples):
    """Samples whose images are read when asked for."""

    folder: Path
    lines: tuple[Mapping[str, Any], ...]

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, index: int) -> Sample:
        line = self.lines[index]
        fields = {name: value for name, value in line.items() if name not in ("images", "truth")}
        return Sample(
            tuple(_read_picture(self.folder / name) for name in line["images"]), fields, line.get("truth")
        )


def read_manifest(path: Path, task: str) -> Manifest:
    """Read and check the lines of a manifest; images are named relative to it.

    A line: {"images": ["a.jpg"], ...the API's fields of the task (`question`; `statement` and two images;
    `text` or `texts`; for captions at most `prompt`)..., "truth": the answer, the reference captions, true or
    false, or the indices of the right candidates}. Without truth a run has costs and no accuracy. Raises
    ConfigError naming the line.
    """
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"cannot read {path.name}: {error}") from error
    if not lines:
        raise ConfigError(f"{path.name} is empty")
    entries = tuple(
        _checked(line, task, f"{path.name}, line {row}") for row, line in enumerate(lines, start=1)
    )
    labelled = sum(entry.get("truth") is not None for entry in entries)
    if labelled not in (0, len(entries)):
        raise ConfigError(f"{path.name}: {labelled} of {len(entries)} lines have a truth: give all or none")
    return Manifest(path.parent, entries)


def _checked(line: str, task: str, where: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    wanted, truth = _FIELDS[task]
    if not isinstance(entry, dict) or not _is_list_of(entry.get("images"), str) or not entry["images"]:
        raise ConfigError(f'{where}: needs "images", a list of file names')
    if task == "reasoning" and len(entry["images"]) != 2:
        raise ConfigError(f"{where}: a statement is about two images, got {len(entry['images'])}")
    if wanted and sum(name in entry for name in wanted) != 1:
        raise ConfigError(f"{where}: task {task!r} needs {' or '.join(wanted)}")
    if entry.get("truth") is not None and not _IS_TRUTH[truth](entry["truth"]):
        raise ConfigError(f"{where}: truth must be a {truth}, got {entry['truth']!r}")
    return entry


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(each, kind) for each in value)


_IS_TRUTH: Final = {
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "list of str": lambda value: _is_list_of(value, str),
    "list of int": lambda value: _is_list_of(value, int),
}


def _read_picture(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read a picture from {path.name!r}: {error}") from error
