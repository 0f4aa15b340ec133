"""Retrieval over a gallery in both directions: an index of embeddings, then the best of them matched.

Source of the protocol: the original BLIP's `evaluation` in train_retrieval.py (its `k_test` is our `rerank`).
Here both stages are requests to the served path: embeddings make the index, ranking requests match.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from madtp_core.evaluate.recall import recall_at
from madtp_core.evaluate.run import Evaluation, Outlay, Progress, predict
from madtp_core.evaluate.samples import Picture, Sample
from madtp_core.evaluate.scores import MEASURES, RECALL_AT, recall_outcomes
from madtp_core.images import preprocess_image
from madtp_core.pruning import MAX_KEEP
from madtp_core.tasks.embedding import Embedding, EmbeddingModel
from madtp_core.tasks.ranking import Candidate

IMAGE_TO_TEXT: Final = "image_to_text"
TEXT_TO_IMAGE: Final = "text_to_image"
_ABOVE_COSINES: Final = 2.0


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images and texts to be found for each other.

    right: bool [images, texts], which belong together; several texts an image, and a text may fit several.
    groups: of every image, say its difficulty band.
    """

    pictures: Sequence[Picture]
    texts: tuple[str, ...]
    right: NDArray[np.bool_]
    groups: tuple[tuple[str, ...], ...]


def evaluate_gallery(
    model: EmbeddingModel,
    gallery: Gallery,
    *,
    batch_size: int = 16,
    prune_temperature: float = 0.0,
    keep_mode: str = MAX_KEEP,
    rerank: int = 16,
    text_queries: int | None = None,
    on_batch: Progress | None = None,
) -> Evaluation:
    """Find texts for every image, and images for text_queries texts (None: all), evenly spaced.

    Groups are both directions beside the images' own. BLIP matches the `rerank` most similar candidates, and
    an outlay is that of the ranking request; CLIP matches none, and it is that of the query's embedding. What
    building the index cost stands in `whole`.
    """
    options: dict[str, Any] = {"prune_temperature": prune_temperature, "keep_mode": keep_mode}

    def embedded(of: Callable[..., list[Embedding]], what: Sequence[Any]) -> list[Embedding]:
        found = []
        for batch in _batches(what, batch_size):
            found += of(batch, **options)
            _tell(on_batch, len(batch))
        return found

    def embed_pictures(batch: Sequence[Picture], **options: Any) -> list[Embedding]:
        pixels = [preprocess_image(Image.fromarray(each), model.image_geometry) for each in batch]
        return model.embed_images(pixels, **options)

    images, texts = embedded(embed_pictures, gallery.pictures), embedded(model.embed_texts, gallery.texts)
    similar = np.stack([one.values for one in images]) @ np.stack([one.values for one in texts]).T
    searches = _searches(gallery, similar, text_queries)
    outlays = [Outlay.of((images if s.is_image else texts)[s.number].spent) for s in searches]
    scores = [s.similarities.astype(np.float64) for s in searches]
    if model.task == "retrieval" and rerank:
        for rows in _batches(range(len(searches)), batch_size):
            shown = [_most_similar(scores[row], rerank) for row in rows]
            asked = [_request(gallery, searches[row], best) for row, best in zip(rows, shown, strict=True)]
            for row, best, answer in zip(rows, shown, predict(model, asked, **options), strict=True):
                scores[row] = _matched_first(scores[row], best, answer.ranked)
                outlays[row] = Outlay.of(answer.spent)
            _tell(on_batch, len(rows))
    recalls = [
        [recall_at(k, values, search.right) for k in RECALL_AT]
        for search, values in zip(searches, scores, strict=True)
    ]
    return Evaluation(
        MEASURES[model.task],
        recall_outcomes(recalls),
        tuple(search.groups for search in searches),
        tuple(outlays),
        _whole(gallery, [*images, *texts]),
    )


@dataclass(frozen=True, eq=False)
class _Search:
    """One image that looks for texts, or one text for images: candidates' similarities, and who is right."""

    is_image: bool
    number: int
    similarities: NDArray[np.float32]
    right: NDArray[np.bool_]
    groups: tuple[str, ...]


def _searches(gallery: Gallery, similar: NDArray[np.float32], text_queries: int | None) -> list[_Search]:
    columns = len(gallery.texts)
    asked = np.linspace(0, columns, min(text_queries or columns, columns), endpoint=False).astype(int)
    of_images = [
        _Search(True, row, similar[row], gallery.right[row], (IMAGE_TO_TEXT, *gallery.groups[row]))
        for row in range(len(gallery.pictures))
    ]
    of_texts = [
        _Search(False, column, similar[:, column], gallery.right[:, column], (TEXT_TO_IMAGE,))
        for column in asked.tolist()
    ]
    return of_images + of_texts


def _request(gallery: Gallery, search: _Search, candidates: Sequence[int]) -> Sample:
    if search.is_image:
        texts = tuple(gallery.texts[column] for column in candidates)
        return Sample((gallery.pictures[search.number],), {"texts": texts})
    pictures = tuple(gallery.pictures[row] for row in candidates)
    return Sample(pictures, {"text": gallery.texts[search.number]})


def _most_similar(similarities: NDArray[np.float64], wanted: int) -> list[int]:
    best: list[int] = np.argsort(-similarities, kind="stable")[:wanted].tolist()
    return best


def _matched_first(
    similarities: NDArray[np.float64], candidates: Sequence[int], ranked: Sequence[Candidate]
) -> NDArray[np.float64]:
    """Scores that put the matched candidates first, equal ones level, and leave the others' order."""
    matched = {candidates[one.index]: one.score for one in ranked}
    levels = {score: level for level, score in enumerate(sorted(set(matched.values())))}
    scores = similarities.copy()
    for candidate, score in matched.items():
        scores[candidate] = _ABOVE_COSINES + levels[score]
    return scores


def _whole(gallery: Gallery, index: Sequence[Embedding]) -> dict[str, float]:
    costs = [one.spent.cost for one in index]
    return {
        "gallery_images": len(gallery.pictures),
        "gallery_texts": len(gallery.texts),
        "flops_ratio/index": sum(cost.flops for cost in costs) / sum(cost.dense_flops for cost in costs),
    }


def _batches(what: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [what[start : start + size] for start in range(0, len(what), size)]


def _tell(on_batch: Progress | None, done: int) -> None:
    if on_batch is not None:
        on_batch(done)
