"""How dense every block is for requests of different difficulty: curves with the spread of their requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace
from madtp_core.visualize.canvas import BODY, FAINT, INK, PAPER, SMALL, TITLE, Colour, font

_COLOURS: tuple[Colour, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 140, 100),
    (150, 60, 150),
)  # colour-blind safe
_WIDTH, _HEIGHT = 1500, 1000
_LEFT, _TOP, _RIGHT, _BOTTOM = 150, 170, 330, 130  # pixels of paper around the axes; names stand at the right
_SMOOTH = 2  # lines are drawn so much larger, then shrunk
_SPREAD = (10, 90)  # percentiles of the tinted band


def density_figure(groups: Mapping[str, Sequence[BranchTrace]], title: str, note: str = "") -> Image.Image:
    """A curve a group: the mean share of tokens that each block keeps, and where 80 % of its requests lie.

    Density is tokens kept / tokens of the dense branch. note: a line below the title. Raises ConfigError for
    an empty group, or traces of different block counts.
    """
    if not groups or any(not traces for traces in groups.values()):
        raise ConfigError("every group needs at least one request")
    if len({len(trace.kept) for traces in groups.values() for trace in traces}) != 1:
        raise ConfigError("the requests come from models of different block counts")
    curves = {name: _densities(traces) for name, traces in groups.items()}
    blocks = next(iter(curves.values())).shape[1]
    sheet = Image.new("RGB", (_WIDTH * _SMOOTH, _HEIGHT * _SMOOTH), PAPER)
    _draw_grid(sheet, blocks)
    for band, colour in zip(curves.values(), _COLOURS * len(curves), strict=False):
        _draw_band(sheet, band, colour)
    for curve, colour in zip(curves.values(), _COLOURS * len(curves), strict=False):
        _draw_curve(sheet, curve.mean(0), colour)
    figure = sheet.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    _write_axes(figure, blocks, title, note)
    _write_names(figure, curves)
    return figure


def _densities(traces: Sequence[BranchTrace]) -> NDArray[np.float64]:
    """[requests, blocks]"""
    return np.array([[kept / trace.dense for kept in trace.kept] for trace in traces])


def _at(block: float, density: float, blocks: int, scale: int = 1) -> tuple[float, float]:
    """Pixel of a point; blocks count from 0."""
    x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (block / max(blocks - 1, 1))
    y = _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * density
    return x * scale, y * scale


def _draw_grid(sheet: Image.Image, blocks: int) -> None:
    pen = ImageDraw.Draw(sheet)
    for tick in range(0, 101, 20):
        ends = [_at(0, tick / 100, blocks, _SMOOTH), _at(blocks - 1, tick / 100, blocks, _SMOOTH)]
        pen.line(ends, INK if tick == 0 else (225, 225, 229), 2 * _SMOOTH)


def _draw_band(sheet: Image.Image, densities: NDArray[np.float64], colour: Colour) -> None:
    """Where most requests lie, in a light tint that lets other bands through."""
    low, high = np.percentile(densities, _SPREAD, axis=0)
    blocks = len(low)
    edge = [_at(block, high[block], blocks, _SMOOTH) for block in range(blocks)]
    edge += [_at(block, low[block], blocks, _SMOOTH) for block in reversed(range(blocks))]
    mask = Image.new("L", sheet.size, 0)
    ImageDraw.Draw(mask).polygon(edge, 40)
    sheet.paste(Image.new("RGB", sheet.size, colour), (0, 0), mask)


def _draw_curve(sheet: Image.Image, means: NDArray[np.float64], colour: Colour) -> None:
    pen, radius = ImageDraw.Draw(sheet), 9 * _SMOOTH
    points = [_at(block, mean, len(means), _SMOOTH) for block, mean in enumerate(means)]
    pen.line(points, colour, 5 * _SMOOTH, joint="curve")
    for x, y in points:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), colour, PAPER, 2 * _SMOOTH)


def _write_axes(figure: Image.Image, blocks: int, title: str, note: str) -> None:
    pen = ImageDraw.Draw(figure)
    pen.text((_LEFT, 30), title, INK, font(TITLE))
    pen.text((_LEFT, 86), note, FAINT, font(SMALL))
    for tick in range(0, 101, 20):
        x, y = _at(0, tick / 100, blocks)
        pen.text((x - 24, y), f"{tick} %", FAINT, font(SMALL), anchor="rm")
    step = 1 if blocks <= 12 else 2
    for block in range(0, blocks, step):
        x, y = _at(block, 0, blocks)
        pen.text((x, y + 22), str(block + 1), FAINT, font(SMALL), anchor="mt")
    middle = _at((blocks - 1) / 2, 0, blocks)
    pen.text((middle[0], middle[1] + 70), "block", FAINT, font(BODY), anchor="mt")


def _write_names(figure: Image.Image, curves: Mapping[str, NDArray[np.float64]]) -> None:
    """Each curve's name at its end, moved apart where curves end close together."""
    pen, line = ImageDraw.Draw(figure), round(1.3 * BODY)
    ends = sorted(
        (_at(curve.shape[1] - 1, curve[:, -1].mean(), curve.shape[1])[1], name, colour, len(curve))
        for (name, curve), colour in zip(curves.items(), _COLOURS * len(curves), strict=False)
    )
    lowest = 0.0
    for y, name, colour, requests in ends:
        lowest = max(y, lowest)
        pen.text((_WIDTH - _RIGHT + 30, lowest), f"{name} ({requests})", colour, font(BODY), anchor="lm")
        lowest += line
