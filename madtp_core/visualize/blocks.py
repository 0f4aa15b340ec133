"""What every block keeps of pictures and words, requests or methods one under the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from madtp_core.errors import ConfigError
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import MATCH
from madtp_core.visualize.canvas import (
    ACCENT,
    BODY,
    FAINT,
    FIGURE_WIDTH,
    GAP,
    SMALL,
    TITLE,
    above,
    beside,
    paragraph,
    text,
    with_margin,
)
from madtp_core.visualize.fate import Fate, State
from madtp_core.visualize.overlay import enlarged, overlay
from madtp_core.visualize.sight import Sight
from madtp_core.visualize.words import words_strip

_COLUMNS = 6  # blocks in a row, beside the input
_STATE_NAMES = {
    State.KEPT: "kept",
    State.JOINED: "kept, others merged into it",
    State.MERGED_NOW: "merged in this block",
    State.MERGED_AGAIN: "merged once more",
    State.MERGED_BEFORE: "merged before",
    State.DROPPED: "dropped",
}
_READINGS = {TEXT: "the text alone", MATCH: "the text reading the image"}


def blocks_figure(sights: Sequence[Sight], blocks: Sequence[int] | None = None) -> Image.Image:
    """Each request's picture, what every block leaves of it, and of its words.

    blocks: which of the image tower's to show, counted from 1; None: all. Raises ConfigError for one that it
    lacks, or where there is no request.
    """
    if not sights:
        raise ConfigError("there is no request to draw")
    requests = [_request(sight, blocks) for sight in sights]
    return with_margin(above([*requests, _legend(sights)], 2 * GAP))


def _request(sight: Sight, blocks: Sequence[int] | None) -> Image.Image:
    parts = [_headline(sight)]
    for picture, fate in zip(sight.pictures, sight.fates[VISION], strict=True):
        parts.append(_picture_strip(picture, fate, sight.grid, _chosen(fate, blocks)))
    for group, fates in sight.fates.items():
        if group == VISION or not sight.words:
            continue
        if MATCH in sight.fates:
            parts.append(text(_READINGS[group], SMALL))
        parts += [words_strip(sight.words, fate, range(fate.blocks)) for fate in fates]
    return above(parts, GAP // 2)


def _headline(sight: Sight) -> Image.Image:
    """Text, answer and cost: on one line if it is wide enough."""
    method = sight.method if sight.prune_temperature else "dense"
    cost = text(f"{method}, {sight.spent.cost.flops_ratio:.0%} of the dense operations", BODY, FAINT)
    said = [paragraph(sight.text, FIGURE_WIDTH, TITLE)] if sight.text else []
    said.append(paragraph(sight.answer, FIGURE_WIDTH, TITLE, ACCENT))
    line = beside([*said, cost], 2 * GAP, centred=True)
    return line if line.width <= FIGURE_WIDTH else above([*said, cost], GAP // 2)


def _chosen(fate: Fate, blocks: Sequence[int] | None) -> list[int]:
    """Block numbers from 0."""
    if blocks is None:
        return list(range(fate.blocks))
    if not blocks or any(not 1 <= block <= fate.blocks for block in blocks):
        raise ConfigError(f"the model has blocks 1 to {fate.blocks}, asked for {list(blocks)}")
    return [block - 1 for block in blocks]


def _picture_strip(
    picture: Image.Image, fate: Fate, grid: tuple[int, int], blocks: Sequence[int]
) -> Image.Image:
    """The input at the left, the blocks in rows beside it."""
    columns = min(len(blocks), _COLUMNS)
    cell = max((FIGURE_WIDTH - columns * GAP) // (_COLUMNS + 1) // grid[1], 1)
    panels = []
    for block in blocks:
        states = fate.states(block)
        caption = f"block {block + 1}: {fate.kept(block)} of {states.size}"
        panels.append(_captioned(overlay(picture, states, grid, cell), caption))
    rows = [beside(panels[start : start + columns]) for start in range(0, len(panels), columns)]
    return beside([_captioned(enlarged(picture, grid, cell), "input"), above(rows)])


def _captioned(panel: Image.Image, caption: str) -> Image.Image:
    return above([panel, text(caption, SMALL)], GAP // 4)


def _legend(sights: Sequence[Sight]) -> Image.Image:
    """The states that occur in the pictures, each on a patch of light grey."""
    fates = [fate for sight in sights for fate in sight.fates[VISION]]
    present = {
        state for fate in fates for block in range(fate.blocks) for state in fate.states(block).tolist()
    }
    patch = Image.new("RGB", (1, 1), (190, 190, 190))
    entries = []
    for state, name in _STATE_NAMES.items():
        if state in present:
            swatch = overlay(patch, np.array([state]), (1, 1), SMALL)
            entries.append(beside([swatch, text(name, SMALL)], GAP // 2, centred=True))
    return beside(entries, 2 * GAP)
