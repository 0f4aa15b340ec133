"""From kept heads and units to a smaller model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from madtp_core.checkpoint import Checkpoint
from madtp_core.parameter_pruning.structures import every_component, geometry_of


def without_parameters(checkpoint: Checkpoint, kept: Sequence[Sequence[int]]) -> Checkpoint:
    """A copy whose linear layers hold only the kept structures of each component.

    kept: rising indices a component, in `every_component`'s order. The calibration is left out: it was
    measured on the model as it was. Alignment tokens and pruning stay.
    """
    model = deepcopy(checkpoint.model)
    for component, indices in zip(every_component(model), kept, strict=True):
        component.keep(indices)
    config = replace(checkpoint.config, geometry=geometry_of(model))
    return replace(checkpoint, model=model, config=config, calibration=None)
