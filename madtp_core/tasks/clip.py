"""Retrieval with CLIP: an image against texts, or a text against images, ranked, with what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from madtp_core.backbones.clip import text_config
from madtp_core.checkpoint import Checkpoint
from madtp_core.encoder import Encoded, Pruning
from madtp_core.errors import ConfigError
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.tasks.clip_cost import ClipCostModel
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tasks.cost import Spent, Traces
from madtp_core.tasks.embedding import EmbeddedQueries, EmbeddingModel, RetrievalAnswer, whole_traces
from madtp_core.tasks.ranking import Compared, RetrievalQuery, compare


@dataclass(frozen=True, eq=False)
class ClipAnswer(RetrievalAnswer):
    """All candidates by itc, best first, and what they took; CLIP matches none.

    logits: theirs in that order, cosine times logit scale as in Hugging Face's `logits_per_image` and
    `logits_per_text`; their softmax is the model's choice among the candidates.
    """

    logits: tuple[float, ...] = ()


class ClipRetrieval(EmbeddingModel):
    """A CLIP that finds texts for an image or images for a text, dense or pruned in both towers."""

    task = "clip"
    architecture = "clip"
    network: ClipNetwork

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        super().__init__(checkpoint, name=name or "clip-retrieval", device=device)
        longest, geometry = checkpoint.config.max_text_tokens, checkpoint.image_geometry
        positions = text_config(checkpoint.model.config).max_position_embeddings
        if longest > positions:
            raise ConfigError(f"max_text_tokens is {longest}, but this CLIP has {positions} text positions")
        self.cost_model = ClipCostModel(self.network, geometry.height, geometry.width)

    def _build_network(self) -> ClipNetwork:
        return ClipNetwork(self.checkpoint.model, self.checkpoint.alignment)

    @torch.inference_mode()
    def predict(
        self,
        queries: Sequence[RetrievalQuery],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[ClipAnswer]:
        """Rank every query's candidates; prune_temperature is one for all or one a query, 0 runs dense.

        Each image and each text of a query is encoded once. Raises ConfigError for a value the model cannot
        take, before anything has run.
        """
        if not queries:
            return []
        for query in queries:
            self._check(query)
        token_ids, mask = self._tokenize([text for query in queries for text in query.texts])
        pruning = self.batch_pruning(prune_temperature, len(queries), keep_mode)
        embedded = self._embed_queries(queries, token_ids, mask, pruning)
        unmatched = [replace(query, rerank=0) for query in queries]
        compared = compare(unmatched, embedded.image_vectors, embedded.text_vectors)
        passes: list[list[tuple[int, int]]] = [[] for _ in queries]
        spent = self.cost_model.batch(_traces(compared, embedded), passes, passes, pruning)
        scale = self.network.logit_scale().item()
        rows = zip(queries, compared, spent, strict=True)
        return [self._answer(*row, embedded, scale) for row in rows]

    def _encode_texts(self, token_ids: Tensor, mask: Tensor, pruning: Pruning | None) -> Encoded:
        return self.network.encode_text(token_ids, pruning)  # which ends each text at its EOT

    def _check(self, query: RetrievalQuery) -> None:
        super()._check(query)
        if query.rerank:
            raise ConfigError(f"CLIP has no matching stage: rerank must be None or 0, got {query.rerank}")

    def _answer(
        self,
        query: RetrievalQuery,
        compared: Compared,
        spent: Spent,
        embedded: EmbeddedQueries,
        logit_scale: float,
    ) -> ClipAnswer:
        started = time.perf_counter()
        ranked = compared.ranked(torch.empty(0, 2))
        logits = tuple(logit_scale * candidate.itc for candidate in ranked)
        answer = ClipAnswer(ranked, spent, time.perf_counter() - started, logits=logits)
        if not query.with_embeddings:
            return answer
        images, texts = embedded.of(compared)
        return replace(answer, image_embeddings=images, text_embeddings=texts)


def _traces(compared: Sequence[Compared], embedded: EmbeddedQueries) -> list[Traces]:
    """The traces of each query, in the order of its candidates."""
    images, texts = whole_traces(embedded.image), whole_traces(embedded.text)
    return [
        {
            VISION: tuple(images[row] for row in one.images),
            TEXT: tuple(texts[row] for row in one.texts),
        }
        for one in compared
    ]
