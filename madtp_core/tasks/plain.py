"""Requests and answers of every task as plain values, for whoever has them as JSON.

A `PlainTask` is what the service's routes and `madtp predict` share: which fields hold images, how fields and
pixels become a query, and what of an answer is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madtp_core.errors import UnknownNameError
from madtp_core.tasks.embed import EmbeddingAnswer, embed
from madtp_core.tasks.embedding import EmbeddingQuery

Pixels = Sequence[NDArray[np.float32]]
Fields = Mapping[str, Any]


@dataclass(frozen=True)
class PlainTask:
    """One task's way from plain values to plain values.

    query: from fields (absent and None mean the same) and the pixels of all images in their order, float32
    [3, height, width] each. shown: of an answer, JSON values without its cost. models: tasks of checkpoints
    that can answer. run: the forward pass of a batch; the model's own `predict` where it is None.
    """

    query: Callable[[Fields, Pixels], Any]
    shown: Callable[[Any], dict[str, Any]]
    models: tuple[str, ...]
    run: Callable[..., list[Any]] | None = None

    def predict(
        self,
        model: Any,
        queries: Sequence[Any],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str,
    ) -> list[Any]:
        """Answer a batch of this task's queries by a model of one of `models`."""
        if self.run is None:
            answers: list[Any] = model.predict(
                queries, prune_temperature=prune_temperature, keep_mode=keep_mode
            )
            return answers
        return self.run(model, queries, prune_temperature=prune_temperature, keep_mode=keep_mode)


def plain_task(name: str) -> PlainTask:
    """The task of a route or a command by its name; raises UnknownNameError."""
    if name not in _TASKS:
        raise UnknownNameError("task", name, _TASKS)
    return _TASKS[name]


def _given(fields: Fields, *names: str) -> dict[str, Any]:
    """Those of the optional fields that are there."""
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _vqa_query(fields: Fields, pixels: Pixels) -> Any:
    from madtp_core.tasks.vqa import VqaQuery

    candidates = fields.get("candidates")
    return VqaQuery(
        pixel_values=pixels[0],
        question=fields["question"],
        candidates=None if candidates is None else tuple(candidates),
        **_given(fields, "num_beams", "max_new_tokens", "shortlist"),
    )


def _vqa_shown(answer: Any) -> dict[str, Any]:
    ranked = None
    if answer.ranked is not None:
        ranked = [{"candidate": text, "score": score} for text, score in answer.ranked]
    return {"answer": answer.answer, "score": answer.score, "ranked": ranked}


_CAPTION_OPTIONS = ("prompt", "num_beams", "max_new_tokens", "min_new_tokens")


def _caption_query(fields: Fields, pixels: Pixels) -> Any:
    from madtp_core.tasks.caption import CaptionQuery

    return CaptionQuery(pixels[0], **_given(fields, *_CAPTION_OPTIONS))


def _caption_shown(answer: Any) -> dict[str, Any]:
    return {"caption": answer.caption, "score": answer.score}


def _reasoning_query(fields: Fields, pixels: Pixels) -> Any:
    from madtp_core.tasks.reasoning import ReasoningQuery

    left, right = pixels
    return ReasoningQuery(left, right, fields["statement"])


def _reasoning_shown(answer: Any) -> dict[str, Any]:
    return {"answer": answer.answer, "score": answer.probability}


def _ranking_query(fields: Fields, pixels: Pixels) -> Any:
    from madtp_core.tasks.ranking import RetrievalQuery

    texts = (fields["text"],) if fields.get("text") is not None else tuple(fields["texts"])
    return RetrievalQuery(np.stack(pixels), texts, **_given(fields, "rerank"))


def _ranking_shown(answer: Any) -> dict[str, Any]:
    return {
        "ranked": [
            {
                "index": candidate.index,
                "rank": rank,
                "similarity": candidate.itc,
                "match_score": candidate.match_probability,
            }
            for rank, candidate in enumerate(answer.ranked, start=1)
        ]
    }


def _embedding_query(fields: Fields, pixels: Pixels) -> EmbeddingQuery:
    return EmbeddingQuery(tuple(pixels), tuple(fields.get("texts") or ()))


def _embedding_shown(answer: EmbeddingAnswer) -> dict[str, Any]:
    return {
        "images": [vector.tolist() for vector in answer.images],
        "texts": [vector.tolist() for vector in answer.texts],
    }


_TASKS = {
    "vqa": PlainTask(_vqa_query, _vqa_shown, ("vqa",)),
    "caption": PlainTask(_caption_query, _caption_shown, ("caption",)),
    "reasoning": PlainTask(_reasoning_query, _reasoning_shown, ("reasoning",)),
    "retrieval": PlainTask(_ranking_query, _ranking_shown, ("retrieval", "clip")),
    "embeddings": PlainTask(_embedding_query, _embedding_shown, ("retrieval", "clip"), embed),
}
