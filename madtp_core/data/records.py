"""What data sets say of pictures, whatever their format: checked, before it is learnt or asked.

Pictures are named as in the file; `images.locate` says where they lie. where: file and line or entry, for
errors. options: what else a request says of how it is to be answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a picture.

    answers: to learn, distinct, with the weight of each. truth: to be measured by, the answer or all
    annotators' answers; None where it is not known. groups: as of a sample. id: within its benchmark.
    """

    where: str
    pictures: tuple[str, ...]
    text: str
    answers: tuple[tuple[str, float], ...]
    truth: str | tuple[str, ...] | None
    groups: tuple[str, ...] = ()
    id: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captioned:
    """A picture with captions: texts as a model reads them, references as people wrote them; maybe none."""

    where: str
    pictures: tuple[str, ...]
    texts: tuple[str, ...]
    references: tuple[str, ...]
    id: int | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about two pictures, and whether it is true; None where that is not known."""

    where: str
    pictures: tuple[str, ...]
    text: str
    truth: bool | None
    id: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Texts for one picture, or pictures for one text; right: the candidates that belong, None if unknown."""

    where: str
    pictures: tuple[str, ...]
    texts: tuple[str, ...]
    right: tuple[int, ...] | None
    id: None = None
    options: Mapping[str, Any] = field(default_factory=dict)


Record = Question | Captioned | Statement | Ranking
