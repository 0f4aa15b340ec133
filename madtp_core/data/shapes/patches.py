"""What stands in each patch of a picture: the labels that token attention is checked against."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from madtp_core.data.shapes.scene import COLOURS, SHAPES, Scene
from madtp_core.data.shapes.stamps import (
    DEFAULT_IMAGE_SIZE,
    Floats,
    check_image_size,
    diameter_pixels,
    downsampled,
    placement,
    silhouette,
)
from madtp_core.errors import ConfigError

DEFAULT_PATCH_SIZE: Final = 8  # pixels
NUM_PATCH_LABELS: Final = 1 + len(SHAPES) * len(COLOURS)
MIN_PATCH_COVER: Final = 0.25  # share of a patch that an object must cover to label it


def patch_labels(
    scene: Scene, patch_size: int = DEFAULT_PATCH_SIZE, image_size: int = DEFAULT_IMAGE_SIZE
) -> NDArray[np.int64]:
    """Return what stands in each patch, [num_patches] row-major: 0, or 1 + shape * num_colours + colour.

    A patch belongs to the object that covers most of it, if that is a quarter of the patch or the
    patch is the one that this object covers most: where patches tile the grid cells, as 8 does at 96
    and 128, every object labels at least one. A hollow object counts its filled silhouette. Raises
    `ConfigError` when patches do not tile the image.
    """
    check_image_size(image_size)
    if patch_size < 1 or image_size % patch_size:
        raise ConfigError(f"patch_size must divide image_size {image_size}, got {patch_size}")
    side = image_size // patch_size
    labels = np.zeros((side, side), dtype=np.int64)
    best = np.zeros((side, side), dtype=np.float32)
    for thing in scene.objects:
        top, left, _ = placement(thing, image_size)
        row, col = top // patch_size, left // patch_size
        cover = _patch_cover(
            thing.shape, thing.size, image_size, patch_size, top % patch_size, left % patch_size
        )
        area = slice(row, row + cover.shape[0]), slice(col, col + cover.shape[1])
        won = cover > best[area]
        best[area][won] = cover[won]
        labels[area][won] = 1 + SHAPES.index(thing.shape) * len(COLOURS) + COLOURS.index(thing.colour)
    return labels.reshape(-1)


@cache
def _patch_cover(shape: str, size: str, image_size: int, patch_size: int, top: int, left: int) -> Floats:
    """Return the share that an object covers of each patch it touches, zero where that is too little.

    `top` and `left` are the offset of its bounding square in the first patch, in pixels.
    """
    pixels = diameter_pixels(size, image_size)
    alpha = downsampled(silhouette(shape, pixels)[..., None])[..., 0]
    rows, cols = -(-(top + pixels) // patch_size), -(-(left + pixels) // patch_size)
    padded = np.zeros((rows * patch_size, cols * patch_size), dtype=np.float32)
    padded[top : top + pixels, left : left + pixels] = alpha
    cover: Floats = padded.reshape(rows, patch_size, cols, patch_size).mean(axis=(1, 3))
    return np.where((cover >= MIN_PATCH_COVER) | (cover == cover.max()), cover, np.float32(0))
