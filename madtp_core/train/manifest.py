"""One's own data as JSON lines: the format that `madtp evaluate` reads, with what is right on every line.

    {"images": ["1.jpg"], "question": "what is it?", "truth": "a cat"}                      vqa
    {"images": ["1.jpg"], "truth": ["a cat on a mat", "a sleeping cat"]}                    caption
    {"images": ["1.jpg"], "texts": ["a cat", "a dog"], "truth": [0]}                        retrieval, clip
    {"images": ["1.jpg"], "text": "a cat"}                                                  retrieval, clip
    {"images": ["1.jpg", "2.jpg"], "statement": "both show a cat", "truth": true}           reasoning

Paths of images are relative to the file. Several answers to a question are a list, of "cat" or of
{"answer": "cat", "weight": 0.3}; where no weight is given, answers weigh alike and together 1, so ten
annotators' answers, repeated as given, weigh as in VQA v2. Of texts, or of several images for one text, truth
says which belong together; without it, all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from madtp_core.errors import ConfigError
from madtp_core.train.examples import Example, PictureFile


def read_manifest(path: Path, task: str) -> list[Example]:
    """Read and check a manifest for a task.

    Raises ConfigError naming file and line: for what is not JSON, a missing, unknown or misshapen field, an
    empty text, or an image that is not there; and for a file without examples.
    """
    if not path.is_file():
        raise ConfigError(f"there is no manifest {str(path)!r}")
    keys: dict[Path, int] = {}
    examples = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                entry = _Line(path, number, _parsed(line, f"{path}:{number}"))
                examples += _READERS[task](entry, keys)
                entry.close()
    if not examples:
        raise ConfigError(f"the manifest {str(path)!r} has no examples")
    return examples


class _Line:
    """One line's object, whose fields are taken one by one and then must be used up."""

    def __init__(self, path: Path, number: int, data: Mapping[str, Any]) -> None:
        self.where, self.folder = f"{path}:{number}", path.parent
        self._left = dict(data)

    def take(self, name: str, kind: type, what: str) -> Any:
        """A field of a type; raises ConfigError where it is missing or of another."""
        if name not in self._left:
            raise ConfigError(f"{self.where}: no {name!r}; there is {', '.join(self._left) or 'nothing'}")
        value = self._left.pop(name)
        if not isinstance(value, kind):
            raise ConfigError(f"{self.where}: {name!r} must be {what}, got {value!r}")
        return value

    def has(self, name: str) -> bool:
        """Whether a field has not been taken yet."""
        return name in self._left

    def text(self, name: str) -> str:
        """A field with words in it."""
        value: str = self.take(name, str, "a text")
        return self.checked_text(value, name)

    def checked_text(self, value: Any, name: str) -> str:
        """The value, if it is a text with words in it."""
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{self.where}: {name!r} must be a text that is not empty, got {value!r}")
        return value.strip()

    def pictures(self, count: int | None) -> tuple[PictureFile, ...]:
        """The files of so many pictures, which must be there; None: of one or more."""
        names = self.take("images", list, "a list of paths")
        if not names or count not in (None, len(names)):
            raise ConfigError(f"{self.where}: 'images' must have {count or 'some'} paths, got {len(names)}")
        return tuple(self._picture(name) for name in names)

    def _picture(self, name: Any) -> PictureFile:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"{self.where}: an image must be a path, got {name!r}")
        file = self.folder / name
        if not file.is_file():
            raise ConfigError(f"{self.where}: there is no image {str(file)!r}")
        return PictureFile(file, self.where)

    def close(self) -> None:
        """Raise ConfigError where a field has not been taken."""
        if self._left:
            raise ConfigError(f"{self.where}: unknown {', '.join(map(repr, self._left))}")


def _parsed(line: str, where: str) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a line must be an object, got {data!r}")
    return data


def _vqa(line: _Line, keys: dict[Path, int]) -> list[Example]:
    picture, question, truth = line.pictures(1), line.text("question"), line.take("truth", object, "")
    answers = truth if isinstance(truth, list) else [truth]
    if not answers:
        raise ConfigError(f"{line.where}: 'truth' has no answers")
    return [Example(picture, question, _weighted(line, answers))]


def _weighted(line: _Line, answers: list[Any]) -> tuple[tuple[str, float], ...]:
    """Distinct answers with their summed weights, in the order in which they came."""
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
        total[line.checked_text(answer, "answer")] += float(weight)
    return tuple(total.items())


def _captions(line: _Line, keys: dict[Path, int]) -> list[Example]:
    pictures, truth = line.pictures(1), line.take("truth", list, "a list of captions")
    key = _key(pictures[0], keys)
    return [Example(pictures, line.checked_text(caption, "truth"), key=key) for caption in truth]


def _pairs(line: _Line, keys: dict[Path, int]) -> list[Example]:
    """Every image with every text that it belongs to."""
    texts = line.take("texts", list, "a list of texts") if line.has("texts") else [line.text("text")]
    pictures = line.pictures(None if len(texts) == 1 else 1)
    pairs = [(picture, line.checked_text(text, "texts")) for picture in pictures for text in texts]
    if line.has("truth"):
        right = line.take("truth", list, "a list of places")
        if not all(type(place) is int and 0 <= place < len(pairs) for place in right):
            raise ConfigError(f"{line.where}: 'truth' must name places in 0..{len(pairs) - 1}, got {right}")
        pairs = [pairs[place] for place in right]
    return [Example((picture,), text, key=_key(picture, keys)) for picture, text in pairs]


def _statement(line: _Line, keys: dict[Path, int]) -> list[Example]:
    pictures, text = line.pictures(2), line.text("statement")
    return [Example(pictures, text, label=line.take("truth", bool, "true or false"))]


def _key(picture: PictureFile, keys: dict[Path, int]) -> int:
    """Which picture it is, counted as they come."""
    return keys.setdefault(picture.path, len(keys))


_READERS: Final[Mapping[str, Callable[[_Line, dict[Path, int]], list[Example]]]] = {
    "vqa": _vqa,
    "caption": _captions,
    "retrieval": _pairs,
    "clip": _pairs,
    "reasoning": _statement,
}
