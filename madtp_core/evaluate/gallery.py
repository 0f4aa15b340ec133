"""Retrieval over a gallery in both directions: an index of embeddings, then the best of them matched.

Source of the protocol: the original BLIP's `evaluation` and `itm_eval` in train_retrieval.py (its `k_test` is
our `rerank`). Where nothing ties the recalls equal its own; candidates that tie are counted by chance, where
it takes them as sorting leaves them. It ranks what was not matched in no order, we by similarity: recall at k
differs where `rerank` is less than k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from madtp_core.evaluate.outlay import Outlay
from madtp_core.evaluate.recall import recall_at
from madtp_core.evaluate.records import Journal, Record, finished
from madtp_core.evaluate.run import Evaluation, Progress
from madtp_core.evaluate.samples import Picture
from madtp_core.evaluate.scores import MEASURES, RECALL_AT, recall_outcomes
from madtp_core.images import preprocess_image
from madtp_core.pruning import MAX_KEEP
from madtp_core.tasks.embedding import Embedding, EmbeddingModel
from madtp_core.tasks.ranking import Candidate
from madtp_core.tasks.retrieval_index import RetrievalIndex, Search

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
    journal: Journal | None = None,
) -> Evaluation:
    """Find texts for every image, and images for text_queries texts (None: all), evenly spaced.

    Groups are both directions beside the images' own. BLIP matches the `rerank` most similar candidates, and
    an outlay is that of the ranking request, its images and texts encoded too; CLIP matches none, and it is
    that of the query's embedding. What building the index cost stands in `whole`. journal: as of `evaluate`;
    the index is built anew.
    """
    index = RetrievalIndex(model, prune_temperature=prune_temperature, keep_mode=keep_mode)
    for pictures in _batches(gallery.pictures, batch_size):
        index.add_images([preprocess_image(Image.fromarray(one), model.image_geometry) for one in pictures])
        _tell(on_batch, len(pictures))
    for texts in _batches(gallery.texts, batch_size):
        index.add_texts(texts)
        _tell(on_batch, len(texts))
    images, texts_ = (np.stack([one.values for one in each]) for each in (index.images, index.texts))
    searches = _searches(gallery, images @ texts_.T, text_queries)
    records = [] if journal is None else finished(journal, len(searches), batch_size)
    _tell(on_batch, len(records))
    for batch in _batches(searches[len(records) :], batch_size):
        new = _searched(index, batch, rerank)
        records += new
        if journal is not None:
            journal.add(new)
        _tell(on_batch, len(new))
    evaluation = Evaluation(
        MEASURES[model.task],
        recall_outcomes([record.said for record in records]),
        tuple(record.groups for record in records),
        tuple(record.outlay for record in records),
    )
    whole = {**_whole(gallery, [*index.images, *index.texts]), **_mean_recalls(evaluation)}
    return replace(evaluation, whole=whole)


def _searched(index: RetrievalIndex, searches: Sequence[_Search], rerank: int) -> list[Record]:
    """Recalls of some searches and what each took."""
    scores = [search.similarities.astype(np.float64) for search in searches]
    outlays = [(index.images if s.is_image else index.texts)[s.number].spent for s in searches]
    if rerank and index.can_match:
        shown = [_most_similar(values, rerank) for values in scores]
        answers = index.match([search.pairs(best) for search, best in zip(searches, shown, strict=True)])
        outlays = [answer.spent for answer in answers]
        rows = zip(scores, shown, answers, strict=True)
        scores = [_matched_first(values, best, answer.ranked) for values, best, answer in rows]
    return [
        Record(
            None,
            [recall_at(k, values, search.right) for k in RECALL_AT],
            None,
            search.groups,
            Outlay.of(spent),
        )
        for search, values, spent in zip(searches, scores, outlays, strict=True)
    ]


def _mean_recalls(evaluation: Evaluation) -> dict[str, float]:
    """BLIP's r_mean: of recall at 1, 5 and 10 by direction, and of both."""
    means = {
        f"r_mean/{way}": float(np.mean([evaluation.mean(way, f"recall_at_{k}") for k in RECALL_AT]))
        for way in (IMAGE_TO_TEXT, TEXT_TO_IMAGE)
    }
    return {**means, "r_mean": float(np.mean(list(means.values())))}


@dataclass(frozen=True, eq=False)
class _Search:
    """One image that looks for texts, or one text for images: candidates' similarities, and who is right."""

    is_image: bool
    number: int
    similarities: NDArray[np.float32]
    right: NDArray[np.bool_]
    groups: tuple[str, ...]

    def pairs(self, candidates: Sequence[int]) -> Search:
        """The query and its candidates, as images and texts."""
        return ([self.number], candidates) if self.is_image else (candidates, [self.number])


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
    outlays = [Outlay.of(one.spent) for one in index]
    return {
        "gallery_images": len(gallery.pictures),
        "gallery_texts": len(gallery.texts),
        "flops_ratio/index": sum(one.flops for one in outlays) / sum(one.dense_flops for one in outlays),
        "gmacs/index": sum(one.gmacs for one in outlays),
        "dense_gmacs/index": sum(one.dense_gmacs for one in outlays),
    }


def _batches(what: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [what[start : start + size] for start in range(0, len(what), size)]


def _tell(on_batch: Progress | None, done: int) -> None:
    if on_batch is not None:
        on_batch(done)
