"""Pieces of a figure for print: texts and pictures beside and above each other, on Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from madtp_core.errors import ConfigError

DPI = 300
FIGURE_WIDTH = 2100  # pixels: seven inches, a page's text
TITLE, BODY, SMALL = 40, 32, 27  # pixels: 9.6, 7.7 and 6.5 points
GAP = 20
PAPER, INK, FAINT, ACCENT = (255, 255, 255), (24, 24, 28), (120, 120, 128), (20, 90, 170)

Colour = tuple[int, int, int]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own typeface at so many pixels; Latin letters only."""
    face = ImageFont.load_default(size)
    assert isinstance(face, ImageFont.FreeTypeFont)
    return face


def text_width(text: str, size: int) -> int:
    """Pixels from the first letter to the last."""
    return round(font(size).getlength(text))


def text(content: str, size: int = BODY, colour: Colour = INK) -> Image.Image:
    """A line of text on paper, as high as every line of its size."""
    image = Image.new("RGB", (max(text_width(content, size), 1), round(1.3 * size)), PAPER)
    ImageDraw.Draw(image).text((0, 0), content, colour, font(size))
    return image


def paragraph(content: str, width: int, size: int = BODY, colour: Colour = INK) -> Image.Image:
    """A text on as many lines as it takes to be no wider, unless a single word is."""
    lines = [""]
    for word in content.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return above([text(line, size, colour) for line in lines], 0)


def beside(images: Sequence[Image.Image], gap: int = GAP, *, centred: bool = False) -> Image.Image:
    """From left to right, at one height above or, if asked for, around one middle."""
    height = max(image.height for image in images)
    sheet = Image.new("RGB", (sum(image.width for image in images) + gap * (len(images) - 1), height), PAPER)
    x = 0
    for image in images:
        sheet.paste(image, (x, (height - image.height) // 2 if centred else 0))
        x += image.width + gap
    return sheet


def above(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """From top to bottom, all at the left."""
    width = max(image.width for image in images)
    sheet = Image.new("RGB", (width, sum(image.height for image in images) + gap * (len(images) - 1)), PAPER)
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height + gap
    return sheet


def with_margin(image: Image.Image, margin: int = 2 * GAP) -> Image.Image:
    """The same image with paper around it."""
    sheet = Image.new("RGB", (image.width + 2 * margin, image.height + 2 * margin), PAPER)
    sheet.paste(image, (margin, margin))
    return sheet


def load_image(path: Path) -> Image.Image:
    """Read a picture as RGB; raises ConfigError where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ConfigError(f"cannot read a picture from {str(path)!r}: {error}") from error


def save_png(image: Image.Image, path: Path) -> None:
    """Write a PNG for print; raises ConfigError where it cannot be written, or for another suffix."""
    if path.suffix.lower() != ".png":
        raise ConfigError(f"pictures are written as PNG, got the name {path.name!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, optimize=True, dpi=(DPI, DPI))
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error}") from error
