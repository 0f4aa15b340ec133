"""One picture after one block: kept patches as they are, the others dimmed and tinted by their state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from madtp_core.errors import ConfigError
from madtp_core.visualize.canvas import Colour
from madtp_core.visualize.fate import State

# State -> (tint, its share, brightness left): from a patch's grey value to what stands in its place
LOOK: dict[State, tuple[Colour, float, float]] = {
    State.MERGED_NOW: ((0, 190, 220), 0.55, 0.60),
    State.MERGED_AGAIN: ((230, 60, 160), 0.55, 0.55),
    State.MERGED_BEFORE: ((0, 0, 0), 0.0, 0.35),
    State.DROPPED: ((0, 0, 0), 0.0, 0.12),
}
_RING = LOOK[State.MERGED_NOW][0]  # around a patch that others joined


def overlay(picture: Image.Image, states: NDArray[np.int64], grid: tuple[int, int], cell: int) -> Image.Image:
    """The picture with every patch that is not kept dimmed, and a ring in each that others joined.

    cell: pixels of a patch a side.
    states [rows * columns] in reading order, as `State`; grid: (rows, columns). Raises ConfigError when they
    do not fit each other.
    """
    rows, columns = grid
    if states.shape != (rows * columns,):
        raise ConfigError(f"got {states.size} patch states for a grid of {rows} x {columns}")
    canvas = enlarged(picture, grid, cell)
    by_pixel = states.reshape(grid).repeat(cell, 0).repeat(cell, 1)
    pixels = np.asarray(canvas, dtype=np.float64)
    grey = np.asarray(canvas.convert("L"), dtype=np.float64)[..., None]
    for state, (tint, share, brightness) in LOOK.items():
        dimmed = brightness * ((1 - share) * grey + share * np.array(tint))
        pixels = np.where((by_pixel == state)[..., None], dimmed, pixels)
    panel = Image.fromarray(pixels.round().astype(np.uint8))
    pen, ring = ImageDraw.Draw(panel), max(cell // 10, 1)
    for place in np.flatnonzero(states == State.JOINED):
        row, column = divmod(int(place), columns)
        x, y = column * cell, row * cell
        pen.rectangle((x, y, x + cell - 1, y + cell - 1), outline=_RING, width=ring)
    return panel


def enlarged(picture: Image.Image, grid: tuple[int, int], cell: int) -> Image.Image:
    """The picture at cell pixels a patch."""
    return picture.resize((grid[1] * cell, grid[0] * cell), Image.Resampling.LANCZOS)
