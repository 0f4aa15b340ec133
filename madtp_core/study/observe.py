"""What every request shows and what it needs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from madtp_core.difficulty import request_features
from madtp_core.errors import ConfigError
from madtp_core.evaluate import Progress, Sample, predict
from madtp_core.pruning import PER_INSTANCE, VISION
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import Traces

Sequenced = tuple[int, tuple[int, ...]]  # dense tokens, and those that each block needed

_BATCH = 16  # per_instance: a request of a batch needs what it needs alone


@dataclass(frozen=True, eq=False)
class Observation:
    """One request, measured alone.

    features: those of `difficulty.REQUEST_FEATURES`. need: tokens needed / tokens of a dense run, over all
    blocks of pruned branches. sequences: all of the request's, by kind (`vision`, `text`, `match`); a branch
    that is not pruned needs all of its tokens. groups: what it is counted under.
    """

    features: NDArray[np.float64]
    need: float
    sequences: Mapping[str, tuple[Sequenced, ...]]
    groups: tuple[str, ...] = ()

    def image_need(self, block: int) -> float:
        """Share of the image tokens that a block of the image tower needs; block counts from 0."""
        dense = sum(tokens for tokens, _ in self.sequences[VISION])
        return sum(needed[block] for _, needed in self.sequences[VISION]) / dense


def observe(
    model: PrunedModel,
    samples: Sequence[Sample],
    prune_temperature: float,
    on_batch: Progress | None = None,
) -> list[Observation]:
    """Measure every sample alone (per_instance) at one prune temperature.

    Raises ConfigError where nothing is pruned.
    """
    found = []
    for start in range(0, len(samples), _BATCH):
        batch = [samples[row] for row in range(start, min(start + _BATCH, len(samples)))]
        answers = predict(model, batch, prune_temperature=prune_temperature, keep_mode=PER_INSTANCE)
        for sample, answer in zip(batch, answers, strict=True):
            need = answer.spent.difficulty
            if need is None:
                raise ConfigError(f"{model.name} prunes nothing at prune temperature {prune_temperature}")
            features = request_features(sample.pictures, sample.texts)
            found.append(Observation(features, need, _sequences(answer.spent.traces), sample.groups))
        if on_batch is not None:
            on_batch(len(batch))
    return found


def _sequences(traces: Traces) -> dict[str, tuple[Sequenced, ...]]:
    return {kind: tuple((trace.dense, trace.needed) for trace in each) for kind, each in traces.items()}
