"""What is right: one outcome a sample and measure, whatever the task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from madtp_core.errors import ConfigError
from madtp_core.evaluate.recall import recall_at
from madtp_core.tasks.ranking import Candidate

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
    """Outcomes of every sample by measure, and figures that only the whole has."""

    outcomes: Mapping[str, tuple[float, ...]]
    whole: Mapping[str, float] = field(default_factory=dict)


def score(task: str, truths: Sequence[Any], answers: Sequence[Any]) -> Scores:
    """Judge the answers of a task; without labels, which all samples have or none, there are no outcomes."""
    return Scores({}) if truths[0] is None else _SCORES[task](truths, answers)


def _exact(truths: Sequence[Any], answers: Sequence[Any]) -> Scores:
    """1 for the very answer, else 0."""
    right = tuple(float(answer.answer == truth) for truth, answer in zip(truths, answers, strict=True))
    return Scores({"accuracy": right})


def _captions(truths: Sequence[Sequence[str]], answers: Sequence[Any]) -> Scores:
    """CIDEr of every caption, whose mean is the corpus', and the corpus' BLEU-4.

    Scored by pycocoevalcap. Its tokenizer is a Java program: instead, texts are lower-cased and cut into runs
    of letters and digits, which for plain words equals it (it drops punctuation too).
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ConfigError("scoring captions needs pycocoevalcap: install madtp-serve[evaluate]") from error
    references = {number: [plain_words(text) for text in truth] for number, truth in enumerate(truths)}
    written = {number: [plain_words(answer.caption)] for number, answer in enumerate(answers)}
    _, cider = Cider().compute_score(references, written)
    bleu, _ = Bleu(4).compute_score(references, written, verbose=0)
    return Scores({"cider": tuple(map(float, cider))}, {"bleu_4": float(bleu[3])})


def _choices(truths: Sequence[Sequence[int]], answers: Sequence[Any]) -> Scores:
    """Recall among a request's own candidates."""
    rows = [ranked_recalls(truth, answer.ranked) for truth, answer in zip(truths, answers, strict=True)]
    return Scores(recall_outcomes(rows))


def ranked_recalls(right: Sequence[int], ranked: Sequence[Candidate]) -> tuple[float, ...]:
    """Recall at 1, 5 and 10 of one ranking; a matched candidate stands before any that was not."""
    keys = [(candidate.itm is not None, candidate.score) for candidate in ranked]
    levels = {key: level for level, key in enumerate(sorted(set(keys)))}
    is_right = np.array([candidate.index in right for candidate in ranked])
    return tuple(recall_at(k, [levels[key] for key in keys], is_right) for k in RECALL_AT)


def recall_outcomes(rows: Sequence[Sequence[float]]) -> dict[str, tuple[float, ...]]:
    """Outcomes by measure from rows of recall at 1, 5 and 10, a row a sample."""
    columns = zip(*rows, strict=True)
    return {f"recall_at_{k}": tuple(column) for k, column in zip(RECALL_AT, columns, strict=True)}


def plain_words(text: str) -> str:
    """A text in lower case without punctuation, one space between words."""
    return " ".join(re.findall(r"\w+", text.lower()))


_SCORES: Final[Mapping[str, Callable[[Sequence[Any], Sequence[Any]], Scores]]] = {
    "vqa": _exact,
    "reasoning": _exact,
    "caption": _captions,
    "retrieval": _choices,
    "clip": _choices,
}
