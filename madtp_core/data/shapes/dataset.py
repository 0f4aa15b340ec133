"""Scenes with their pictures, questions and patch labels, by index: what a training loop reads."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from madtp_core.data.shapes.draw import draw
from madtp_core.data.shapes.patches import DEFAULT_PATCH_SIZE, patch_labels
from madtp_core.data.shapes.questions import Question, questions
from madtp_core.data.shapes.scene import Scene, Split, sample_scene
from madtp_core.data.shapes.stamps import DEFAULT_IMAGE_SIZE


@dataclass(frozen=True, slots=True)
class VqaExample:
    """One picture with everything we know about it."""

    image: NDArray[np.uint8]  # [H, W, 3]
    questions: list[Question]
    patch_labels: NDArray[np.int64]  # [num_patches]
    scene: Scene


@dataclass(frozen=True)
class ShapesVqa:
    """A map-style data set of drawn scenes, a function of (seed, split, index) and nothing else.

    family_weights: how often each family of questions is asked, see `questions`. Holds no pixels, so workers
    share it for free; `torch.utils.data.DataLoader` takes it as it is, with a `collate_fn` of the task.
    Raises `ConfigError` for an unknown split or unfit sizes and `IndexError` beyond its length.
    """

    seed: int
    split: Split
    length: int
    questions_per_scene: int = 8
    image_size: int = DEFAULT_IMAGE_SIZE
    patch_size: int = DEFAULT_PATCH_SIZE
    family_weights: Mapping[str, float] | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> VqaExample:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is not in 0..{self.length - 1}")
        scene = sample_scene(self.seed, self.split, index)
        rng = random.Random(f"questions/{self.seed}/{self.split}/{index}")
        return VqaExample(
            image=draw(scene, self.image_size),
            questions=questions(scene, rng, self.questions_per_scene, self.family_weights),
            patch_labels=patch_labels(scene, self.patch_size, self.image_size),
            scene=scene,
        )
