"""What each prune temperature costs, measured offline and stored beside the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.pruning import check_keep_mode

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class CalibrationRow:
    """One measurement: at this keep mode, batch size and prune temperature the mean flops_ratio and accuracy.

    accuracy is the task's, or None where there were no labels. samples: requests measured.
    """

    keep_mode: str
    batch_size: int
    prune_temperature: float
    flops_ratio: float
    accuracy: float | None
    samples: int


@dataclass(frozen=True)
class Calibration:
    """A table from (keep mode, batch size, flops_ratio) to a prune temperature."""

    rows: tuple[CalibrationRow, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            check_keep_mode(row.keep_mode)

    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float:
        """The prune temperature that spends flops_ratio of the dense cost in batches of batch_size.

        Linear in (log batch size, ratio, log T) between measured points, clamped at their ends; 1.0 is dense
        and answers 0. Raises ConfigError when the keep mode was not measured.
        """
        if flops_ratio >= 1:
            return 0.0
        sizes = sorted({row.batch_size for row in self.rows if row.keep_mode == keep_mode})
        if not sizes:
            raise ConfigError(
                f"the calibration has no rows for keep mode {keep_mode!r}; run it for that mode"
            )
        below = max((size for size in sizes if size <= batch_size), default=sizes[0])
        above = min((size for size in sizes if size >= batch_size), default=sizes[-1])
        log_t = [self._log_temperature(flops_ratio, size, keep_mode) for size in (below, above)]
        if below == above:
            return math.exp(log_t[0])
        share = math.log(batch_size / below) / math.log(above / below)
        return math.exp(log_t[0] + share * (log_t[1] - log_t[0]))

    def floor(self, keep_mode: str) -> float | None:
        """The smallest measured flops_ratio of a keep mode, None if it was not measured."""
        return min((row.flops_ratio for row in self.rows if row.keep_mode == keep_mode), default=None)

    def summary(self) -> dict[str, object]:
        """What was measured, as plain JSON values."""
        ratios = [row.flops_ratio for row in self.rows]
        return {
            "keep_modes": sorted({row.keep_mode for row in self.rows}),
            "batch_sizes": sorted({row.batch_size for row in self.rows}),
            "flops_ratio": {"min": min(ratios, default=None), "max": max(ratios, default=None)},
        }

    def _log_temperature(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float:
        points = sorted(
            (row.flops_ratio, math.log(row.prune_temperature))
            for row in self.rows
            if row.keep_mode == keep_mode and row.batch_size == batch_size
        )
        return _interpolate(points, flops_ratio)

    def save(self, path: Path) -> None:
        """Write `calibration.json`."""
        data = {"schema_version": SCHEMA_VERSION, "rows": [asdict(row) for row in self.rows]}
        path.write_text(json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read `calibration.json`; raises CheckpointError naming what is wrong with it."""
        try:
            data = json.loads(path.read_text())
            if data["schema_version"] != SCHEMA_VERSION:
                raise CheckpointError(
                    f"{path.name} has schema version {data['schema_version']}, expected {SCHEMA_VERSION}"
                )
            return cls(tuple(_row(entry) for entry in data["rows"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.name} is not a calibration: {error!r}") from error


def _row(entry: dict[str, Any]) -> CalibrationRow:
    names = {field.name for field in fields(CalibrationRow)}
    if set(entry) != names:
        raise ValueError(f"a row has the fields {sorted(entry)}, wanted {sorted(names)}")
    return CalibrationRow(**entry)


def _interpolate(points: Iterable[tuple[float, float]], x: float) -> float:
    """Piecewise linear through points sorted by x, constant beyond the ends."""
    ordered = list(points)
    if x <= ordered[0][0]:
        return ordered[0][1]
    for (x0, y0), (x1, y1) in pairwise(ordered):
        if x <= x1:
            return y0 if x1 == x0 else y0 + (x - x0) / (x1 - x0) * (y1 - y0)
    return ordered[-1][1]
