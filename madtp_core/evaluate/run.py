"""Samples through a model in batches: outcomes and cost of every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from madtp_core.evaluate.samples import Sample, plain_task_of, query_of
from madtp_core.evaluate.scores import MEASURES, score
from madtp_core.pruning import MAX_KEEP
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import Spent

ALL: Final = "all"
BANDS: Final = ("easy", "middle", "hard")
Progress = Callable[[int], object]  # told how many samples were just done


@dataclass(frozen=True)
class Outlay:
    """What one sample took: operations, and tokens over all blocks of all its sequences."""

    flops: int
    dense_flops: int
    needed_tokens: int
    kept_tokens: int
    dense_tokens: int

    @classmethod
    def of(cls, spent: Spent) -> Outlay:
        """Summed up from what the model says of a request."""
        traces = [trace for each in spent.traces.values() for trace in each]
        return cls(
            spent.cost.flops,
            spent.cost.dense_flops,
            sum(sum(trace.needed) for trace in traces),
            sum(sum(trace.kept) for trace in traces),
            sum(trace.dense * len(trace.kept) for trace in traces),
        )


@dataclass(frozen=True)
class Evaluation:
    """Outcomes and outlays, sample by sample.

    measure: the one that speaks for the task. outcomes: by measure, empty without labels. groups: of every
    sample, besides `all`. whole: figures that only the whole has.
    """

    measure: str
    outcomes: Mapping[str, tuple[float, ...]]
    groups: tuple[tuple[str, ...], ...]
    outlays: tuple[Outlay, ...]
    whole: Mapping[str, float] = field(default_factory=dict)

    def mean(self, group: str = ALL, measure: str | None = None) -> float | None:
        """The mean outcome of a group by a measure, the task's own if None; None without labels."""
        outcomes = self.outcomes.get(measure or self.measure)
        return None if outcomes is None else float(np.mean([outcomes[row] for row in self._rows(group)]))

    def flops_ratio(self, group: str = ALL) -> float:
        """Spent over dense, summed over the samples of a group."""
        return self._share("flops", "dense_flops", group)

    def token_density(self, group: str = ALL) -> float:
        """Tokens kept over tokens of dense runs."""
        return self._share("kept_tokens", "dense_tokens", group)

    def keep_efficiency(self, group: str = ALL) -> float:
        """Tokens needed over tokens kept."""
        return self._share("needed_tokens", "kept_tokens", group)

    def per_sample(self) -> dict[str, tuple[float, ...]]:
        """Every measure's outcomes, and what each sample spent of its dense cost."""
        ratios = tuple(outlay.flops / outlay.dense_flops for outlay in self.outlays)
        return {**self.outcomes, "flops_ratio": ratios}

    def figures(self) -> dict[str, float]:
        """Plain figures for a log or a table: a measure and a group, a cost and a difficulty band."""
        names = sorted({ALL, *(group for groups in self.groups for group in groups)})
        means = {
            f"{measure}/{group}": self.mean(group, measure) for measure in self.outcomes for group in names
        }
        costs = {"flops_ratio": self.flops_ratio, "token_density": self.token_density}
        costs["keep_efficiency"] = self.keep_efficiency
        return {
            **{name: mean for name, mean in means.items() if mean is not None},
            **self.whole,
            **{name: cost() for name, cost in costs.items()},
            **{
                f"{name}/{band}": cost(band)
                for name, cost in costs.items()
                for band in BANDS
                if band in names
            },
            "samples": len(self.groups),
        }

    def _rows(self, group: str) -> list[int]:
        return [row for row, groups in enumerate(self.groups) if group == ALL or group in groups]

    def _share(self, part: str, whole: str, group: str) -> float:
        chosen = [self.outlays[row] for row in self._rows(group)]
        total: int = sum(getattr(outlay, whole) for outlay in chosen)
        return float(sum(getattr(outlay, part) for outlay in chosen) / total)


def evaluate(
    model: PrunedModel,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    prune_temperature: float = 0.0,
    keep_mode: str = MAX_KEEP,
    on_batch: Progress | None = None,
) -> Evaluation:
    """Ask the model about every sample, in batches and in their order; prune_temperature 0 runs dense."""
    truths, groups, answers = [], [], []
    for start in range(0, len(samples), batch_size):
        batch = [samples[row] for row in range(start, min(start + batch_size, len(samples)))]
        answers += predict(model, batch, prune_temperature=prune_temperature, keep_mode=keep_mode)
        truths += [sample.truth for sample in batch]
        groups += [sample.groups for sample in batch]
        if on_batch is not None:
            on_batch(len(batch))
    scores = score(model.task, truths, answers)
    outlays = tuple(Outlay.of(answer.spent) for answer in answers)
    return Evaluation(MEASURES[model.task], scores.outcomes, tuple(groups), outlays, scores.whole)


def predict(
    model: PrunedModel, batch: Sequence[Sample], *, prune_temperature: float, keep_mode: str = MAX_KEEP
) -> list[Any]:
    """The model's answers to one batch of samples, as the service would get them."""
    queries = [query_of(model, sample) for sample in batch]
    return plain_task_of(model).predict(
        model, queries, prune_temperature=prune_temperature, keep_mode=keep_mode
    )
