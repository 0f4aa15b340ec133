"""The picture of a scene: its background, and one stamp for each object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from madtp_core.data.shapes.background import draw_background
from madtp_core.data.shapes.scene import Scene
from madtp_core.data.shapes.stamps import DEFAULT_IMAGE_SIZE, check_image_size, placement, stamp


def draw(scene: Scene, image_size: int = DEFAULT_IMAGE_SIZE) -> NDArray[np.uint8]:
    """Return the picture of a scene, [H, W, 3] RGB with H = W = `image_size` pixels.

    Raises `ConfigError` when `image_size` is not a multiple of 4 between 64 and 128.
    """
    check_image_size(image_size)
    canvas = draw_background(scene.background, image_size)  # [H, W, 3]
    for thing in scene.objects:
        top, left, pixels = placement(thing, image_size)
        transparency, paint = stamp(thing.shape, thing.colour, thing.size, thing.texture, image_size)
        region = canvas[top : top + pixels, left : left + pixels]  # a view: stamped in place
        region *= transparency
        region += paint
    return canvas.astype(np.uint8)
