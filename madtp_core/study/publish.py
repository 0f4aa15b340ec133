"""A study's cells as a table and a plot beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from madtp_core.errors import ConfigError
from madtp_core.study import batch_size, comparison_report, keep_modes, sorting
from madtp_core.study.cells import Cells
from madtp_core.study.drawing import Panel, draw

_Report = tuple[Callable[[Cells], str], Callable[[Cells], list[Panel]]]
_COMPARISON: Final = (comparison_report.tables, comparison_report.panels)
REPORTS: Final[Mapping[str, _Report]] = {
    "methods": _COMPARISON,
    "branches": _COMPARISON,
    "tis": _COMPARISON,
    "batch-size": (batch_size.tables, batch_size.panels),
    "sorting": (sorting.tables, sorting.panels),
    "per-instance": (keep_modes.tables, keep_modes.panels),
}


def publish(cells: Cells, directory: Path) -> list[Path]:
    """Write table.md and plot.png of all that was measured; returns both.

    Raises ConfigError where nothing was, or without matplotlib.
    """
    if not cells.cells:
        raise ConfigError(f"nothing was measured yet in {cells.path.name}: name a checkpoint")
    tables, panels = REPORTS[cells.study]
    table, plot = directory / "table.md", directory / "plot.png"
    table.write_text(tables(cells))
    draw(panels(cells), plot)
    return [table, plot]
