"""Examples to micro-batches of any task, as a function of the micro-batch's index."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from madtp_core.images import ImageGeometry, preprocess_image
from madtp_core.tasks.text import TextCodec
from madtp_core.train.augment import Augmentation
from madtp_core.train.batches import Captions, ImageTexts, Statements, VqaAnswers
from madtp_core.train.examples import Example, Examples, Picture


class ExampleBatches(Dataset[Any]):
    """Micro-batch index -> micro-batch, epoch after epoch, each in an order of its own.

    The order, and how each picture is changed, are functions of seed and index: whoever asks, whenever, gets
    the same. codec: with the task's model; start_id: of its decoder, where it has one. prompt: what captions
    continue. augmentation: None for pictures as they are served.
    """

    def __init__(
        self,
        examples: Examples,
        task: str,
        codec: TextCodec,
        geometry: ImageGeometry,
        batch_size: int,
        *,
        start_id: int = 0,
        prompt: str = "",
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.examples, self.task, self.batch_size, self.seed = examples, task, batch_size, seed
        self.codec, self.geometry, self.augmentation = codec, geometry, augmentation
        self.start_id, self.prompt = start_id, prompt

    def __getitem__(self, index: int) -> Any:
        places = range(index * self.batch_size, (index + 1) * self.batch_size)
        chosen = [self.examples[self._example_at(place)] for place in places]
        sides = range(len(chosen[0].pictures))
        images = [
            self._pixels(example.pictures[side], f"{self.seed}/{place}/{side}")
            for side in sides
            for place, example in zip(places, chosen, strict=True)
        ]
        return _BUILDERS[self.task](self, chosen, torch.from_numpy(np.stack(images)))

    def _example_at(self, place: int) -> int:
        epoch, within = divmod(place, len(self.examples))
        return int(_order(self.seed, epoch, len(self.examples))[within])

    def _pixels(self, picture: Picture, chance: str) -> NDArray[np.float32]:
        image = picture.open()
        if self.augmentation is not None:
            rng = random.Random(f"augment/{chance}")
            image = self.augmentation(image, self.geometry.height, self.geometry.width, rng)
        return preprocess_image(image, self.geometry)

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [Q, L], right padded; what is too long loses its end, but not its end token."""
        encoded = self.codec.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.codec.max_text_tokens,
            return_tensors="pt",
            verbose=False,
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def decoded(self, texts: Sequence[str]) -> Tensor:
        """What a decoder learns to write: start token, text, end token, then -100: [Q, L]."""
        ids, mask = self.tokens(texts)
        ids = ids.masked_fill(mask == 0, -100)
        ids[:, 0] = self.start_id
        return ids


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """An order of all examples for an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(length)


def _vqa(data: ExampleBatches, examples: Sequence[Example], pixels: Tensor) -> VqaAnswers:
    ids, mask = data.tokens([example.text for example in examples])
    answers = [(row, *answer) for row, example in enumerate(examples) for answer in example.answers]
    return VqaAnswers(
        pixels,
        data.codec.reading(ids),
        mask,
        torch.arange(len(examples)),
        data.decoded([text for _, text, _ in answers]),
        torch.tensor([row for row, _, _ in answers]),
        torch.tensor([weight for _, _, weight in answers]),
    )


def _caption(data: ExampleBatches, examples: Sequence[Example], pixels: Tensor) -> Captions:
    prompt_tokens = 1 + len(data.codec.prompt_ids(data.prompt))
    ids = data.decoded([data.prompt + example.text for example in examples])
    return Captions(pixels, ids, prompt_tokens, torch.arange(len(examples)))


def _pairs(data: ExampleBatches, examples: Sequence[Example], pixels: Tensor) -> ImageTexts:
    ids, mask = data.tokens([example.text for example in examples])
    keys = torch.tensor([example.key for example in examples])
    return ImageTexts(pixels, ids, data.codec.reading(ids), mask, keys)


def _reasoning(data: ExampleBatches, examples: Sequence[Example], pixels: Tensor) -> Statements:
    ids, mask = data.tokens([example.text for example in examples])
    labels = torch.tensor([int(bool(example.label)) for example in examples])
    return Statements(pixels, data.codec.reading(ids), mask, labels)


_BUILDERS: Final[Mapping[str, Callable[[ExampleBatches, Sequence[Example], Tensor], Any]]] = {
    "vqa": _vqa,
    "caption": _caption,
    "retrieval": _pairs,
    "clip": _pairs,
    "reasoning": _reasoning,
}
