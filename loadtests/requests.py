"""Requests made before the run, from synthetic scenes, each with the label that its reply is graded by."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image

from loadtests.encoding import ENCODINGS, Field
from loadtests.scenario import Band, Scenario, Task, parse_size
from madtp_core.data.shapes import (
    Scene,
    captions,
    difficulty_band,
    draw,
    questions,
    sample_scene,
    statement,
)

PATHS: dict[Task, str] = {
    "vqa": "/v1/vqa",
    "caption": "/v1/caption",
    "reasoning": "/v1/reasoning",
    "retrieval": "/v1/retrieval/rank",
    "embeddings": "/v1/embeddings",
}
_JPEG_QUALITY = 90
_OBJECTS_IN_FULL = 3  # which of the five captions: the one that tells scenes apart best

# The right reply: an answer, a truth, any of several captions, the place of the right text, or unknown.
Label = str | bool | tuple[str, ...] | int | None
_Choice = TypeVar("_Choice")


@dataclass(frozen=True)
class PreparedRequest:
    """One request, ready to send: POST `body` to `path`."""

    task: Task
    path: str
    content_type: str
    body: bytes
    label: Label
    band: str


@dataclass(frozen=True)
class _Source:
    """What a request is made of: scenes of its difficulty, how they are drawn, chance, candidates."""

    next_scene: Callable[[], Scene]
    picture: Callable[[Scene], bytes]
    rng: random.Random
    texts: int


def prepare_requests(scenario: Scenario) -> list[PreparedRequest]:
    """Make the scenario's distinct requests, a function of the scenario alone, in the order they are sent.

    Scenes come from the test split, which no model was trained on.
    """
    rng = random.Random(f"loadtests/{scenario.seed}")
    scenes = {band: _scenes(band, scenario.seed) for band in scenario.difficulty}
    return [_prepare(scenario, rng, scenes) for _ in range(scenario.distinct_requests)]


def encoded_picture(scene: Scene, size: tuple[int, int], picture_format: str) -> bytes:
    """Draw a scene, scale it to (width, height) and encode it; a model that scales it back sees the scene."""
    picture = Image.fromarray(draw(scene))
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, format=picture_format, quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _scenes(band: Band, seed: int) -> Iterator[Scene]:
    index = 0
    while True:
        scene = sample_scene(seed, "test", index)
        if band in ("natural", difficulty_band(scene)):
            yield scene
        index += 1


def _prepare(
    scenario: Scenario, rng: random.Random, scenes: Mapping[Band, Iterator[Scene]]
) -> PreparedRequest:
    task, band = _drawn(scenario.tasks, rng), _drawn(scenario.difficulty, rng)
    size, picture_format = _drawn(scenario.images.sizes, rng), _drawn(scenario.images.formats, rng)
    source = _Source(
        next_scene=partial(next, scenes[band]),
        picture=partial(encoded_picture, size=parse_size(size), picture_format=picture_format),
        rng=rng,
        texts=scenario.texts,
    )
    fields, label = _FIELDS[task](source)
    if task in scenario.models:
        fields.append(("model", scenario.models[task]))
    if scenario.quality is not None:
        fields.append(("quality", _drawn(scenario.quality, rng)))
    if scenario.flops_target is not None:
        fields.append(("flops_target", scenario.flops_target))
    content_type, body = ENCODINGS[scenario.encoding](fields, picture_format)
    return PreparedRequest(task, PATHS[task], content_type, body, label, band)


def _vqa(source: _Source) -> tuple[list[Field], Label]:
    scene = source.next_scene()
    (question,) = questions(scene, source.rng, 1)
    return [("image", source.picture(scene)), ("question", question.text)], question.answer


def _caption(source: _Source) -> tuple[list[Field], Label]:
    scene = source.next_scene()
    return [("image", source.picture(scene))], captions(scene)


def _reasoning(source: _Source) -> tuple[list[Field], Label]:
    left, right = source.next_scene(), source.next_scene()
    text, is_true = statement(left, right, source.rng)
    pictures: list[Field] = [("images", source.picture(scene)) for scene in (left, right)]
    return [*pictures, ("statement", text)], is_true


def _retrieval(source: _Source) -> tuple[list[Field], Label]:
    """One picture, and captions of which one is its own and the others are of other scenes."""
    scene = source.next_scene()
    right = captions(scene)[_OBJECTS_IN_FULL]
    offered = [right]
    while len(offered) < source.texts:
        other = captions(source.next_scene())[_OBJECTS_IN_FULL]
        if other not in offered:
            offered.append(other)
    source.rng.shuffle(offered)
    fields: list[Field] = [("image", source.picture(scene)), *(("texts", text) for text in offered)]
    return fields, offered.index(right)


def _embeddings(source: _Source) -> tuple[list[Field], Label]:
    scene = source.next_scene()
    return [("images", source.picture(scene)), ("texts", captions(scene)[_OBJECTS_IN_FULL])], None


_FIELDS: dict[Task, Callable[[_Source], tuple[list[Field], Label]]] = {
    "vqa": _vqa,
    "caption": _caption,
    "reasoning": _reasoning,
    "retrieval": _retrieval,
    "embeddings": _embeddings,
}


def _drawn(weights: Mapping[_Choice, float], rng: random.Random) -> _Choice:
    return rng.choices(list(weights), list(weights.values()))[0]
