"""The words of a text after every block: kept ones on tinted paper, the others struck through."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from madtp_core.visualize.canvas import FAINT, FIGURE_WIDTH, GAP, INK, PAPER, SMALL, above, beside, font, text
from madtp_core.visualize.canvas import text_width as width_of
from madtp_core.visualize.fate import Fate, State
from madtp_core.visualize.overlay import LOOK

KEPT_PAPER = (224, 233, 245)
_INSET, _BETWEEN = 9, 5  # pixels beside a word in its box, and from box to box


def words_strip(words: Sequence[str], fate: Fate, blocks: Sequence[int]) -> Image.Image:
    """A line of words for each block, counted from 0; blocks that leave the same words share one.

    A text wider than the figure goes on below.
    """
    lines: list[tuple[str, NDArray[np.int64]]] = []
    for _, group in groupby(blocks, key=lambda block: fate.states(block).tobytes()):
        first, *more = group
        label = f"blocks {first + 1} to {more[-1] + 1}" if more else f"block {first + 1}"
        lines.append((label, np.insert(fate.states(first), fate.protected, State.KEPT)))
    indent = width_of("blocks 10 to 12", SMALL) + GAP  # of every text of a figure
    parts = []
    for start, end in _chunks([_box_width(word) + _BETWEEN for word in words], FIGURE_WIDTH - indent):
        rows = []
        for label, states in lines:
            boxes = [
                _box(word, State(state))
                for word, state in zip(words[start:end], states[start:end], strict=True)
            ]
            rows.append(beside([_label(label, indent, boxes[0].height), beside(boxes, _BETWEEN)], 0))
        parts.append(above(rows, _BETWEEN))
    return above(parts)


def _chunks(widths: Sequence[int], available: int) -> list[tuple[int, int]]:
    """(start, end) of the runs that fit side by side, at least one in each."""
    runs, start, used = [], 0, 0
    for index, width in enumerate(widths):
        if index > start and used + width > available:
            runs.append((start, index))
            start, used = index, 0
        used += width
    return [*runs, (start, len(widths))]


def _label(content: str, width: int, height: int) -> Image.Image:
    line, image = text(content, SMALL, FAINT), Image.new("RGB", (width, height), PAPER)
    image.paste(line, (0, (height - line.height) // 2))
    return image


def _box_width(word: str) -> int:
    return width_of(word, SMALL) + 2 * _INSET


def _box(word: str, state: State) -> Image.Image:
    is_kept = state <= State.JOINED
    image = Image.new("RGB", (_box_width(word), round(1.5 * SMALL)), KEPT_PAPER if is_kept else PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_INSET, image.height // 2), word, INK if is_kept else FAINT, font(SMALL), anchor="lm")
    if not is_kept:
        tint, share, _ = LOOK[state]
        pen.line((2, image.height // 2, image.width - 3, image.height // 2), tint if share else FAINT, 3)
    return image
