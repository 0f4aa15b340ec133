"""What retrieval asks and answers, and the order of its candidates: no model, only vectors and logits.

Source of both stages and of their sum: the original BLIP, `evaluation` in train_retrieval.py. It matches the
`k_test` most similar candidates and ranks them by the match logit plus the similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RetrievalQuery:
    """One image against several texts, or one text against several images: the several are the candidates.

    pixel_values: float32 [images, 3, height, width]. rerank: how many of the most similar candidates are also
    matched, a text reading an image; None all, 0 none. with_embeddings: answer with the embeddings too.
    """

    pixel_values: NDArray[np.float32]
    texts: tuple[str, ...]
    rerank: int | None = None
    with_embeddings: bool = False

    @property
    def matched(self) -> int:
        """How many pairs are matched."""
        pairs = len(self.pixel_values) * len(self.texts)
        return pairs if self.rerank is None else min(self.rerank, pairs)


@dataclass(frozen=True)
class Candidate:
    """One candidate: its index in the query, and how well it fits.

    itc: cosine of the image's and the text's embedding. itm: logit of their match, match_probability its
    softmax against no match; None for a candidate that was not matched.
    """

    index: int
    itc: float
    itm: float | None = None
    match_probability: float | None = None

    @property
    def score(self) -> float:
        """itc + itm, which matched candidates are ranked by; itc alone where there is no more."""
        return self.itc if self.itm is None else self.itc + self.itm


@dataclass(frozen=True)
class Compared:
    """One query's candidates, the most similar first.

    pairs: the rows of each one's image and text among all images and all texts of the batch. matched: how
    many of them, from the first on, are matched too.
    """

    candidates: tuple[int, ...]
    similarities: tuple[float, ...]
    pairs: tuple[tuple[int, int], ...]
    matched: int

    @property
    def to_match(self) -> tuple[tuple[int, int], ...]:
        """The pairs that are matched."""
        return self.pairs[: self.matched]

    @property
    def images(self) -> list[int]:
        """Rows of the query's images, in the order of its candidates."""
        return list(dict.fromkeys(image for image, _ in self.pairs))

    @property
    def texts(self) -> list[int]:
        """Rows of the query's texts, in the order of its candidates."""
        return list(dict.fromkeys(text for _, text in self.pairs))

    def ranked(self, logits: Tensor) -> tuple[Candidate, ...]:
        """All candidates, the matched ones by score, then the others by itc.

        logits: [matched, 2], no match and match.
        """
        every = [*zip(self.candidates, self.similarities, strict=True)]
        figures = zip(logits[:, 1].tolist(), logits.softmax(-1)[:, 1].tolist(), strict=True)
        matched = [Candidate(*one, *two) for one, two in zip(every[: self.matched], figures, strict=True)]
        matched.sort(key=lambda candidate: -candidate.score)
        return *matched, *(Candidate(*one) for one in every[self.matched :])


def compare(queries: Sequence[RetrievalQuery], image_vectors: Tensor, text_vectors: Tensor) -> list[Compared]:
    """Order each query's candidates by similarity; equal ones stay in their order.

    image_vectors [images, E], text_vectors [texts, E]: unit rows of all queries, one query after another.
    """
    results, image, text = [], 0, 0
    for query in queries:
        images, texts = range(image, image + len(query.pixel_values)), range(text, text + len(query.texts))
        image, text = images.stop, texts.stop
        cosines = image_vectors[images.start : image] @ text_vectors[texts.start : text].T  # [1, N] or [N, 1]
        values, order = cosines.flatten().sort(descending=True, stable=True)
        pairs = [(own_image, own_text) for own_image in images for own_text in texts]
        candidates = tuple(order.tolist())
        in_order = tuple(pairs[candidate] for candidate in candidates)
        results.append(Compared(candidates, tuple(values.tolist()), in_order, query.matched))
    return results
