"""Models out of which some heads and units were taken, at random but the same ones every time."""

import torch

from madtp_core.checkpoint import Checkpoint
from madtp_core.parameter_pruning.masks import Masks
from madtp_core.parameter_pruning.materialise import without_parameters
from madtp_core.parameter_pruning.structures import every_component
from madtp_core.tasks.base import PrunedModel


def some_of_each(model, seed: int = 0) -> list[list[int]]:
    """Of every component from one structure to all; rising indices."""
    generator = torch.Generator().manual_seed(seed)

    def some(count: int) -> list[int]:
        kept = int(torch.randint(1, count + 1, (), generator=generator))
        return sorted(torch.randperm(count, generator=generator)[:kept].tolist())

    return [some(component.count) for component in every_component(model)]


def pruned(checkpoint: Checkpoint, seed: int = 0) -> Checkpoint:
    """The checkpoint without the others."""
    return without_parameters(checkpoint, some_of_each(checkpoint.model, seed))


def pruned_model(model: PrunedModel, seed: int = 0) -> PrunedModel:
    """The same of a task's model."""
    return type(model)(pruned(model.checkpoint, seed), name=model.name)


def masked(model, kept: list[list[int]]) -> Masks:
    """Masks on a Hugging Face model that leave only the kept structures."""
    masks = Masks(model)
    values = [torch.zeros(component.count) for component in masks.components]
    for value, indices in zip(values, kept, strict=True):
        value[indices] = 1.0
    with torch.no_grad():
        masks.values.copy_(torch.cat(values))
    return masks
