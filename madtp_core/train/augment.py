"""Pictures changed at random while training, as BLIP does it, on Pillow.

Source: RandAugment (NeurIPS 2020) with the operations, strengths and chances of the original BLIP's
`transform_train`: a crop of at least half the area, a flip, and two operations of ten at strength 5 of 10.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageEnhance, ImageOps

_GREY: Final = (128, 128, 128)
_STRONGEST: Final = 10
_LARGEST_SHEAR, _LARGEST_SHIFT_PIXELS, _LARGEST_ANGLE = 0.3, 10.0, 30.0
_CROP_ATTEMPTS: Final = 10


@dataclass(frozen=True)
class Augmentation:
    """How pictures are changed.

    smallest_area: of a crop, as a share of the picture's. flip: the chance of a mirrored picture. operations:
    drawn with repetition from OPERATIONS, each then done with chance one half, at strength of 10.
    """

    smallest_area: float = 0.5
    flip: float = 0.5
    operations: int = 2
    strength: int = 5

    def __call__(self, image: Image.Image, height: int, width: int, rng: random.Random) -> Image.Image:
        """A random version of an RGB picture, of height x width."""
        image = random_crop(image, self.smallest_area, rng).resize((width, height), Image.Resampling.BICUBIC)
        if rng.random() < self.flip:
            image = ImageOps.mirror(image)
        for name in rng.choices(list(OPERATIONS), k=self.operations):
            if rng.random() < 0.5:
                image = OPERATIONS[name](image, self.strength / _STRONGEST, rng)
        return image


def random_crop(image: Image.Image, smallest_area: float, rng: random.Random) -> Image.Image:
    """A part of the picture, its area and its sides' ratio (3:4 to 4:3) at random; the whole if none fits."""
    width, height = image.size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(smallest_area, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        cut_width, cut_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < cut_width <= width and 0 < cut_height <= height:
            left, top = rng.randint(0, width - cut_width), rng.randint(0, height - cut_height)
            return image.crop((left, top, left + cut_width, top + cut_height))
    return image


def _either_way(amount: float, rng: random.Random) -> float:
    return amount if rng.random() < 0.5 else -amount


def _moved(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    """What stands at (a x + b y + c, d x + e y + f) comes to (x, y); grey where nothing stood."""
    return image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=_GREY
    )


def _enhancement(share: float) -> float:
    """The factor of an enhancer at a strength's share: 1 leaves a picture as it is."""
    return 1.8 * share + 0.1


def _rotate(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    angle = _either_way(share * _LARGEST_ANGLE, rng)
    return image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=_GREY)


_Operation = Callable[[Image.Image, float, random.Random], Image.Image]
OPERATIONS: Final[Mapping[str, _Operation]] = {
    "identity": lambda image, share, rng: image,
    "auto_contrast": lambda image, share, rng: ImageOps.autocontrast(image),
    "brightness": lambda image, share, rng: ImageEnhance.Brightness(image).enhance(_enhancement(share)),
    "sharpness": lambda image, share, rng: ImageEnhance.Sharpness(image).enhance(_enhancement(share)),
    "equalize": lambda image, share, rng: ImageOps.equalize(image),
    "shear_x": lambda image, share, rng: _moved(
        image, (1, _either_way(share * _LARGEST_SHEAR, rng), 0, 0, 1, 0)
    ),
    "shear_y": lambda image, share, rng: _moved(
        image, (1, 0, 0, _either_way(share * _LARGEST_SHEAR, rng), 1, 0)
    ),
    "translate_x": lambda image, share, rng: _moved(
        image, (1, 0, _either_way(share * _LARGEST_SHIFT_PIXELS, rng), 0, 1, 0)
    ),
    "translate_y": lambda image, share, rng: _moved(
        image, (1, 0, 0, 0, 1, _either_way(share * _LARGEST_SHIFT_PIXELS, rng))
    ),
    "rotate": _rotate,
}
