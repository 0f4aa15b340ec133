"""Synthetic scenes as examples of every task, made when they are asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from madtp_core.data.lazy import Lazy
from madtp_core.data.shapes import ShapesVqa, Split, captions, statement
from madtp_core.train.examples import Example, PictureArray


@dataclass(frozen=True)
class ShapesExamples(Lazy[Example]):
    """Drawn scenes with one question, caption or statement each: a function of its fields and the index."""

    task: str
    length: int
    split: Split = "train"
    seed: int = 0

    def __len__(self) -> int:
        return self.length

    def item(self, index: int) -> Example:
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
