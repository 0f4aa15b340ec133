"""Examples as requests of the served path, to be measured on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from madtp_core.evaluate.read import fitted
from madtp_core.evaluate.samples import Sample, Samples
from madtp_core.tasks.text import TextCodec
from madtp_core.train.examples import Example, Examples, Picture

CANDIDATES = 8  # texts that an image is ranked against


@dataclass(frozen=True)
class HeldOut(Samples):
    """Examples of a task as samples; pictures are opened when they are asked for.

    prompt: what captions continue. candidates: texts of a ranking, the right one and others' at random; with
    1, a pair, whose cost is what training steers. codec: with the model, which refuses longer texts than it
    reads: they lose their last words, as in training.
    """

    examples: Examples
    task: str
    prompt: str = ""
    candidates: int = CANDIDATES
    codec: TextCodec | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def item(self, index: int) -> Sample:
        example = self.examples[index]
        fields, truth = self._asked(index, example)
        return Sample(tuple(_pixels(picture) for picture in example.pictures), fields, truth)

    def _asked(self, index: int, example: Example) -> tuple[dict[str, Any], Any]:
        if self.task == "vqa":
            heaviest = max(example.answers, key=lambda pair: pair[1])[0]
            return {"question": fitted(example.text, self.codec)}, example.references or heaviest
        if self.task == "caption":
            return {"prompt": self.prompt} if self.prompt else {}, example.references or (example.text,)
        if self.task == "reasoning":
            return {"statement": fitted(example.text, self.codec)}, example.label
        texts = [example.text, *self._others(index, example)]
        return {"texts": tuple(fitted(text, self.codec) for text in texts)}, (0,)

    def _others(self, index: int, example: Example) -> list[str]:
        """Texts of other pictures, as many as there are up to the wanted number."""
        rng = random.Random(f"candidates/{index}")
        found: dict[str, None] = {}
        for row in rng.sample(range(len(self)), min(len(self), 4 * self.candidates)):
            other = self.examples[row]
            if len(found) < self.candidates - 1 and other.key != example.key and other.text != example.text:
                found.setdefault(other.text)
        return list(found)


def _pixels(picture: Picture) -> Any:
    return np.asarray(picture.open())
