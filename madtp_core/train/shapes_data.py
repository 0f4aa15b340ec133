"""Batches of scenes with everything training asks of them, as a function of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from madtp_core.data.shapes import Description, ShapesVqa
from madtp_core.data.shapes.dataset import VqaExample
from madtp_core.data.shapes.scene import CANVAS, GRID, SIZES, TEXTURES, SceneObject
from madtp_core.images import ImageGeometry

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
class Named:
    """What Q texts speak of, by D descriptions each.

    patches [Q, D, patches] bool: where the objects stand that a description names; counts [Q, D]: how many,
    -1 without one; centres [Q, D, patches] bool: the patches that hold their centres.
    """

    patches: Tensor
    counts: Tensor
    centres: Tensor

    def of(self, description: int) -> Named:
        """One of the descriptions alone."""
        chosen = slice(description, description + 1)
        return Named(self.patches[:, chosen], self.counts[:, chosen], self.centres[:, chosen])


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


def named(example: VqaExample, about: Sequence[Description]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Where the objects stand that each description names, and their centres: bool [D, patches] each."""
    cells = patch_cells(example)
    patches, marked = [], []
    for description in about:
        things = [thing for thing in example.scene.objects if description.matches(thing)]
        in_cells = np.isin(cells, [thing.cell for thing in things])
        patches.append(in_cells & (example.patch_labels > 0))
        marked.append(centre_patches(example, things))
    return np.stack(patches), np.stack(marked)


def named_by(asked: Sequence[tuple[VqaExample, Sequence[Description]]], descriptions: int) -> Named:
    """What texts about scenes speak of, by so many descriptions each, those that it lacks included."""
    patches = np.zeros((len(asked), descriptions, len(asked[0][0].patch_labels)), np.bool_)
    centres = np.zeros_like(patches)
    counts = np.full((len(asked), descriptions), -1)
    for row, (example, about) in enumerate(asked):
        patches[row, : len(about)], centres[row, : len(about)] = named(example, about)
        counts[row, : len(about)] = [sum(map(one.matches, example.scene.objects)) for one in about]
    return Named(torch.from_numpy(patches), torch.from_numpy(counts), torch.from_numpy(centres))


def centre_patches(example: VqaExample, objects: Sequence[SceneObject]) -> NDArray[np.bool_]:
    """The patches that hold the objects' centres: bool [patches]."""
    side = int(len(example.patch_labels) ** 0.5)
    marked = np.zeros((side, side), np.bool_)
    for thing in objects:
        marked[thing.y * side // CANVAS, thing.x * side // CANVAS] = True
    return marked.ravel()


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
