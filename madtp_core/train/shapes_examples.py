"""Synthetic scenes as examples of every task, made when they are asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

from madtp_core.data.shapes import ShapesVqa, Split, captions, statement
from madtp_core.train.examples import Example, PictureArray


@dataclass(frozen=True)
class ShapesExamples(Sequence[Example]):
    """Drawn scenes with one question, caption or statement each: a function of its fields and the index."""

    task: str
    length: int
    split: Split = "train"
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self.length))]
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is not in 0..{self.length - 1}")
        if self.task == "reasoning":
            return self._statement(index)
        scene = self._scenes[index]
        pictures = (PictureArray(scene.image),)
        if self.task == "vqa":
            question = scene.questions[0]
            return Example(pictures, question.text, ((question.answer, 1.0),))
        rng = random.Random(f"caption/{self.seed}/{self.split}/{index}")
        return Example(pictures, rng.choice(captions(scene.scene)), key=index)

    def _statement(self, index: int) -> Example:
        left, right = self._scenes[2 * index], self._scenes[2 * index + 1]
        rng = random.Random(f"statement/{self.seed}/{self.split}/{index}")
        text, label = statement(left.scene, right.scene, rng)
        return Example((PictureArray(left.image), PictureArray(right.image)), text, label=label)

    @cached_property
    def _scenes(self) -> ShapesVqa:
        return ShapesVqa(self.seed, self.split, 2 * self.length, 1)
