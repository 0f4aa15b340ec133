"""A model on the requests of a study: what a way of pruning costs, and how well it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from madtp_core.errors import ConfigError
from madtp_core.evaluate import Evaluation, Progress, Sample, evaluate
from madtp_core.evaluate.samples import Samples
from madtp_core.flops import FLOPS_PER_MULTIPLY_ADD
from madtp_core.pruning import MAX_KEEP
from madtp_core.pruning.temperature import nearest_temperature
from madtp_core.study.variant import NONE, Tuned, Variant
from madtp_core.tasks.base import PrunedModel

_TOLERANCE: Final = 0.008  # of a wanted flops_ratio: where the search is content
_MEASUREMENTS: Final = 14
_DIGITS: Final = 4
_NOTHING: Final = float("-inf")


@dataclass(frozen=True)
class Ordered(Samples):
    """Samples in an order of their numbers, opened when they are asked for."""

    samples: Sequence[Sample]
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> Sample:
        return self.samples[self.rows[index]]


@dataclass(frozen=True, eq=False)
class Bench:
    """What is measured on.

    samples: those that accuracies are of. search_samples: others, on which costs are searched for; their
    labels are never read. on_batch: told how many requests were just asked.
    """

    samples: Sequence[Sample]
    search_samples: Sequence[Sample]
    batch_size: int = 16
    on_batch: Progress | None = None

    def measured(
        self,
        tuned: Tuned,
        *,
        keep_mode: str = MAX_KEEP,
        batch_size: int | None = None,
        order: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Cost and accuracy; order: the samples' numbers as they are asked, outcomes stay in their own."""
        rows = range(len(self.samples)) if order is None else order
        asked = Ordered(self.samples, rows)
        return figures(self._run(tuned, asked, keep_mode, batch_size), tuned, rows)

    def tuned(
        self,
        model: PrunedModel,
        variant: Variant,
        flops_ratio: float,
        *,
        keep_mode: str = MAX_KEEP,
        batch_size: int | None = None,
    ) -> Tuned:
        """The variant at the setting that spends this share of the dense cost, or the nearest that it can.

        The cost is that of served requests, decoding included, on the search samples: static methods are
        searched like MADTP. Raises ConfigError for a variant that does not fit the model.
        """

        def spent(pressure: float) -> float:
            try:
                tuned = variant.at(model, pressure)
            except ConfigError:
                return _NOTHING  # beyond what a schedule reaches
            return self._run(tuned, self.search_samples, keep_mode, batch_size).flops_ratio()

        if variant.method == NONE:
            return variant.at(model, 0.0)
        low, high = variant.pressures
        pressure, _ = nearest_temperature(
            spent,
            flops_ratio,
            minimum=low,
            maximum=high,
            tolerance=_TOLERANCE * flops_ratio,
            max_measurements=_MEASUREMENTS,
        )
        return variant.at(model, pressure)

    def _run(
        self, tuned: Tuned, samples: Sequence[Sample], keep_mode: str, batch_size: int | None
    ) -> Evaluation:
        return evaluate(
            tuned.model,
            samples,
            batch_size=batch_size or self.batch_size,
            prune_temperature=tuned.prune_temperature,
            keep_mode=keep_mode,
            on_batch=self.on_batch,
        )


def figures(result: Evaluation, tuned: Tuned, rows: Sequence[int]) -> dict[str, Any]:
    """What a cell of a study keeps of a run; rows: the number of each sample in the order asked.

    accuracy: the mean of the task's own measure, None without labels; outcomes: of every sample.
    multiply_adds: of a request in the mean.
    """
    accuracy, outlays = result.mean(), result.outlays
    found: dict[str, Any] = {
        "setting": tuned.setting,
        "flops_ratio": result.flops_ratio(),
        "multiply_adds": sum(outlay.flops for outlay in outlays) / len(outlays) / FLOPS_PER_MULTIPLY_ADD,
        "keep_efficiency": result.keep_efficiency(),
        "accuracy": accuracy,
    }
    if accuracy is not None:
        outcomes = dict(zip(rows, result.outcomes[result.measure], strict=True))
        found["outcomes"] = [_plain(outcomes[row]) for row in sorted(outcomes)]
    return found


def _plain(value: float) -> float:
    """Rounded; whole numbers without a point, since most outcomes are 0 or 1."""
    return int(value) if value == int(value) else round(value, _DIGITS)
