"""Drawn scenes as samples of every task, in mixes of known difficulty."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Final

import numpy as np

from madtp_core.calibration import NATURAL
from madtp_core.data.shapes import (
    Band,
    ShapesVqa,
    Split,
    VqaExample,
    captions,
    difficulty_band,
    sample_scene,
    statement,
)
from madtp_core.errors import UnknownNameError
from madtp_core.evaluate.gallery import Gallery
from madtp_core.evaluate.samples import Sample, Samples

# Difficulty bands and their shares; a band is known from a scene's number of objects.
MIXES: Final[Mapping[str, Mapping[Band, float]]] = {
    NATURAL: {},
    "easy": {"easy": 1.0},
    "hard": {"hard": 1.0},
    "mostly_easy": {"easy": 0.9, "hard": 0.1},
}
RANKED_TEXTS: Final = 8  # candidates of one drawn retrieval request
_FEW_OBJECTS: Final = 6
_ANSWER_TOKENS, _CAPTION_TOKENS = 6, 30
_OTHER_SCENES: Final = 1_000_000  # from here on, scenes only lend their captions to others


@dataclass(frozen=True)
class ShapesSamples(Samples):
    """Requests of one task about drawn scenes: a function of its fields and nothing else.

    mix: one of MIXES; scenes of every band in the order of their numbers, bands in random order. A statement
    is about two scenes. Raises UnknownNameError for an unknown mix.
    """

    task: str
    split: Split
    length: int
    seed: int = 0
    mix: str = NATURAL
    image_size: int = 96

    def __len__(self) -> int:
        return self.length

    def item(self, index: int) -> Sample:
        rng = random.Random(f"sample/{self.task}/{self.seed}/{self.split}/{index}")
        return _BUILDERS[self.task](self, [self._scenes[number] for number in self._numbers[index]], rng)

    @cached_property
    def _scenes(self) -> ShapesVqa:
        return ShapesVqa(self.seed, self.split, 2 * _OTHER_SCENES, 1, self.image_size)

    @cached_property
    def _numbers(self) -> list[tuple[int, ...]]:
        """The numbers of each sample's scenes."""
        if self.mix not in MIXES:
            raise UnknownNameError("mix", self.mix, MIXES)
        each = 2 if self.task == "reasoning" else 1
        sources: dict[Band | None, Iterator[int]] = {}
        numbers = []
        for band in _bands(self.mix, self.length):
            source = sources.setdefault(band, self._of_band(band))
            numbers.append(tuple(next(source) for _ in range(each)))
        return numbers

    def _of_band(self, band: Band | None) -> Iterator[int]:
        for number in count():
            if band is None or difficulty_band(sample_scene(self.seed, self.split, number)) == band:
                yield number

    def other_captions(self, own: Sequence[str], wanted: int, rng: random.Random) -> list[str]:
        """Distinct captions of other scenes that are none of a scene's own."""
        found: dict[str, None] = {}
        while len(found) < wanted:
            scene = sample_scene(self.seed, self.split, _OTHER_SCENES + rng.randrange(_OTHER_SCENES))
            text = rng.choice(captions(scene))
            if text not in own:
                found.setdefault(text)
        return list(found)


def shapes_gallery(split: Split, images: int, seed: int = 0, image_size: int = 96) -> Gallery:
    """The first scenes of a split and all their captions, each distinct text once.

    A text is right for every scene that has it among its five captions, word for word.
    """
    scenes = ShapesVqa(seed, split, images, 1, image_size)
    examples = [scenes[number] for number in range(images)]
    said = [captions(example.scene) for example in examples]
    texts = list(dict.fromkeys(text for own in said for text in own))
    place = {text: column for column, text in enumerate(texts)}
    right = np.zeros((images, len(texts)), np.bool_)
    for row, own in enumerate(said):
        right[row, [place[text] for text in own]] = True
    bands = tuple((difficulty_band(example.scene),) for example in examples)
    return Gallery([example.image for example in examples], tuple(texts), right, bands)


def _bands(mix: str, length: int) -> list[Band | None]:
    """The band of every sample, None for whatever comes; shares are exact, their order is random."""
    shares = MIXES[mix]
    if not shares:
        return [None] * length
    bands: list[Band | None] = []
    for band, share in shares.items():
        bands += [band] * round(share * length)
    bands = (bands + [next(iter(shares))] * length)[:length]
    random.Random(f"mix/{mix}").shuffle(bands)
    return bands


def _vqa(data: ShapesSamples, examples: Sequence[VqaExample], rng: random.Random) -> Sample:
    (example,) = examples
    question = example.questions[0]
    few = ("up_to_6_objects",) if example.scene.num_objects <= _FEW_OBJECTS else ()
    return Sample(
        (example.image,),
        {"question": question.text, "max_new_tokens": _ANSWER_TOKENS},
        question.answer,
        (question.family, difficulty_band(example.scene), *few),
    )


def _caption(data: ShapesSamples, examples: Sequence[VqaExample], rng: random.Random) -> Sample:
    (example,) = examples
    fields = {"max_new_tokens": _CAPTION_TOKENS}
    return Sample((example.image,), fields, captions(example.scene), (difficulty_band(example.scene),))


def _reasoning(data: ShapesSamples, examples: Sequence[VqaExample], rng: random.Random) -> Sample:
    left, right = examples
    text, truth = statement(left.scene, right.scene, rng)
    bands = {difficulty_band(left.scene), difficulty_band(right.scene)}
    band = bands.pop() if len(bands) == 1 else "middle"  # unlike scenes are neither easy nor hard
    return Sample((left.image, right.image), {"statement": text}, truth, (band,))


def _ranking(data: ShapesSamples, examples: Sequence[VqaExample], rng: random.Random) -> Sample:
    (example,) = examples
    own = captions(example.scene)
    texts = [rng.choice(own), *data.other_captions(own, RANKED_TEXTS - 1, rng)]
    rng.shuffle(texts)
    right = tuple(row for row, text in enumerate(texts) if text in own)
    return Sample((example.image,), {"texts": tuple(texts)}, right, (difficulty_band(example.scene),))


_Builder = Callable[[ShapesSamples, Sequence[VqaExample], random.Random], Sample]
_BUILDERS: Final[Mapping[str, _Builder]] = {
    "vqa": _vqa,
    "caption": _caption,
    "reasoning": _reasoning,
    "retrieval": _ranking,
    "clip": _ranking,
}
