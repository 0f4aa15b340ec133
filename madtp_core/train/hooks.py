"""What a training task needs of the world around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hooks:
    """How to evaluate what is trained and how to save it."""

    evaluate: Callable[[], Mapping[str, float]]
    save: Callable[[Path], None]
