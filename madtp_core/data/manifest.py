"""One's own data as JSON lines, the same to learn from and to be measured on.

    {"images": ["1.jpg"], "question": "what is it?", "truth": "a cat"}                      vqa
    {"images": ["1.jpg"], "truth": ["a cat on a mat", "a sleeping cat"]}                    caption
    {"images": ["1.jpg"], "texts": ["a cat", "a dog"], "truth": [0]}                        retrieval, clip
    {"images": ["1.jpg"], "text": "a cat"}                                                  retrieval, clip
    {"images": ["1.jpg", "2.jpg"], "statement": "both show a cat", "truth": true}           reasoning

Several answers to a question are a list, of "cat" or of {"answer": "cat", "weight": 0.3}; where no weight is
given, answers weigh alike and together 1, so ten annotators' answers, repeated as given, weigh as in VQA v2.
To be measured, four or more without weights are annotators' answers, of others the heaviest is right. Of
texts, or of several images for one text, truth says which belong together; without it, all are learnt. To be
measured, lines may lack a truth, all of them, and may have the API's options of the task.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from madtp_core.data.fields import Fields
from madtp_core.data.records import Captioned, Question, Ranking, Record, Statement
from madtp_core.errors import ConfigError

# How a request is to be answered, as in the API.
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "vqa": ("candidates", "shortlist", "num_beams", "max_new_tokens"),
    "caption": ("prompt", "num_beams", "max_new_tokens", "min_new_tokens"),
    "retrieval": ("rerank",),
    "clip": ("rerank",),
    "reasoning": (),
}

_ANNOTATORS: Final = 4  # of fewer, no answer is right by VQA's accuracy, which asks for three others


def read_lines(files: Sequence[Path], task: str) -> list[Record]:
    """Read and check manifests for a task, one record a line that is not blank.

    Raises ConfigError naming file and line for what is not JSON, a missing, unknown or misshapen field, or an
    empty text; and for a file that is not there or has no lines.
    """
    records: list[Record] = []
    for path in files:
        before = len(records)
        try:
            with path.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        records.append(_record(line, f"{path}:{number}", task))
        except OSError as error:
            raise ConfigError(f"there is no manifest {str(path)!r} to be read: {error.strerror}") from error
        if len(records) == before:
            raise ConfigError(f"the manifest {str(path)!r} has no examples")
    return records


def _record(text: str, where: str, task: str) -> Record:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    line = Fields(where, data)
    options = {name: line.take(name, object, "") for name in _OPTIONS[task] if line.has(name)}
    record = _READERS[task](line, options)
    if unknown := line.rest():
        raise ConfigError(f"{where}: unknown {', '.join(map(repr, unknown))}")
    return record


def _question(line: Fields, options: Mapping[str, Any]) -> Question:
    pictures, text = line.pictures("images", 1), line.text("question")
    answers: tuple[tuple[str, float], ...] = ()
    truth: str | tuple[str, ...] | None = None
    if line.has("truth"):
        given = line.take("truth", object, "")
        answers = _weighted(line, given if isinstance(given, list) else [given])
        if not isinstance(given, list):
            truth = answers[0][0]
        elif len(given) >= _ANNOTATORS and all(isinstance(answer, str) for answer in given):
            truth = tuple(answer.strip() for answer in given)
        else:
            truth = max(answers, key=lambda pair: pair[1])[0]
    return Question(line.where, pictures, text, answers, truth, options=options)


def _weighted(line: Fields, answers: list[Any]) -> tuple[tuple[str, float], ...]:
    """Distinct answers with their summed weights, in the order in which they came."""
    if not answers:
        raise ConfigError(f"{line.where}: 'truth' has no answers")
    total: dict[str, float] = defaultdict(float)
    for answer in answers:
        weight: Any = 1 / len(answers)
        if isinstance(answer, dict):
            entry = dict(answer)
            answer, weight = entry.pop("answer", None), entry.pop("weight", weight)
            if entry:
                raise ConfigError(f"{line.where}: unknown {', '.join(map(repr, entry))} in an answer")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise ConfigError(f"{line.where}: 'weight' must be a number above 0, got {weight!r}")
        total[line.checked_text("answer", answer)] += float(weight)
    return tuple(total.items())


def _captioned(line: Fields, options: Mapping[str, Any]) -> Captioned:
    captions = line.texts("truth", "a list of captions") if line.has("truth") else ()
    return Captioned(line.where, line.pictures("images", 1), captions, captions, options=options)


def _ranking(line: Fields, options: Mapping[str, Any]) -> Ranking:
    if line.has("text") is line.has("texts"):
        raise ConfigError(f"{line.where}: needs 'text' or 'texts', and not both")
    texts = (line.text("text"),) if line.has("text") else line.texts("texts", "a list of texts")
    pictures = line.pictures("images", None if len(texts) == 1 else 1)
    right = None
    if line.has("truth"):
        right = tuple(line.take("truth", list, "a list of places"))
        last = max(len(texts), len(pictures)) - 1
        if not all(type(place) is int and 0 <= place <= last for place in right):
            raise ConfigError(f"{line.where}: 'truth' must name places in 0..{last}, got {list(right)}")
    return Ranking(line.where, pictures, texts, right, options=options)


def _statement(line: Fields, options: Mapping[str, Any]) -> Statement:
    pictures, text = line.pictures("images", 2), line.text("statement")
    truth = line.take("truth", bool, "true or false") if line.has("truth") else None
    return Statement(line.where, pictures, text, truth, options=options)


_READERS: Final[Mapping[str, Callable[[Fields, Mapping[str, Any]], Record]]] = {
    "vqa": _question,
    "caption": _captioned,
    "retrieval": _ranking,
    "clip": _ranking,
    "reasoning": _statement,
}
