"""Embeddings of many requests in one pass: each with its own images and texts, its own cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from madtp_core.errors import ConfigError
from madtp_core.flops import RequestCost
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.tasks.cost import Spent
from madtp_core.tasks.embedding import Embedding, EmbeddingModel, EmbeddingQuery


@dataclass(frozen=True, eq=False)
class EmbeddingAnswer:
    """Unit vectors float32 [E] in the query's order, and what they took."""

    images: tuple[NDArray[np.float32], ...]
    texts: tuple[NDArray[np.float32], ...]
    spent: Spent
    postprocess_s: float = 0.0


def embed(
    model: EmbeddingModel,
    queries: Sequence[EmbeddingQuery],
    *,
    prune_temperature: float | Sequence[float],
    keep_mode: str = MAX_KEEP,
) -> list[EmbeddingAnswer]:
    """Embed all images and all texts of the queries; the other arguments as of `predict`.

    Raises ConfigError for a query without anything in it, or for a value the model cannot take.
    """
    if not all(query.pixel_values or query.texts for query in queries):
        raise ConfigError("an embedding query needs at least one image or one text")
    given = (
        [prune_temperature] * len(queries)
        if isinstance(prune_temperature, int | float)
        else prune_temperature
    )
    images = model.embed_images(
        [pixels for query in queries for pixels in query.pixel_values],
        prune_temperature=_repeated(given, [len(query.pixel_values) for query in queries]),
        keep_mode=keep_mode,
    )
    texts = model.embed_texts(
        [text for query in queries for text in query.texts],
        prune_temperature=_repeated(given, [len(query.texts) for query in queries]),
        keep_mode=keep_mode,
    )
    next_image, next_text = iter(images), iter(texts)
    return [
        _answer([next(next_image) for _ in query.pixel_values], [next(next_text) for _ in query.texts])
        for query in queries
    ]


def _repeated(values: Sequence[float], counts: Sequence[int]) -> list[float]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def _answer(images: Sequence[Embedding], texts: Sequence[Embedding]) -> EmbeddingAnswer:
    return EmbeddingAnswer(
        tuple(image.values for image in images),
        tuple(text.values for text in texts),
        _together([one.spent for one in (*images, *texts)]),
    )


def _together(parts: Sequence[Spent]) -> Spent:
    """What several sequences of one request took: costs add up, difficulty is that of all pruned tokens."""
    traces = {
        branch: tuple(trace for part in parts for trace in part.traces.get(branch, ()))
        for branch in (VISION, TEXT)
    }
    names = [field.name for field in fields(RequestCost)]
    cost = RequestCost(**{name: sum(getattr(part.cost, name) for part in parts) for name in names})
    pruned = [
        trace
        for part in parts
        if part.difficulty is not None
        for sequences in part.traces.values()
        for trace in sequences
    ]
    difficulty = None
    if pruned:
        needed = sum(sum(trace.needed) for trace in pruned)
        difficulty = needed / sum(trace.dense * len(trace.needed) for trace in pruned)
    return Spent(traces, cost, difficulty)
