"""One request run through a model with every pruned token watched: what a picture of it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from madtp_core.config import PruningConfig
from madtp_core.errors import ConfigError
from madtp_core.images import ImageGeometry, preprocess_image
from madtp_core.pruning import BRANCHES, MAX_KEEP, Pruner
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import BRANCH_OF, Spent
from madtp_core.visualize.fate import Fate, WatchingPruner, untouched

Pixels = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sight:
    """One request as it ran.

    pictures: its images as the model saw them, each cut into a grid of (rows, columns) patches. words: of its
    text, special tokens included; empty without a text. fates: one a sequence, grouped as `spent.traces`.
    """

    pictures: tuple[Image.Image, ...]
    grid: tuple[int, int]
    text: str
    words: tuple[str, ...]
    answer: str
    fates: Mapping[str, tuple[Fate, ...]]
    spent: Spent
    method: str
    prune_temperature: float


@dataclass(frozen=True)
class _Told:
    """What a task's model answered, in words, and how it cut its text."""

    answer: str
    spent: Spent
    words: tuple[str, ...] = ()


def look(
    model: PrunedModel,
    images: Sequence[Image.Image],
    text: str,
    *,
    prune_temperature: float,
    keep_mode: str = MAX_KEEP,
) -> Sight:
    """Run one request of the model's task and watch its tokens; prune temperature 0 shows a dense run.

    Raises ConfigError for a wrong number of images or a text that the task does not take.
    """
    wanted = images_wanted(model)
    if len(images) != wanted:
        raise ConfigError(f"task {model.task!r} takes {wanted} images a request, got {len(images)}")
    watchers: list[WatchingPruner] = []

    def watch(pruner: Pruner) -> Pruner:
        watchers.append(WatchingPruner(pruner))
        return watchers[-1]

    pixels = [preprocess_image(image.convert("RGB"), model.image_geometry) for image in images]
    options = {"prune_temperature": prune_temperature, "keep_mode": keep_mode}
    told = _ASK[model.task](model.with_pruner(watch), pixels, text, options)
    seen = [fate for watcher in watchers for fate in watcher.fates()]
    vision = model.vision_geometry
    return Sight(
        pictures=tuple(_as_seen(each, model.image_geometry) for each in pixels),
        grid=(vision.image_height // vision.patch_size, vision.image_width // vision.patch_size),
        text=text,
        words=told.words,
        answer=told.answer,
        fates=_grouped(told.spent, seen),
        spent=told.spent,
        method="none" if model.pruning is None else model.pruning.method,
        prune_temperature=prune_temperature,
    )


def images_wanted(model: PrunedModel) -> int:
    """Images of one request."""
    return 2 if model.task == "reasoning" else 1


def with_method(model: PrunedModel, method: str, options: Mapping[str, Any]) -> PrunedModel:
    """The same weights pruned by another method; raises ConfigError where the method needs what they lack."""
    branches = BRANCHES if model.pruning is None else model.pruning.branches
    pruning = PruningConfig(method=method, branches=branches, options=dict(options))
    config = replace(model.checkpoint.config, pruning=pruning)
    checkpoint = replace(model.checkpoint, config=config, calibration=None)
    return type(model)(checkpoint, name=model.name, device=str(model.device))


def _grouped(spent: Spent, seen: Sequence[Fate]) -> dict[str, tuple[Fate, ...]]:
    """The watched sequences in the groups of the traces; those that ran dense kept every token."""
    waiting = list(seen)
    groups: dict[str, tuple[Fate, ...]] = {}
    for group, traces in spent.traces.items():
        fates = []
        for trace in traces:
            fate = next((each for each in waiting if each.branch == BRANCH_OF[group]), None)
            if fate is None:
                fate = untouched(BRANCH_OF[group], trace.dense + 1, len(trace.kept))
            else:
                waiting.remove(fate)
            fates.append(fate)
        groups[group] = tuple(fates)
    return groups


def _as_seen(pixels: Pixels, geometry: ImageGeometry) -> Image.Image:
    """The picture that these normalised pixels [3, H, W] show."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (geometry.mean, geometry.std))
    levels = (pixels * std + mean) / geometry.rescale
    return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


# Each task imports its queries when asked, as `tasks.model_class` imports its model.


def _ask_vqa(model: Any, pixels: Sequence[Pixels], text: str, options: Mapping[str, Any]) -> _Told:
    from madtp_core.tasks.vqa import VqaQuery

    (answer,) = model.predict([VqaQuery(pixels[0], text)], **options)
    return _Told(answer.answer, answer.spent, _words(model, model.codec.questions([text])))


def _ask_caption(model: Any, pixels: Sequence[Pixels], text: str, options: Mapping[str, Any]) -> _Told:
    from madtp_core.tasks.caption import CaptionQuery

    (answer,) = model.predict([CaptionQuery(pixels[0], text)], **options)
    return _Told(answer.caption, answer.spent)


def _ask_reasoning(model: Any, pixels: Sequence[Pixels], text: str, options: Mapping[str, Any]) -> _Told:
    from madtp_core.tasks.reasoning import ReasoningQuery

    (answer,) = model.predict([ReasoningQuery(pixels[0], pixels[1], text)], **options)
    words = _words(model, model.codec.questions([text]))
    return _Told(str(answer.answer).lower(), answer.spent, words)


def _ask_retrieval(model: Any, pixels: Sequence[Pixels], text: str, options: Mapping[str, Any]) -> _Told:
    from madtp_core.tasks.ranking import RetrievalQuery

    (answer,) = model.predict([RetrievalQuery(pixels[0][None], (text,))], **options)
    (candidate,) = answer.ranked
    match = candidate.match_probability
    told = f"similarity {candidate.itc:.2f}" + ("" if match is None else f", match {match:.2f}")
    return _Told(told, answer.spent, _words(model, model.codec.texts([text])))


def _words(model: PrunedModel, ids_and_mask: tuple[Tensor, Tensor]) -> tuple[str, ...]:
    """How the model's tokenizer cut a text, padding left out."""
    ids, mask = (values[0] for values in ids_and_mask)
    tokens: list[str] = model.checkpoint.tokenizer.convert_ids_to_tokens(ids[mask.bool()].tolist())
    return tuple(token.removesuffix("</w>") for token in tokens)


_ASK: dict[str, Callable[[Any, Sequence[Pixels], str, Mapping[str, Any]], _Told]] = {
    "vqa": _ask_vqa,
    "caption": _ask_caption,
    "retrieval": _ask_retrieval,
    "reasoning": _ask_reasoning,
    "clip": _ask_retrieval,
}
