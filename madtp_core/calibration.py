"""What each prune temperature costs, measured offline and stored beside the weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from madtp_core.errors import CheckpointError, ConfigError
from madtp_core.pruning import PER_INSTANCE, check_keep_mode

SCHEMA_VERSION: Final = 3
_ADDED_BY_SCHEMA: Final = {1: {"mix": "natural", "sequences": {}}, 2: {"sequences": {}}, 3: {}}
NATURAL: Final = "natural"  # requests as they come, easy and hard ones


@dataclass(frozen=True)
class Sequences:
    """What requests consisted of, of one kind (`vision`, `text`, `match`): means.

    count: in a request. tokens: of an unpruned one. kept: behind every block.
    """

    count: float
    tokens: float
    kept: tuple[float, ...]


@dataclass(frozen=True)
class CalibrationRow:
    """One measurement: at this keep mode, batch size and prune temperature the mean flops_ratio and accuracy.

    accuracy is the task's own measure, or None where there were no labels. samples: requests measured. mix:
    what they were drawn from, by name. sequences: by kind; {} in files that do not tell.
    """

    keep_mode: str
    batch_size: int
    prune_temperature: float
    flops_ratio: float
    accuracy: float | None
    samples: int
    mix: str = NATURAL
    sequences: Mapping[str, Sequences] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """A prune temperature and what it is expected to spend and to reach.

    flops_ratio: the one that was asked for, or the nearest that the model can reach. accuracy: None where
    there were no labels.
    """

    prune_temperature: float
    flops_ratio: float
    accuracy: float | None


@dataclass(frozen=True)
class Calibration:
    """A table from (keep mode, batch size, mix, flops_ratio) to a prune temperature.

    A per_instance request spends the same in whatever batch, so its rows of one size serve all sizes.
    dense_accuracy: of the unpruned model, by mix; a mix without labels is left out. dense_ratio: what it
    spends of its dense cost, less than 1 where parameters were pruned from it.
    """

    rows: tuple[CalibrationRow, ...]
    dense_accuracy: Mapping[str, float] = field(default_factory=dict)
    dense_ratio: float = 1.0

    def __post_init__(self) -> None:
        for row in self.rows:
            check_keep_mode(row.keep_mode)

    def setting_for(self, flops_ratio: float, batch_size: int, keep_mode: str, mix: str = NATURAL) -> Setting:
        """The prune temperature that spends flops_ratio of the dense cost in batches of batch_size.

        Linear in (log batch size, ratio, log T) between measured points. A ratio that no measured temperature
        reaches is replaced by the nearest that one does, and the setting says so by its own flops_ratio; from
        dense_ratio on it is dense. Raises ConfigError when the keep mode or the mix was not measured.
        """
        if flops_ratio >= self.dense_ratio:
            return Setting(0.0, self.dense_ratio, self.dense_accuracy.get(mix))
        below, above, share = self._neighbours(batch_size, keep_mode, mix)
        low, high = (self._at(flops_ratio, size, keep_mode, mix) for size in (below, above))
        accuracy = None
        if low.accuracy is not None and high.accuracy is not None:
            accuracy = _between(low.accuracy, high.accuracy, share)
        log_t = _between(math.log(low.prune_temperature), math.log(high.prune_temperature), share)
        return Setting(math.exp(log_t), _between(low.flops_ratio, high.flops_ratio, share), accuracy)

    def temperature_for(
        self, flops_ratio: float, batch_size: int, keep_mode: str, mix: str = NATURAL
    ) -> float:
        """The prune temperature of `setting_for`, which also says whether the ratio can be reached."""
        return self.setting_for(flops_ratio, batch_size, keep_mode, mix).prune_temperature

    def accuracy_at(
        self, flops_ratio: float, batch_size: int, keep_mode: str, mix: str = NATURAL
    ) -> float | None:
        """The accuracy to expect at a flops_ratio, or at the nearest reachable one; None without labels."""
        return self.setting_for(flops_ratio, batch_size, keep_mode, mix).accuracy

    def reachable(self, batch_size: int, keep_mode: str, mix: str = NATURAL) -> tuple[float, float]:
        """The smallest and the largest flops_ratio that pruning reaches in batches of batch_size.

        What lies between the largest and dense is out of reach: the mildest pruning there is spends less.
        Raises ConfigError when the keep mode or the mix was not measured.
        """
        below, above, share = self._neighbours(batch_size, keep_mode, mix)
        ends = [[ratio for ratio, _ in self._points(size, keep_mode, mix)] for size in (below, above)]
        low, high = (_between(end(ends[0]), end(ends[1]), share) for end in (min, max))
        return low, high

    def reference_temperature(self) -> float:
        """The prune temperature at which difficulty is defined: mid-way of what a lone request reaches.

        Needs differ most there. Raises ConfigError for a calibration without rows of the natural mix.
        """
        modes = [row.keep_mode for row in self.rows if row.mix == NATURAL]
        keep_mode = PER_INSTANCE if PER_INSTANCE in modes or not modes else modes[0]
        return self.temperature_for(sum(self.reachable(1, keep_mode)) / 2, 1, keep_mode)

    def summary(self) -> dict[str, object]:
        """What was measured, as plain JSON values."""
        ratios = [row.flops_ratio for row in self.rows]
        return {
            "keep_modes": sorted({row.keep_mode for row in self.rows}),
            "batch_sizes": sorted({row.batch_size for row in self.rows}),
            "mixes": sorted({row.mix for row in self.rows}),
            "flops_ratio": {"min": min(ratios, default=None), "max": max(ratios, default=None)},
        }

    def _neighbours(self, batch_size: int, keep_mode: str, mix: str) -> tuple[int, int, float]:
        """The measured batch sizes around one, and how far it lies between them on a log scale."""
        check_keep_mode(keep_mode)
        sizes = sorted({row.batch_size for row in self.rows if (row.keep_mode, row.mix) == (keep_mode, mix)})
        if not sizes:
            measured = sorted({(row.keep_mode, row.mix) for row in self.rows})
            raise ConfigError(
                f"the calibration has no rows for keep mode {keep_mode!r} and mix {mix!r}, only for "
                f"{measured}; run `madtp calibrate` for them"
            )
        below = max((size for size in sizes if size <= batch_size), default=sizes[0])
        above = min((size for size in sizes if size >= batch_size), default=sizes[-1])
        return below, above, 0.0 if below == above else math.log(batch_size / below, above / below)

    def _points(self, batch_size: int, keep_mode: str, mix: str) -> list[tuple[float, CalibrationRow]]:
        """The rows of one batch size by falling temperature, each with a flops_ratio that never falls.

        A higher temperature prunes more; where chance says otherwise, the ratio of a higher one holds.
        """
        rows = [r for r in self.rows if (r.keep_mode, r.batch_size, r.mix) == (keep_mode, batch_size, mix)]
        points: list[tuple[float, CalibrationRow]] = []
        for row in sorted(rows, key=lambda row: -row.prune_temperature):
            points.append((max(row.flops_ratio, points[-1][0] if points else 0.0), row))
        return points

    def _at(self, flops_ratio: float, batch_size: int, keep_mode: str, mix: str) -> Setting:
        points = self._points(batch_size, keep_mode, mix)
        ratios = [ratio for ratio, _ in points]
        log_t = _interpolate(ratios, [math.log(row.prune_temperature) for _, row in points], flops_ratio)
        known = [row.accuracy for _, row in points if row.accuracy is not None]
        accuracy = _interpolate(ratios, known, flops_ratio) if len(known) == len(points) else None
        return Setting(math.exp(log_t), min(max(flops_ratio, ratios[0]), ratios[-1]), accuracy)

    def save(self, path: Path) -> None:
        """Write `calibration.json`, a row a line."""
        head = {
            "schema_version": SCHEMA_VERSION,
            "dense_accuracy": dict(self.dense_accuracy),
            "dense_ratio": self.dense_ratio,
        }
        rows = ",\n".join(json.dumps(asdict(row)) for row in self.rows)
        path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n{rows}\n]}}\n')

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read `calibration.json`; raises CheckpointError naming what is wrong with it.

        Files of schema 1 know no mixes: theirs is the natural one; those before 3 know no sequences.
        """
        try:
            data = json.loads(path.read_text())
            version = data["schema_version"]
            if version not in _ADDED_BY_SCHEMA:
                raise CheckpointError(
                    f"{path.name} has schema version {version}, expected 1 to {SCHEMA_VERSION}"
                )
            rows = tuple(calibration_row(_ADDED_BY_SCHEMA[version] | entry) for entry in data["rows"])
            dense_accuracy = {} if version == 1 else dict(data["dense_accuracy"])
            return cls(rows, dense_accuracy, data["dense_ratio"] if version == SCHEMA_VERSION else 1.0)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.name} is not a calibration: {error!r}") from error


def calibration_row(entry: dict[str, Any]) -> CalibrationRow:
    """A row as it was written; raises ValueError for other fields than a row's."""
    names = {field.name for field in fields(CalibrationRow)}
    if set(entry) != names:
        raise ValueError(f"a row has the fields {sorted(entry)}, wanted {sorted(names)}")
    sequences = {
        kind: Sequences(each["count"], each["tokens"], tuple(each["kept"]))
        for kind, each in entry["sequences"].items()
    }
    return CalibrationRow(**entry | {"sequences": sequences})


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def _interpolate(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    """Piecewise linear through points whose x never falls, constant beyond the ends."""
    if x <= xs[0]:
        return ys[0]
    for (x0, y0), (x1, y1) in pairwise(zip(xs, ys, strict=True)):
        if x <= x1:
            return y0 if x1 == x0 else _between(y0, y1, (x - x0) / (x1 - x0))
    return ys[-1]
