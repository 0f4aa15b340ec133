"""Two runs on the same samples, compared sample by sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from madtp_core.errors import ConfigError
from madtp_core.evaluate.run import Evaluation

_DIGITS: Final = 4
_TWO_SIDED_95: Final = 1.96


@dataclass(frozen=True)
class Paired:
    """How a second run's outcomes differ from the first's.

    difference: mean of second - first. margin: half the width of its 95 % interval, from the spread of the
    differences. better, worse: samples whose outcome rose, fell.
    """

    samples: int
    first: float
    second: float
    difference: float
    margin: float
    better: int
    worse: int


def compare(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Compare outcomes of the same samples in the same order; raises ConfigError for different numbers."""
    if len(first) != len(second) or not len(first):
        raise ConfigError(f"need outcomes of the same samples, got {len(first)} and {len(second)}")
    before, after = np.asarray(first, float), np.asarray(second, float)
    changes = after - before
    spread = changes.std(ddof=1) if len(changes) > 1 else 0.0
    return Paired(
        len(changes),
        float(before.mean()),
        float(after.mean()),
        float(changes.mean()),
        float(_TWO_SIDED_95 * spread / np.sqrt(len(changes))),
        int((changes > 0).sum()),
        int((changes < 0).sum()),
    )


def write_outcomes(path: Path, evaluation: Evaluation, about: Mapping[str, object]) -> None:
    """Keep every sample's outcomes and flops_ratio; about: which samples, to be compared with no others."""
    outcomes = {
        name: [round(value, _DIGITS) for value in column] for name, column in evaluation.per_sample().items()
    }
    data = {"about": dict(about), "outcomes": outcomes}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data) + "\n")


def read_outcomes(path: Path, about: Mapping[str, object]) -> dict[str, list[float]]:
    """What `Evaluation.per_sample` said, by name.

    Raises ConfigError for a file that holds none, or is of other samples.
    """
    try:
        data = json.loads(path.read_text())
        kept, outcomes = data["about"], data["outcomes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path.name} holds no outcomes: {error!r}") from error
    unlike = {name: (kept.get(name), value) for name, value in about.items() if kept.get(name) != value}
    if unlike:
        raise ConfigError(f"{path.name} is of other samples: {unlike}")
    return {name: list(column) for name, column in outcomes.items()}
