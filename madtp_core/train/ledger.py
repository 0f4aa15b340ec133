"""The rows of a calibration as they are measured, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from madtp_core.calibration import CalibrationRow, calibration_row
from madtp_core.errors import ConfigError

LEDGER_NAME: Final = "calibration.partial.jsonl"


@dataclass
class Ledger:
    """Finished rows, and the file that holds each as soon as it is measured.

    about: what is measured; a file about anything else is refused. Without a path nothing is written.
    """

    path: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    rows: list[CalibrationRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read what an interrupted run has left; raises ConfigError for a file about something else."""
        if self.path is None:
            return
        *lines, torn = self.path.read_text().split("\n") if self.path.exists() else [""]
        if torn:  # the run ended while it wrote
            self.path.write_text("".join(f"{line}\n" for line in lines))
        if not lines:
            self._append(dict(self.about))
            return
        try:
            about, *entries = map(json.loads, lines)
            self.rows = [calibration_row(entry) for entry in entries]
        except ValueError as error:
            raise ConfigError(f"{self.path.name} holds no calibration: {error}") from error
        if about != json.loads(json.dumps(dict(self.about))):
            raise ConfigError(
                f"{self.path.name} is of another calibration, {about} instead of {dict(self.about)}; "
                "delete it to start anew"
            )

    def find(
        self, keep_mode: str, batch_size: int, mix: str, prune_temperature: float
    ) -> CalibrationRow | None:
        """The row of that measurement, if it was made."""
        wanted = (keep_mode, batch_size, mix, prune_temperature)
        rows = (row for row in self.rows if place(row) == wanted)
        return next(rows, None)

    def add(self, row: CalibrationRow) -> None:
        """Keep a finished row."""
        self.rows.append(row)
        self._append(asdict(row))

    def discard(self) -> None:
        """Delete the file: the calibration is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _append(self, entry: Mapping[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def place(row: CalibrationRow) -> tuple[str, int, str, float]:
    """What was measured, in the order that tables are sorted by."""
    return row.keep_mode, row.batch_size, row.mix, row.prune_temperature
