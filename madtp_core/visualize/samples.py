"""Requests of different difficulty for the density curves: drawn scenes, or anyone's images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

from PIL import Image

from madtp_core.data.shapes import Band, ShapesVqa, difficulty_band
from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace
from madtp_core.pruning import VISION
from madtp_core.visualize.sight import Sight

BANDS: tuple[Band, ...] = get_args(Band)
_SCENES = 1_000_000  # to look through; only the drawn ones cost anything


def scenes_by_band(per_band: int, seed: int = 0) -> dict[str, list[tuple[Image.Image, str]]]:
    """Test scenes that no training saw, each with its first question, by how many objects they have."""
    if per_band < 1:
        raise ConfigError(f"need at least one scene a band, got {per_band}")
    scenes = ShapesVqa(seed, "test", _SCENES, questions_per_scene=1)
    found: dict[str, list[tuple[Image.Image, str]]] = {band: [] for band in BANDS}
    index = 0
    while min(map(len, found.values())) < per_band:
        example = scenes[index]
        of_band = found[difficulty_band(example.scene)]
        if len(of_band) < per_band:
            of_band.append((Image.fromarray(example.image), example.questions[0].text))
        index += 1
    return found


def image_traces(sights: Iterable[Sight]) -> list[BranchTrace]:
    """The image sequences of all requests."""
    return [trace for sight in sights for trace in sight.spent.traces[VISION]]


def by_difficulty(sights: Sequence[Sight]) -> dict[str, list[Sight]]:
    """Thirds of the requests by what they needed; raises ConfigError where a third would be empty."""
    if len(sights) < len(BANDS):
        raise ConfigError(f"need at least {len(BANDS)} requests to compare, got {len(sights)}")
    if any(sight.spent.difficulty is None for sight in sights):
        raise ConfigError("nothing was pruned, so no request was more difficult than another")
    ordered = sorted(sights, key=lambda sight: sight.spent.difficulty or 0.0)
    cuts = [round(len(sights) * third / len(BANDS)) for third in range(len(BANDS) + 1)]
    return {band: ordered[cuts[third] : cuts[third + 1]] for third, band in enumerate(BANDS)}
