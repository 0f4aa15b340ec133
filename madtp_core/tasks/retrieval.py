"""Retrieval with BLIP: an image against texts, or a text against images, ranked, with what it cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from madtp_core.checkpoint import Checkpoint
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.errors import ConfigError
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.tasks.cost import MATCH, Spent, Traces
from madtp_core.tasks.embedding import (
    EmbeddedQueries,
    EmbeddingModel,
    EmbeddingQuery,
    RetrievalAnswer,
    whole_traces,
)
from madtp_core.tasks.ranking import Compared, RetrievalQuery, compare
from madtp_core.tasks.retrieval_cost import RetrievalCostModel
from madtp_core.tasks.retrieval_network import RetrievalNetwork


class BlipRetrieval(EmbeddingModel):
    """A BLIP that finds texts for an image or images for a text, dense or pruned.

    Pruned are the image, the text alone, and the text that reads an image.
    """

    task = "retrieval"
    network: RetrievalNetwork

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        super().__init__(checkpoint, name=name, device=device)
        geometry = checkpoint.image_geometry
        self.cost_model = RetrievalCostModel(self.network, geometry.height, geometry.width)

    def _build_network(self) -> RetrievalNetwork:
        return RetrievalNetwork(self.checkpoint.model, self.checkpoint.alignment)

    @classmethod
    def shape_of(cls, query: RetrievalQuery | EmbeddingQuery) -> Mapping[str, int]:
        matched = query.matched if isinstance(query, RetrievalQuery) else 0
        return {**super().shape_of(query), MATCH: matched}

    @torch.inference_mode()
    def predict(
        self,
        queries: Sequence[RetrievalQuery],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[RetrievalAnswer]:
        """Rank every query's candidates; prune_temperature is one for all or one a query, 0 runs dense.

        All candidates are compared by embedding, and the most similar ones matched. Each image and each text
        of a query is encoded once, however many it is compared with. Raises ConfigError for a value the model
        cannot take, before anything has run.
        """
        if not queries:
            return []
        for query in queries:
            self._check(query)
        token_ids, mask = self._tokenize([text for query in queries for text in query.texts])
        pruning = self.batch_pruning(prune_temperature, len(queries), keep_mode)
        embedded = self._embed_queries(queries, token_ids, mask, pruning)
        compared = compare(queries, embedded.image_vectors, embedded.text_vectors)
        pairs = [pair for one in compared for pair in one.to_match]
        match = self._match(pairs, token_ids, mask, embedded, pruning) if pairs else None
        logits = torch.empty(0, 2) if match is None else self.network.match_logits(match).float().cpu()
        passes: list[list[tuple[int, int]]] = [[] for _ in queries]
        traces = _traces(compared, embedded, match)
        spent = self.cost_model.batch(traces, passes, passes, pruning)
        of_query = torch.split(logits, [one.matched for one in compared])
        rows = zip(queries, compared, of_query, spent, strict=True)
        return [_answer(*row, embedded) for row in rows]

    def _check(self, query: RetrievalQuery) -> None:
        super()._check(query)
        if query.rerank is not None and query.rerank < 0:
            raise ConfigError(f"rerank must be >= 0, or None to match all candidates, got {query.rerank}")

    def _encode_texts(self, token_ids: Tensor, mask: Tensor, pruning: Pruning | None) -> Encoded:
        return self.network.encode_text(token_ids, mask, pruning=pruning)

    def _match(
        self,
        pairs: Sequence[tuple[int, int]],
        token_ids: Tensor,
        mask: Tensor,
        embedded: EmbeddedQueries,
        pruning: BatchPruning | None,
    ) -> Encoded:
        """Encode each pair's text reading its image; pairs of image row and text row."""
        images, texts = torch.tensor(pairs, device=self.device).unbind(1)
        match_ids = self.codec.reading(token_ids)[texts]
        own = pruning.of(TEXT, embedded.text_owners[texts]) if pruning else None
        return self.network.match(match_ids, mask[texts], embedded.image, images, own)


def _traces(compared: Sequence[Compared], embedded: EmbeddedQueries, match: Encoded | None) -> list[Traces]:
    """The traces of each query, in the order of its candidates, as the cost model wants them."""
    images, texts = whole_traces(embedded.image), whole_traces(embedded.text)
    matches = iter(() if match is None else whole_traces(match))
    return [
        {
            VISION: tuple(images[row] for row in one.images),
            TEXT: tuple(texts[row] for row in one.texts),
            MATCH: tuple(next(matches) for _ in range(one.matched)),
        }
        for one in compared
    ]


def _answer(
    query: RetrievalQuery, compared: Compared, logits: Tensor, spent: Spent, embedded: EmbeddedQueries
) -> RetrievalAnswer:
    """Rank one query's candidates by their own match logits [matched, 2]."""
    started = time.perf_counter()
    answer = RetrievalAnswer(compared.ranked(logits), spent, time.perf_counter() - started)
    if not query.with_embeddings:
        return answer
    images, texts = embedded.of(compared)
    return replace(answer, image_embeddings=images, text_embeddings=texts)
