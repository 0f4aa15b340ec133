"""VQA v2: as BLIP's lists of questions with their answers, Visual Genome's among them, or the official files.

BLIP's (salesforce/BLIP, data/vqa_dataset.py; vqa_train.json, vqa_val.json, vg_qa.json, vqa_test.json):

    [{"question_id": 262148001, "question": "What ...?", "answer": ["spectating", "watching", "watching"],
      "image": "val2014/COCO_val2014_000000262148.jpg", "dataset": "vqa"},
     {"question_id": 986769, "question": "How many ...?", "answer": "two", "image": "image/1.jpg",
      "dataset": "vg"}]

The official ones (visualqa.org; v2_OpenEnded_mscoco_val2014_questions.json and
v2_mscoco_val2014_annotations.json) are joined by question_id:

    {"data_subtype": "val2014", "questions": [{"image_id": 262148, "question": "...", "question_id": ...}]}
    {"annotations": [{"question_id": ..., "image_id": 262148, "question_type": "what are the",
      "answer_type": "other", "answers": [{"answer": "watching", "answer_confidence": "yes", ...}, ...]}]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from madtp_core.data.benchmarks.entries import entries, sections
from madtp_core.data.benchmarks.texts import plain_question
from madtp_core.data.fields import Fields, read_json
from madtp_core.data.records import Question
from madtp_core.errors import ConfigError

# What the answers to a question weigh together, by where the question is from.
_WEIGHTS: Final = {"vqa": 1.0, "vg": 0.2}
_ANNOTATORS: Final = 10  # of a question of VQA v2
_LEFT_OUT: Final = "\N{REPLACEMENT CHARACTER}"  # what no model answers
_WHOLE: Final = "a whole number"


def read_vqav2(files: Sequence[Path]) -> list[Question]:
    """Questions of BLIP's files, of official pairs of files, or of both.

    Official questions without annotations, as of the test set, are read too, but not together with others'
    annotations. Raises ConfigError naming file and entry: for a missing or misshapen field, a question that
    comes twice, one without its annotation, an annotation without its question or of another image.
    """
    found: list[Question] = []
    asked: list[_Asked] = []
    annotated: dict[int, _Annotation] = {}
    for path in files:
        content = read_json(path)
        if isinstance(content, list):
            found += map(_blip_question, entries(path, content, named_by="question_id"))
            continue
        whole = sections(path, content, ("questions",), ("annotations",))
        if whole.has("questions"):
            asked += _official_questions(path, whole)
        else:
            for annotation in _official_annotations(path, whole):
                _only_once(annotation, annotated)
    found += _joined(asked, annotated)
    seen: dict[int, Question] = {}
    for question in found:
        if question.id is not None:
            _only_once(question, seen)
    return found


def read_answer_list(path: Path) -> tuple[str, ...]:
    """The answers that a model ranks, as in BLIP's answer_list.json: a list of 3,128 texts, each once.

    Raises ConfigError for what is no such list.
    """
    answers = read_json(path)
    if not isinstance(answers, list) or not answers:
        raise ConfigError(f"{path}: must be a list of answers")
    seen: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise ConfigError(f"{path}, answer {index}: must be a text that is not empty, got {answer!r}")
        if answer in seen:
            raise ConfigError(f"{path}, answer {index}: {answer!r} is answer {seen[answer]} already")
        seen[answer] = index
    return tuple(answers)


@dataclass(frozen=True, slots=True)
class _Asked:
    """An official question before it meets its annotation."""

    where: str
    id: int
    image_id: int
    picture: str
    text: str


@dataclass(frozen=True, slots=True)
class _Annotation:
    """What annotators answered, and the types that accuracy is told by."""

    where: str
    id: int
    image_id: int
    answers: tuple[str, ...]
    groups: tuple[str, ...]


def _official_questions(path: Path, whole: Fields) -> Iterator[_Asked]:
    subtype = whole.text("data_subtype")
    folder = "test2015" if subtype == "test-dev2015" else subtype  # a part of the test questions
    for entry in entries(path, whole.take("questions", list, "a list"), "question", "question_id"):
        image_id: int = entry.take("image_id", int, _WHOLE)
        picture = f"{folder}/COCO_{folder}_{image_id:012d}.jpg"
        question_id = entry.take("question_id", int, _WHOLE)
        yield _Asked(entry.where, question_id, image_id, picture, _question_text(entry))


def _official_annotations(path: Path, whole: Fields) -> Iterator[_Annotation]:
    for entry in entries(path, whole.take("annotations", list, "a list"), "annotation", "question_id"):
        question_id, image_id = entry.take("question_id", int, _WHOLE), entry.take("image_id", int, _WHOLE)
        given = entry.take("answers", list, "a list of objects")
        answers = tuple(answer["answer"] for answer in given if _is_answer(answer))
        if not answers or len(answers) != len(given):
            raise ConfigError(
                f"{entry.where}: 'answers' must be objects with an 'answer' each, got {given!r}"
            )
        groups = tuple(f"{name}/{entry.text(name)}" for name in ("question_type", "answer_type"))
        yield _Annotation(entry.where, question_id, image_id, answers, _shared(groups))


def _is_answer(given: Any) -> bool:
    return isinstance(given, dict) and isinstance(given.get("answer"), str)


def _joined(asked: Sequence[_Asked], annotated: Mapping[int, _Annotation]) -> Iterator[Question]:
    """Official questions with their answers, where there are any annotations."""
    known = {question.id for question in asked}
    for annotation in annotated.values():
        if annotation.id not in known:
            raise ConfigError(f"{annotation.where}: none of the question files has that question")
    for question in asked:
        answers: tuple[str, ...] = ()
        groups: tuple[str, ...] = ()
        if annotated:
            if question.id not in annotated:
                raise ConfigError(f"{question.where}: none of the annotation files has that question")
            annotation = annotated[question.id]
            if annotation.image_id != question.image_id:
                raise ConfigError(
                    f"{annotation.where}: is of image {annotation.image_id}, but its question, in "
                    f"{question.where}, of {question.image_id}"
                )
            answers, groups = annotation.answers, annotation.groups
        truth, weighted = _weighted(answers, _WEIGHTS["vqa"])
        yield Question(
            question.where, (question.picture,), question.text, weighted, truth or None, groups, question.id
        )


def _blip_question(entry: Fields) -> Question:
    """A question of either source.

    BLIP's files may lack answers of a question's ten annotators, of whom accuracy is: what is left out agrees
    with nothing. Visual Genome has one answer a question, and numbers its questions for itself, so theirs are
    no ids here.
    """
    source = entry.text("dataset")
    if source not in _WEIGHTS:
        raise ConfigError(f"{entry.where}: 'dataset' must be one of {', '.join(_WEIGHTS)}, got {source!r}")
    question_id = entry.take("question_id", int, _WHOLE) if source == "vqa" else None
    picture = entry.checked_path(entry.take("image", str, "a path"))
    answers: tuple[str, ...] = ()
    if entry.has("answer"):
        given = entry.take("answer", object, "")
        answers = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list) else ()
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise ConfigError(f"{entry.where}: 'answer' must be a text or a list of them, got {given!r}")
    said, weighted = _weighted(answers, _WEIGHTS[source])
    truth: str | tuple[str, ...] | None = None
    if said:
        truth = _of_ten(said) if source == "vqa" else said[0]
    return Question(entry.where, (picture,), _question_text(entry), weighted, truth, id=question_id)


def _question_text(entry: Fields) -> str:
    return entry.checked_text("question", plain_question(entry.text("question")))


@lru_cache(maxsize=1 << 16)  # many questions share their answers: in memory too
def _weighted(
    answers: tuple[str, ...], total: float
) -> tuple[tuple[str, ...], tuple[tuple[str, float], ...]]:
    """The answers; and the distinct ones, weighing by annotators and together total, to learn.

    An annotator may have said nothing: that is a truth, but not to be learnt.
    """
    weights: dict[str, float] = {}
    for answer in answers:
        if answer.strip():
            weights[answer] = weights.get(answer, 0.0) + total / len(answers)
    return answers, tuple(weights.items())


@lru_cache(maxsize=1 << 16)
def _of_ten(said: tuple[str, ...]) -> tuple[str, ...]:
    return said + (_LEFT_OUT,) * (_ANNOTATORS - len(said))


@lru_cache(maxsize=1 << 12)
def _shared(groups: tuple[str, ...]) -> tuple[str, ...]:
    """The same object for equal groups: there are few."""
    return groups


def _only_once(one: Any, seen: dict[int, Any]) -> None:
    """Note a question or an annotation; raises ConfigError where its question_id has come before."""
    if one.id in seen:
        raise ConfigError(f"{one.where}: that question_id is in {seen[one.id].where} already")
    seen[one.id] = one
