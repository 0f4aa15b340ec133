"""What there is to learn from, before any model: pictures, a text and what is right about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image


class Picture(Protocol):
    """Something that opens as a picture."""

    def open(self) -> Image.Image:
        """An RGB picture."""


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
    references: all annotators' answers, or all captions of the picture, to measure a model by; empty: by the
    heaviest answer, by the text.
    """

    pictures: tuple[Picture, ...]
    text: str
    answers: tuple[tuple[str, float], ...] = ()
    label: bool | None = None
    key: int = 0
    references: tuple[str, ...] = ()


Examples = Sequence[Example]
