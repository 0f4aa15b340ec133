"""What a training task needs of the world around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from madtp_core.tasks.vqa_network import VqaNetwork

Evaluate = Callable[[VqaNetwork, float], Mapping[str, float]]  # network, prune temperature -> figures
Save = Callable[[VqaNetwork, float, Path], None]  # network, prune temperature, directory


@dataclass(frozen=True)
class Hooks:
    """How to evaluate the network and how to save it."""

    evaluate: Evaluate
    save: Save
