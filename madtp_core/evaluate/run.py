"""Samples through a model in batches: outcomes and cost of every one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from madtp_core.calibration import Sequences
from madtp_core.evaluate.outlay import Outlay, TokenCounts
from madtp_core.evaluate.records import Journal, Record, finished
from madtp_core.evaluate.samples import Sample, plain_task_of, query_of
from madtp_core.evaluate.scores import MEASURES, judge, said
from madtp_core.pruning import MAX_KEEP
from madtp_core.tasks.base import PrunedModel

ALL: Final = "all"
PERCENTILES: Final = (50, 95)
_DIGITS: Final = 3  # of mean token counts
_READERS: Final = 4  # threads that open and resize pictures
BANDS: Final = ("easy", "middle", "hard")
Progress = Callable[[int], object]  # told how many samples were just done


@dataclass(frozen=True)
class Evaluation:
    """Outcomes and outlays, sample by sample.

    measure: the one that speaks for the task. outcomes: by measure, empty without labels. groups: of every
    sample, besides `all`. whole: figures that only the whole has. notes: on how figures were made, or why one
    is missing. records: the answers themselves, none of a gallery.
    """

    measure: str
    outcomes: Mapping[str, tuple[float, ...]]
    groups: tuple[tuple[str, ...], ...]
    outlays: tuple[Outlay, ...]
    whole: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    records: tuple[Record, ...] = ()

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

    def branch_densities(self) -> dict[str, float]:
        """Tokens kept over tokens of dense runs, by kind of sequence: `vision`, `text`, `match`."""
        return {
            kind: sum(counts.kept for counts in every) / sum(counts.dense for counts in every)
            for kind, every in self._by_kind().items()
        }

    def sequences(self) -> dict[str, Sequences]:
        """What a sample's sequences were and kept, by kind: means."""
        samples = len(self.outlays)
        return {kind: _mean_sequences(every, samples) for kind, every in self._by_kind().items()}

    def gmacs(self) -> dict[str, float]:
        """Multiply-adds of a request in thousand millions, spent and dense: mean and percentiles."""
        figures = {}
        for name in ("gmacs", "dense_gmacs"):
            values = [getattr(outlay, name) for outlay in self.outlays]
            figures[f"{name}/mean"] = float(np.mean(values))
            percentiles = np.percentile(values, PERCENTILES).tolist()
            figures |= {f"{name}/p{at}": value for at, value in zip(PERCENTILES, percentiles, strict=True)}
        return figures

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
            **self.gmacs(),
            **{f"token_density/{kind}": density for kind, density in self.branch_densities().items()},
            **{
                f"{name}/{band}": cost(band)
                for name, cost in costs.items()
                for band in BANDS
                if band in names
            },
            "samples": len(self.groups),
        }

    def _by_kind(self) -> dict[str, list[TokenCounts]]:
        """The token counts of every sample that has sequences of a kind."""
        found: dict[str, list[TokenCounts]] = {}
        for outlay in self.outlays:
            for kind, counts in outlay.tokens.items():
                found.setdefault(kind, []).append(counts)
        return found

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
    journal: Journal | None = None,
    official: bool = False,
) -> Evaluation:
    """Ask the model about every sample, in batches and in their order; prune_temperature 0 runs dense.

    journal: keeps what was answered after every batch, and knows what need not be asked again. official:
    captions are judged as COCO's script does, which starts Java programs.
    """
    records: list[Record] = [] if journal is None else finished(journal, len(samples), batch_size)
    if on_batch is not None and records:
        on_batch(len(records))
    for batch in _read_ahead(model, samples, len(records), batch_size):
        answers = plain_task_of(model).predict(
            model, [query for _, query in batch], prune_temperature=prune_temperature, keep_mode=keep_mode
        )
        new = [
            _record(model.task, sample, answer) for (sample, _), answer in zip(batch, answers, strict=True)
        ]
        records += new
        if journal is not None:
            journal.add(new)
        if on_batch is not None:
            on_batch(len(new))
    truths, sayings = [record.truth for record in records], [record.said for record in records]
    scores = judge(model.task, truths, sayings, official=official)
    return Evaluation(
        MEASURES[model.task],
        scores.outcomes,
        tuple(record.groups for record in records),
        tuple(record.outlay for record in records),
        scores.whole,
        scores.notes,
        tuple(records),
    )


def _mean_sequences(every: Sequence[TokenCounts], samples: int) -> Sequences:
    count = sum(counts.sequences for counts in every)
    blocks = len(every[0].kept_by_block)
    by_block = zip(*(counts.kept_by_block for counts in every), strict=True)
    kept = tuple(round(sum(block) / count, _DIGITS) for block in by_block)
    tokens = sum(counts.dense for counts in every) / (blocks * count)
    return Sequences(count / samples, round(tokens, _DIGITS), kept)


def _read_ahead(
    model: PrunedModel, samples: Sequence[Sample], first: int, batch_size: int
) -> Iterator[list[tuple[Sample, Any]]]:
    """The samples from the first on with their queries, batch by batch; while one runs, the next is read."""

    def read(row: int) -> tuple[Sample, Any]:
        sample = samples[row]
        return replace(sample, pictures=()), query_of(model, sample)

    batches = [
        range(len(samples))[start : start + batch_size] for start in range(first, len(samples), batch_size)
    ]
    with ThreadPoolExecutor(_READERS) as readers:
        following = [readers.submit(read, row) for row in batches[0]] if batches else []
        for place in range(len(batches)):
            ready = [future.result() for future in following]
            following = [
                readers.submit(read, row) for batch in batches[place + 1 : place + 2] for row in batch
            ]
            yield ready


def _record(task: str, sample: Sample, answer: Any) -> Record:
    return Record(sample.id, said(task, answer), sample.truth, sample.groups, Outlay.of(answer.spent))


def predict(
    model: PrunedModel, batch: Sequence[Sample], *, prune_temperature: float, keep_mode: str = MAX_KEEP
) -> list[Any]:
    """The model's answers to one batch of samples, as the service would get them."""
    queries = [query_of(model, sample) for sample in batch]
    return plain_task_of(model).predict(
        model, queries, prune_temperature=prune_temperature, keep_mode=keep_mode
    )
