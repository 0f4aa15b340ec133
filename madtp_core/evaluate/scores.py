"""What is right: one outcome a sample and measure, whatever the task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from madtp_core.evaluate.captions import score_captions
from madtp_core.evaluate.recall import recall_at
from madtp_core.evaluate.vqa_accuracy import soft_accuracy

# The measure that speaks for a task: what a calibration calls accuracy.
MEASURES: Final = {
    "vqa": "accuracy",
    "caption": "cider",
    "retrieval": "recall_at_1",
    "reasoning": "accuracy",
    "clip": "recall_at_1",
}
RECALL_AT: Final = (1, 5, 10)


@dataclass(frozen=True)
class Scores:
    """Outcomes of every sample by measure, figures that only the whole has, and notes on their making."""

    outcomes: Mapping[str, tuple[float, ...]]
    whole: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def score(task: str, truths: Sequence[Any], answers: Sequence[Any]) -> Scores:
    """Judge the answers of a task; without labels, which all samples have or none, there are no outcomes."""
    return judge(task, truths, [said(task, answer) for answer in answers])


def judge(task: str, truths: Sequence[Any], sayings: Sequence[Any], *, official: bool = False) -> Scores:
    """As `score`, of what `said` keeps; official: captions as COCO's script judges them, which runs Java."""
    if truths[0] is None:
        return Scores({})
    if task == "caption":
        return Scores(*score_captions(truths, sayings, official=official))
    return Scores(_OUTCOMES[task](truths, sayings))


def said(task: str, answer: Any) -> Any:
    """What is judged of an answer, as a JSON value.

    A text (vqa, caption), true or false (reasoning), or of every candidate its index and its level, the
    highest for the best and the same where they tie (retrieval, clip).
    """
    return _SAID[task](answer)


def _levels(answer: Any) -> list[list[int]]:
    """A matched candidate stands before any that was not."""
    keys = [(candidate.itm is not None, candidate.score) for candidate in answer.ranked]
    levels = {key: level for level, key in enumerate(sorted(set(keys)))}
    return [[one.index, levels[key]] for one, key in zip(answer.ranked, keys, strict=True)]


def _answers(truths: Sequence[Any], sayings: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """1 for the very answer, else 0; against several annotators, VQA's official accuracy."""
    pairs = zip(truths, sayings, strict=True)
    right = (
        float(one == truth) if isinstance(truth, str) else soft_accuracy(one, truth) for truth, one in pairs
    )
    return {"accuracy": tuple(right)}


def _statements(truths: Sequence[bool], sayings: Sequence[bool]) -> dict[str, tuple[float, ...]]:
    return {"accuracy": tuple(float(one == truth) for truth, one in zip(truths, sayings, strict=True))}


def _choices(truths: Sequence[Any], sayings: Sequence[Any]) -> dict[str, tuple[float, ...]]:
    """Recall among a request's own candidates."""
    return recall_outcomes([_recalls(*row) for row in zip(truths, sayings, strict=True)])


def _recalls(right: Sequence[int], levels: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    is_right = np.array([index in right for index, _ in levels])
    return tuple(recall_at(k, [level for _, level in levels], is_right) for k in RECALL_AT)


def recall_outcomes(rows: Sequence[Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Outcomes by measure from rows of recall at 1, 5 and 10, a row a sample."""
    columns = zip(*rows, strict=True)
    return {f"recall_at_{k}": tuple(column) for k, column in zip(RECALL_AT, columns, strict=True)}


_SAID: Final[Mapping[str, Callable[[Any], Any]]] = {
    "vqa": lambda answer: answer.answer,
    "reasoning": lambda answer: answer.answer,
    "caption": lambda answer: answer.caption,
    "retrieval": _levels,
    "clip": _levels,
}
_OUTCOMES: Final[Mapping[str, Callable[[Sequence[Any], Sequence[Any]], dict[str, tuple[float, ...]]]]] = {
    "vqa": _answers,
    "reasoning": _statements,
    "retrieval": _choices,
    "clip": _choices,
}
