"""Backgrounds of graded clutter in muted greys and pastels, never to be confused with an object."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.data.shapes.scene import CANVAS, Background

Floats = NDArray[np.float32]

_GREY: Final = (120, 205)  # brightness of a tone
_TINT: Final = 12  # largest distance of a channel from grey
_CONTRAST: Final = 24  # largest distance between the two tones of a background


def draw_background(background: Background, image_size: int) -> Floats:
    """Return a fresh background, [H, W, 3] RGB values from 0 to 255."""
    rng = np.random.default_rng(background.seed)
    grey = rng.integers(*_GREY, endpoint=True)
    tone = grey + rng.integers(-_TINT, _TINT, size=3, endpoint=True).astype(np.float32)
    canvas = np.empty((image_size, image_size, 3), dtype=np.float32)
    canvas[:] = tone
    _PAINTERS[background.kind](canvas, rng)
    return canvas


def _paint_plain(canvas: Floats, rng: np.random.Generator) -> None:
    pass


def _paint_gradient(canvas: Floats, rng: np.random.Generator) -> None:
    canvas += (np.float32(_CONTRAST) * _ramp(canvas, rng))[..., None]


def _paint_stripes(canvas: Floats, rng: np.random.Generator) -> None:
    stripes = rng.uniform(3.0, 6.0)  # along the side of an image
    is_light = _ramp(canvas, rng) * stripes % 1.0 < 0.5  # [H, W]
    canvas += (np.float32(_CONTRAST) * is_light)[..., None]


def _paint_noise(canvas: Floats, rng: np.random.Generator) -> None:
    side = canvas.shape[0]
    canvas += rng.integers(-_CONTRAST, _CONTRAST, size=(side, side, 1), dtype=np.int8, endpoint=True)


def _paint_confetti(canvas: Floats, rng: np.random.Generator) -> None:
    side = canvas.shape[0]
    speck = round(2 * side / CANVAS)
    count = int(rng.integers(120, 220))
    row, col = rng.integers(0, side - speck, size=(2, count, 1, 1))
    grey = rng.integers(-2 * _CONTRAST, _CONTRAST, size=(count, 1, 1, 1))
    tint = rng.integers(-_TINT, _TINT, size=(count, 1, 1, 3))
    offset = np.arange(speck)
    canvas[row + offset[:, None], col + offset] += grey + tint


def _ramp(canvas: Floats, rng: np.random.Generator) -> Floats:
    """Return a value that grows by 1 over the side of the image, in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = _axis(canvas.shape[0])
    return axis * np.float32(np.cos(angle)) + axis[:, None] * np.float32(np.sin(angle))


@lru_cache(maxsize=8)
def _axis(side: int) -> Floats:
    return np.linspace(-0.5, 0.5, side, dtype=np.float32)


_PAINTERS: Final[dict[str, Callable[[Floats, np.random.Generator], None]]] = {
    "plain": _paint_plain,
    "gradient": _paint_gradient,
    "stripes": _paint_stripes,
    "noise": _paint_noise,
    "confetti": _paint_confetti,
}
