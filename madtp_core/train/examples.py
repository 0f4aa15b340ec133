"""What there is to learn from, before any model: pictures, a text and what is right about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from madtp_core.errors import ConfigError


class Picture(Protocol):
    """Something that opens as a picture."""

    def open(self) -> Image.Image:
        """An RGB picture."""


@dataclass(frozen=True)
class PictureFile:
    """A picture in a file; named_in says where it was named, for the error when it does not open."""

    path: Path
    named_in: str

    def open(self) -> Image.Image:
        """The picture; raises ConfigError for a file that holds none."""
        try:
            with Image.open(self.path) as image:
                return ImageOps.exif_transpose(image).convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ConfigError(f"{self.named_in}: {str(self.path)!r} does not open: {error}") from error


@dataclass(frozen=True, eq=False)
class PictureArray:
    """A picture that is there already: uint8 [H, W, 3]."""

    pixels: NDArray[np.uint8]

    def open(self) -> Image.Image:
        """The picture."""
        return Image.fromarray(self.pixels)


@dataclass(frozen=True, eq=False)
class Example:
    """One thing to learn.

    pictures: one; two for reasoning. text: the question, the caption or the statement. answers: to a
    question, with the weight of each. label: whether a statement is true. key: which picture a caption is of.
    """

    pictures: tuple[Picture, ...]
    text: str
    answers: tuple[tuple[str, float], ...] = ()
    label: bool | None = None
    key: int = 0


Examples = Sequence[Example]
