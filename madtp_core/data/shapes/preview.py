"""A contact sheet of scenes for human eyes, with their difficulty and a few questions."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from madtp_core.data.shapes.draw import draw
from madtp_core.data.shapes.questions import questions
from madtp_core.data.shapes.scene import Scene, Split, difficulty_band, layout_hash, sample_scene
from madtp_core.errors import ConfigError

_PICTURE: Final = 288  # pixels along the side of an upscaled scene
_MARGIN: Final = 12
_FONT_SIZE: Final = 13
_LINE: Final = 18  # pixels from one line of text to the next
_LINE_CHARACTERS: Final = 45
_QUESTIONS: Final = 3
_LINES: Final = 1 + 2 * _QUESTIONS  # a title, and at most two lines for a question and its answer
_CARD: Final = (_PICTURE + 2 * _MARGIN, _PICTURE + _LINES * _LINE + 3 * _MARGIN)
_PAPER, _INK, _FAINT_INK = "white", "black", (96, 96, 96)


def contact_sheet(scenes: Sequence[Scene], columns: int) -> Image.Image:
    """Return all scenes on one sheet, row by row, each with its band and three questions with answers.

    Raises `ConfigError` when there is nothing to show.
    """
    if not scenes or columns < 1:
        raise ConfigError(f"a contact sheet needs scenes and columns, got {len(scenes)} and {columns}")
    width, height = _CARD
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), _PAPER)
    for place, scene in enumerate(scenes):
        row, column = divmod(place, columns)
        sheet.paste(_card(scene), (column * width, row * height))
    return sheet


def write_preview(path: str | Path, seed: int, split: Split, rows: int, columns: int) -> None:
    """Write the first `rows * columns` scenes of a split as a contact sheet; the suffix sets the format.

    Raises `ConfigError` for an unknown split or an empty sheet and `OSError` where the file cannot be
    written.
    """
    scenes = [sample_scene(seed, split, index) for index in range(rows * columns)]
    contact_sheet(scenes, columns).save(path)


def _card(scene: Scene) -> Image.Image:
    card = Image.new("RGB", _CARD, _PAPER)
    picture = Image.fromarray(draw(scene)).resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)
    card.paste(picture, (_MARGIN, _MARGIN))
    pen, font = ImageDraw.Draw(card), ImageFont.load_default(_FONT_SIZE)
    y = _PICTURE + 2 * _MARGIN
    noun = "object" if scene.num_objects == 1 else "objects"
    title = f"{difficulty_band(scene)}: {scene.num_objects} {noun}, {scene.background.kind} background"
    pen.text((_MARGIN, y), title, _INK, font)
    for question in questions(scene, random.Random(layout_hash(scene)), _QUESTIONS):
        said = f"{question.text} {question.answer}"
        for line in textwrap.wrap(said, _LINE_CHARACTERS, subsequent_indent="    "):
            y += _LINE
            pen.text((_MARGIN, y), line, _FAINT_INK, font)
    return card
