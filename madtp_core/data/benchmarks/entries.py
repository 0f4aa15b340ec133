"""Entries of a benchmark's JSON files, each knowing its place; fields that nobody asks for are let be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from madtp_core.data.fields import Fields
from madtp_core.errors import ConfigError


def entries(path: Path, content: Any, kind: str = "entry", named_by: str | None = None) -> Iterator[Fields]:
    """The objects of a list in a file, counted from 0: `vqa_train.json, entry 17 (question_id 262148001)`.

    kind: what one is called. named_by: the field that identifies one. Raises ConfigError for what is no list,
    or holds nothing or anything but objects.
    """
    if not isinstance(content, list) or not content:
        raise ConfigError(f"{path}: must be a list of objects, got {_shown(content)}")
    for index, data in enumerate(content):
        where = f"{path}, {kind} {index}"
        if named_by is not None and isinstance(data, dict) and named_by in data:
            where += f" ({named_by} {data[named_by]})"
        yield Fields(where, data)


def sections(path: Path, content: Any, *known: tuple[str, ...]) -> Fields:
    """The object that a file holds, with all sections of one of the known kinds; else raises ConfigError."""
    if not isinstance(content, dict) or not any(set(names) <= set(content) for names in known):
        wanted = " or ".join(" and ".join(map(repr, names)) for names in known)
        raise ConfigError(f"{path}: must be a list, or an object with {wanted}, got {_shown(content)}")
    return Fields(str(path), content)


def _shown(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with {', '.join(map(repr, list(content)[:8])) or 'nothing'}"
    return "an empty list" if content == [] else f"a {type(content).__name__}"
