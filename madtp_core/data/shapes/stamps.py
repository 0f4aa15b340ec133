"""Anti-aliased stamps of objects, made once per look and image size, and where on an image they go."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.data.shapes.scene import CANVAS, DIAMETER, SceneObject
from madtp_core.errors import ConfigError

Floats = NDArray[np.float32]
Axis = NDArray[np.float64]
Mask = NDArray[np.bool_]

DEFAULT_IMAGE_SIZE: Final = 96  # pixels
RGB: Final = {
    "red": (222, 24, 30),
    "orange": (255, 138, 0),
    "yellow": (250, 228, 20),
    "green": (20, 160, 40),
    "cyan": (0, 216, 228),
    "blue": (24, 56, 226),
    "purple": (130, 24, 180),
    "pink": (255, 96, 190),
}
_STRIPE_RGB: Final = (24, 24, 24)
_SUPERSAMPLING: Final = 8  # sub-pixels along one side of a pixel
_OUTLINE: Final = {"small": 1.4, "large": 2.4}  # units
_STRIPE_PERIOD: Final = {"small": 4.0, "large": 5.0}  # units


def check_image_size(image_size: int) -> None:
    """Raise `ConfigError` unless cells and objects keep their proportions at this many pixels a side."""
    if not 64 <= image_size <= 128 or image_size % 4:
        raise ConfigError(f"image_size must be a multiple of 4 between 64 and 128, got {image_size}")


def placement(thing: SceneObject, image_size: int) -> tuple[int, int, int]:
    """Return top, left and diameter of an object's bounding square, in pixels."""
    pixels = diameter_pixels(thing.size, image_size)
    top = (2 * thing.y * image_size - (pixels - 1) * CANVAS) // (2 * CANVAS)
    left = (2 * thing.x * image_size - (pixels - 1) * CANVAS) // (2 * CANVAS)
    return top, left, pixels


def diameter_pixels(size: str, image_size: int) -> int:
    """Return the side of the square that an object of this size is drawn in."""
    return round(DIAMETER[size] * image_size / CANVAS)


@cache
def stamp(shape: str, colour: str, size: str, texture: str, image_size: int) -> tuple[Floats, Floats]:
    """Return what an object lets through [P, P, 1] and what it adds [P, P, 3], P its diameter in pixels."""
    pixels = diameter_pixels(size, image_size)
    sub_pixels_per_unit = _SUPERSAMPLING * image_size / CANVAS
    inside = silhouette(shape, pixels)
    if texture == "hollow":
        inside &= ~_eroded(inside, round(_OUTLINE[size] * sub_pixels_per_unit))
    is_stripe = np.zeros_like(inside)
    if texture == "striped":
        rows = np.arange(len(inside)) / (_STRIPE_PERIOD[size] * sub_pixels_per_unit)
        is_stripe |= ((rows % 1.0) >= 0.5)[:, None]
    rgb = np.where(is_stripe[..., None], _STRIPE_RGB, RGB[colour]) * inside[..., None]
    return 1 - downsampled(inside[..., None]), downsampled(rgb)


def downsampled(samples: NDArray[np.generic]) -> Floats:
    """Average the sub-pixels of each pixel: [P * s, P * s, C] -> [P, P, C]."""
    pixels = samples.shape[0] // _SUPERSAMPLING
    grid = samples.reshape(pixels, _SUPERSAMPLING, pixels, _SUPERSAMPLING, -1)
    return np.asarray(grid.mean(axis=(1, 3)), dtype=np.float32)


def silhouette(shape: str, pixels: int) -> Mask:
    """Return the inside of a shape, [P * s, P * s] sub-pixels, in a square of P = `pixels`."""
    axis = (np.arange(pixels * _SUPERSAMPLING) + 0.5) / (pixels * _SUPERSAMPLING) * 2 - 1
    return _INSIDE[shape](axis[None, :], axis[:, None])


def _eroded(inside: Mask, radius: int) -> Mask:
    """Keep the sub-pixels that have nothing outside the shape within `radius` sub-pixels."""
    padded = np.pad(inside, radius)
    core = inside.copy()
    for angle in np.linspace(0, 2 * np.pi, 32, endpoint=False):
        down, right = round(radius * np.sin(angle)), round(radius * np.cos(angle))
        core &= padded[radius + down :, radius + right :][: len(inside), : len(inside)]
    return core


def _inside_star(x: Axis, y: Axis, points: int, inner: float) -> Mask:
    """Test points against a star with outer radius 1, a tip upwards and the given inner radius.

    The plane is folded onto half a point of the star, whose edge is then one straight line.
    """
    sector = np.pi / points
    angle = np.arctan2(x, -y) % (2 * sector)
    angle = np.minimum(angle, 2 * sector - angle)  # 0 at a tip, `sector` at a notch
    radius = np.hypot(x, y)
    across, along = radius * np.sin(angle), radius * np.cos(angle)
    notch_across, notch_along = inner * np.sin(sector), inner * np.cos(sector)
    return np.asarray(across * (1 - notch_along) <= (1 - along) * notch_across)


_INSIDE: Final[dict[str, Callable[[Axis, Axis], Mask]]] = {
    "circle": lambda x, y: x**2 + y**2 <= 0.92**2,
    "square": lambda x, y: (abs(x) <= 0.84) & (abs(y) <= 0.84),
    "triangle": lambda x, y: (y <= 0.86) & (abs(x) * 1.72 <= (y + 0.86) * 0.98),
    "star": lambda x, y: _inside_star(x, y + 0.02, points=5, inner=0.52),
    "cross": lambda x, y: (np.maximum(abs(x), abs(y)) <= 0.94) & (np.minimum(abs(x), abs(y)) <= 0.36),
    "diamond": lambda x, y: abs(x) / 0.86 + abs(y) <= 1.0,
}
