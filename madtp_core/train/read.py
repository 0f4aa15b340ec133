"""A data set's records as examples, made when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from madtp_core.data.images import Located, OnChecked, locate
from madtp_core.data.lazy import Lazy
from madtp_core.data.records import Captioned, Question, Ranking, Record, Statement
from madtp_core.data.source import DataSource, read_records
from madtp_core.errors import ConfigError
from madtp_core.train.examples import Example


def read_examples(
    source: DataSource, task: str, on_checked: OnChecked | None = None, *, held_out: bool = False
) -> RecordExamples:
    """Read a source and check it before anything is learnt: its fields, and that every picture is there.

    on_checked: told how many more pictures have been looked up. held_out: to be measured on, a picture with
    captions is one example, not one a caption. Raises ConfigError naming file and line or entry, for what
    cannot be learnt from too: a question without answers, a statement without a label, options of requests.
    """
    records = read_records(source, task)
    for record in records:
        _check_learnable(record)
    located = locate(records, source.images, on_checked)
    examples = RecordExamples(records, located, pictures_once=held_out and task == "caption")
    if not len(examples):
        raise ConfigError(f"{', '.join(map(str, source.files))}: no examples to learn from")
    return examples


class RecordExamples(Lazy[Example]):
    """Records as examples, in their order; several captions or texts of a record behind each other."""

    def __init__(self, records: Sequence[Record], located: Located, *, pictures_once: bool = False) -> None:
        self._records, self._located = records, located
        counts = [1 if pictures_once else _examples_in(record) for record in records]
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def item(self, index: int) -> Example:
        row = int(np.searchsorted(self._ends, index, side="right"))
        within = index - (int(self._ends[row - 1]) if row else 0)
        return self._example(self._records[row], within)

    def _example(self, record: Record, within: int) -> Example:
        files = self._located.files(record)
        if isinstance(record, Question):
            said = record.truth if isinstance(record.truth, tuple) else ()
            return Example(files, record.text, record.answers, references=said)
        if isinstance(record, Statement):
            return Example(files, record.text, label=record.truth)
        if isinstance(record, Captioned):
            key = self._located.key(record.pictures[0])
            return Example(files, record.texts[within], key=key, references=record.references)
        picture, text = _pairs(record)[within]
        key = self._located.key(record.pictures[picture])
        return Example((files[picture],), record.texts[text], key=key)


def _examples_in(record: Record) -> int:
    if isinstance(record, Captioned):
        return len(record.texts)
    return len(_pairs(record)) if isinstance(record, Ranking) else 1


def _pairs(record: Ranking) -> list[tuple[int, int]]:
    """Picture and text of every pair that belongs together."""
    pairs = [(picture, text) for picture in range(len(record.pictures)) for text in range(len(record.texts))]
    return pairs if record.right is None else [pairs[place] for place in record.right]


def _check_learnable(record: Record) -> None:
    if record.options:
        raise ConfigError(f"{record.where}: unknown {', '.join(map(repr, record.options))} to learn from")
    lacks = (
        (isinstance(record, Question) and not record.answers)
        or (isinstance(record, Statement) and record.truth is None)
        or (isinstance(record, Captioned) and not record.texts)
    )
    if lacks:
        raise ConfigError(f"{record.where}: says nothing of what is right, so there is nothing to learn")
