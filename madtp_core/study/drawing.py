"""Plots of studies: panels of lines and points with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from madtp_core.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS: Final = ("#0072b2", "#d55e00", "#008c64", "#963c96", "#b58900", "#56b4e9", "#7f7f7f", "#a0522d")
_SOLID, _DASHED, _POINTS = "-", "--", ""
_HEIGHT, _ROW = 4.2, 0.32  # inches: of a panel, of a named row


@dataclass(frozen=True)
class Curve:
    """Points (x, y) under a label, with half the width of their spread; colour: a number, alike where alike.

    is_dashed: for what stands beside the curve of the same colour. is_joined: whether a line goes through.
    """

    label: str
    points: Sequence[tuple[float, float]]
    spread: Sequence[float] = ()
    colour: int = 0
    is_dashed: bool = False
    is_joined: bool = True


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes.

    names: of the rows 0, 1, ... where y is one and the spread lies along x. level: a horizontal line, or a
    vertical one where rows are named. ticks: of an x that is drawn by its logarithm to base 2. least_width:
    what x spans at the least, so that points which are alike look alike.
    """

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    names: Sequence[str] = ()
    level: float | None = None
    ticks: Sequence[int] = ()
    least_width: float = 0.0


def draw(panels: Sequence[Panel], path: Path, columns: int = 2) -> None:
    """Write panels as a PNG, so many beside each other; raises ConfigError without matplotlib."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    height = max(_HEIGHT, *(1.4 + _ROW * len(panel.names) for panel in panels))
    figure = new_figure(5.6 * columns, height * rows)
    places = figure.subplots(rows, columns, squeeze=False).flat
    for place, panel in zip(places, panels, strict=False):
        _draw(place, panel)
    for place in places[len(panels) :]:
        place.set_axis_off()
    figure.savefig(path, dpi=130)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; raises ConfigError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the plot needs matplotlib: install madtp-serve[study]") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        style = _POINTS if not curve.is_joined else _DASHED if curve.is_dashed else _SOLID
        spread = list(curve.spread) or None
        axes.errorbar(
            [x for x, _ in curve.points],
            [y for _, y in curve.points],
            xerr=spread if panel.names else None,
            yerr=None if panel.names else spread,
            linestyle=style,
            marker="o",
            markerfacecolor="white" if curve.is_dashed else None,
            markersize=4.5,
            linewidth=1.3,
            elinewidth=0.9,
            capsize=2,
            color=COLOURS[curve.colour % len(COLOURS)],
            label=curve.label,
        )
    if panel.level is not None:
        (axes.axvline if panel.names else axes.axhline)(panel.level, color="black", linewidth=0.7, zorder=0)
    if panel.names:
        axes.set_yticks(range(len(panel.names)), panel.names, fontsize=8)
        axes.set_ylim(len(panel.names) - 0.5, -0.5)
    if panel.ticks:
        axes.set_xscale("log", base=2)
        axes.set_xticks(panel.ticks, list(map(str, panel.ticks)))
    left, right = axes.get_xlim()
    if right - left < panel.least_width:
        axes.set_xlim((left + right - panel.least_width) / 2, (left + right + panel.least_width) / 2)
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_ylabel(panel.y, fontsize=9)
    axes.set_title(panel.title, fontsize=10)
    axes.grid(linewidth=0.4)
    axes.set_axisbelow(True)
    if any(curve.label for curve in panel.curves):
        axes.legend(fontsize=7)
