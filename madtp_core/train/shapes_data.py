"""Batches of scenes with everything training asks of them, as a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from madtp_core.data.shapes import ANSWERS, Question, ShapesVqa
from madtp_core.data.shapes.dataset import VqaExample
from madtp_core.data.shapes.scene import CANVAS, GRID, SIZES, TEXTURES, SceneObject
from madtp_core.images import ImageGeometry
from madtp_core.tasks.text import TextCodec

NUM_LOOK_LABELS = 1 + len(SIZES) * len(TEXTURES)


@dataclass(frozen=True, eq=False)
class SceneBatch:
    """B scenes: images [B, H, W, 3] uint8, and what stands in every patch.

    patch_labels [B, patches]: shape and colour, look_labels [B, patches]: size and texture, 0 for background
    in both; centre_labels [B, patches] bool: the patches that hold an object's centre.
    """

    images: Tensor
    patch_labels: Tensor
    look_labels: Tensor
    centre_labels: Tensor


@dataclass(frozen=True, eq=False)
class VqaBatch:
    """B scenes with Q questions.

    question_ids, question_mask [Q, L], reader [Q] question -> image, answer_ids [Q, A] with -100 behind the
    end token, answer_labels [Q]: the answer's index in ANSWERS. spoken_of [Q, 2, patches] bool: where the
    objects stand that a question's first and second description name; named_counts [Q, 2]: how many, -1
    without one; named_centres [Q, 2, patches] bool: the patches that hold their centres.
    """

    scenes: SceneBatch
    question_ids: Tensor
    question_mask: Tensor
    reader: Tensor
    answer_ids: Tensor
    answer_labels: Tensor
    spoken_of: Tensor
    named_counts: Tensor
    named_centres: Tensor


@dataclass(frozen=True)
class ShapesBatches(Dataset[SceneBatch]):
    """Step -> scenes: every step sees scenes that no other step saw.

    first_scene shifts them, so that a second stage sees none of the first.
    """

    scenes: ShapesVqa
    batch_size: int
    first_scene: int = 0

    def examples(self, step: int) -> list[VqaExample]:
        """The scenes of a step with their questions."""
        first = self.first_scene + step * self.batch_size
        return [self.scenes[first + row] for row in range(self.batch_size)]

    def __getitem__(self, step: int) -> SceneBatch:
        return scene_batch(self.examples(step))


class ShapesVqaBatches(Dataset[VqaBatch]):
    """Step -> the scenes of that step with their questions."""

    def __init__(self, batches: ShapesBatches, codec: TextCodec) -> None:
        self.batches, self.codec = batches, codec

    def __getitem__(self, step: int) -> VqaBatch:
        examples = self.batches.examples(step)
        asked = [(row, question) for row, example in enumerate(examples) for question in example.questions]
        ids, mask = self.codec.questions([question.text for _, question in asked])
        start_id = self.codec.tokenizer.bos_token_id
        return VqaBatch(
            scene_batch(examples),
            ids,
            mask,
            torch.tensor([row for row, _ in asked]),
            self.codec.training_answers([question.answer for _, question in asked], start_id),
            torch.tensor([ANSWERS.index(question.answer) for _, question in asked]),
            torch.from_numpy(np.stack([spoken_of(examples[row], question) for row, question in asked])),
            torch.tensor([named_counts(examples[row], question) for row, question in asked]),
            torch.from_numpy(np.stack([named_centres(examples[row], question) for row, question in asked])),
        )


def scene_batch(examples: Sequence[VqaExample]) -> SceneBatch:
    """Stack scenes and their labels."""
    return SceneBatch(
        torch.from_numpy(np.stack([example.image for example in examples])),
        torch.from_numpy(np.stack([example.patch_labels for example in examples])),
        torch.from_numpy(np.stack([look_labels(example) for example in examples])),
        torch.from_numpy(np.stack([centre_patches(example, example.scene.objects) for example in examples])),
    )


def patch_cells(example: VqaExample) -> NDArray[np.int64]:
    """The cell of the scene's grid that each patch lies in, row-major: int64 [patches]."""
    side = int(len(example.patch_labels) ** 0.5)
    cell = np.arange(side) * GRID // side
    return (cell[:, None] * GRID + cell).ravel()


def spoken_of(example: VqaExample, question: Question) -> NDArray[np.bool_]:
    """Where the objects stand that a question's first and second description name: bool [2, patches]."""
    cells = patch_cells(example)
    patches = np.zeros((2, len(cells)), np.bool_)
    for row, description in enumerate(question.about):
        named = [thing.cell for thing in example.scene.objects if description.matches(thing)]
        patches[row] = np.isin(cells, named) & (example.patch_labels > 0)
    return patches


def named_counts(example: VqaExample, question: Question) -> tuple[int, int]:
    """How many objects a question's first and second description name; -1 for a description it has not."""
    counts = [sum(map(description.matches, example.scene.objects)) for description in question.about]
    return (counts[0], counts[1]) if len(counts) == 2 else (counts[0], -1)


def centre_patches(example: VqaExample, objects: Sequence[SceneObject]) -> NDArray[np.bool_]:
    """The patches that hold the objects' centres: bool [patches]."""
    side = int(len(example.patch_labels) ** 0.5)
    marked = np.zeros((side, side), np.bool_)
    for thing in objects:
        marked[thing.y * side // CANVAS, thing.x * side // CANVAS] = True
    return marked.ravel()


def named_centres(example: VqaExample, question: Question) -> NDArray[np.bool_]:
    """The patches that hold the centres of what a question's two descriptions name: bool [2, patches]."""
    marked = np.zeros((2, len(example.patch_labels)), np.bool_)
    for row, description in enumerate(question.about):
        marked[row] = centre_patches(example, [o for o in example.scene.objects if description.matches(o)])
    return marked


def look_labels(example: VqaExample) -> NDArray[np.int64]:
    """Size and texture in every patch: 0 background, else 1 + size * textures + texture; int64 [patches].

    An object never leaves its cell, so a patch's cell names its object.
    """
    look_of_cell = np.zeros(GRID * GRID, np.int64)
    for thing in example.scene.objects:
        look_of_cell[thing.cell] = 1 + SIZES.index(thing.size) * len(TEXTURES) + TEXTURES.index(thing.texture)
    return np.where(example.patch_labels > 0, look_of_cell[patch_cells(example)], 0)


def pixel_values(images: Tensor, geometry: ImageGeometry) -> Tensor:
    """uint8 [B, H, W, 3] of the model's size -> normalised float32 [B, 3, H, W]."""
    scaled = images.permute(0, 3, 1, 2).float() * geometry.rescale
    mean, std = (
        torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (geometry.mean, geometry.std)
    )
    return (scaled - mean) / std
