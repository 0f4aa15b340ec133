"""What models share that compare images with texts by embedding: checks, both towers, what it took."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from madtp_core.calibration import Calibration
from madtp_core.checkpoint import Checkpoint
from madtp_core.encoder import BatchPruning, Encoded, Pruning
from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace, TextGeometry, VisionGeometry
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import Spent, Traces, branch_traces
from madtp_core.tasks.ranking import Candidate, Compared, RetrievalQuery
from madtp_core.tasks.shape import calibration_of_shape
from madtp_core.tasks.text import TextCodec


@dataclass(frozen=True, eq=False)
class RetrievalAnswer:
    """All candidates, the matched ones by score and then the others by itc, and what they took.

    spent: its traces stand in the order of itc. postprocess_s: seconds spent ranking. image_embeddings,
    text_embeddings: unit rows [images, E] and [texts, E] in the query's order, if asked for.
    """

    ranked: tuple[Candidate, ...]
    spent: Spent
    postprocess_s: float
    image_embeddings: NDArray[np.float32] | None = None
    text_embeddings: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class EmbeddingQuery:
    """Images, texts, or both; pixel_values: float32 [3, height, width] each."""

    pixel_values: tuple[NDArray[np.float32], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Embedding:
    """What an image or a text is compared by, a unit vector float32 [E], and what it took."""

    values: NDArray[np.float32]
    spent: Spent


@dataclass(frozen=True, eq=False)
class EmbeddedQueries:
    """Every image and every text of a batch of queries, one query after another.

    image, text: what the towers left. image_vectors, text_vectors: unit rows float32 on the CPU. text_owners:
    text -> its query.
    """

    image: Encoded
    text: Encoded
    image_vectors: Tensor
    text_vectors: Tensor
    text_owners: Tensor

    def of(self, query: Compared) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One query's unit rows [images, E] and [texts, E], in its own order."""
        images, texts = self.image_vectors[sorted(query.images)], self.text_vectors[sorted(query.texts)]
        return images.numpy(), texts.numpy()


class EmbeddingModel(PrunedModel):
    """A model that encodes images and texts apart, each to one unit vector.

    Subclasses encode texts, and add `predict`. network: has encode_image, image_embeddings, text_embeddings.
    """

    network: Any

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        super().__init__(checkpoint, name=name, device=device)
        config = checkpoint.config
        self.codec = TextCodec(checkpoint.tokenizer, config.encoder_first_token, config.max_text_tokens)

    @property
    def vision_geometry(self) -> VisionGeometry:
        return self.cost_model.vision

    @property
    def text_geometry(self) -> TextGeometry:
        return self.cost_model.text

    @abstractmethod
    def _encode_texts(self, token_ids: Tensor, mask: Tensor, pruning: Pruning | None) -> Encoded:
        """Encode texts alone: token_ids, mask [Q, L] on the model's device."""

    @classmethod
    def shape_of(cls, query: RetrievalQuery | EmbeddingQuery) -> Mapping[str, int]:
        """How many images and texts a query has; subclasses add the pairs that they match."""
        return {VISION: len(query.pixel_values), TEXT: len(query.texts)}

    def calibration_of(self, shape: Mapping[str, int], keep_mode: str) -> Calibration | None:
        if self.calibration is None or self.pruning is None or not shape:
            return self.calibration
        return calibration_of_shape(
            self.calibration, self.cost_model, self.pruning.branches, shape, keep_mode
        )

    @torch.inference_mode()
    def embed_images(
        self,
        images: Sequence[NDArray[np.float32]],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[Embedding]:
        """Embed images, pixel values float32 [3, height, width] each; the other arguments as of `predict`."""
        if len(images) == 0:  # an array has no truth
            return []
        return self.encode_images(images, prune_temperature=prune_temperature, keep_mode=keep_mode)[1]

    @torch.inference_mode()
    def encode_images(
        self,
        images: Sequence[NDArray[np.float32]],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> tuple[Encoded, list[Embedding]]:
        """What the tower leaves of at least one image, and the embeddings; arguments as of `embed_images`."""
        for pixel_values in images:
            self.check_image(pixel_values)
        pruning = self.batch_pruning(prune_temperature, len(images), keep_mode)
        pixels = torch.from_numpy(np.stack(images))
        encoded = self.encode_image(pixels, pruning.of(VISION) if pruning else None)
        vectors = self.network.image_embeddings(encoded)
        traces: list[Traces] = [{VISION: (trace,)} for trace in whole_traces(encoded)]
        return encoded, self._embeddings(vectors, traces, pruning)

    @torch.inference_mode()
    def embed_texts(
        self,
        texts: Sequence[str],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[Embedding]:
        """Embed texts, each alone; the other arguments as of `predict`."""
        if not texts:
            return []
        token_ids, mask = self._tokenize(texts)
        pruning = self.batch_pruning(prune_temperature, len(texts), keep_mode)
        encoded = self._encode_texts(token_ids, mask, pruning.of(TEXT) if pruning else None)
        vectors = self.network.text_embeddings(encoded)
        return self._embeddings(vectors, [{TEXT: (trace,)} for trace in whole_traces(encoded)], pruning)

    def _embed_queries(
        self,
        queries: Sequence[RetrievalQuery],
        token_ids: Tensor,
        mask: Tensor,
        pruning: BatchPruning | None,
    ) -> EmbeddedQueries:
        """Encode all images and texts of the queries, each once; token_ids, mask: all texts."""
        asker = self._owners([len(query.texts) for query in queries])
        viewer = self._owners([len(query.pixel_values) for query in queries])
        pixels = torch.from_numpy(np.concatenate([query.pixel_values for query in queries]))
        image = self.encode_image(pixels, pruning.of(VISION, viewer) if pruning else None)
        text = self._encode_texts(token_ids, mask, pruning.of(TEXT, asker) if pruning else None)
        image_vectors = self.network.image_embeddings(image).float().cpu()
        text_vectors = self.network.text_embeddings(text).float().cpu()
        return EmbeddedQueries(image, text, image_vectors, text_vectors, asker)

    def _check(self, query: RetrievalQuery) -> None:
        images, texts = len(query.pixel_values), len(query.texts)
        if min(images, texts) != 1:
            raise ConfigError(f"need one image or one text against one or more, got {images} and {texts}")
        for pixel_values in query.pixel_values:
            self.check_image(pixel_values)

    def _tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        token_ids, mask = self.codec.texts(texts)
        return token_ids.to(self.device), mask.to(self.device)

    def _owners(self, counts: Sequence[int]) -> Tensor:
        """Which query each row is of, counts of them one after another."""
        return torch.repeat_interleave(torch.tensor(counts, device=self.device))

    def _embeddings(
        self, vectors: Tensor, traces: Sequence[Traces], pruning: BatchPruning | None
    ) -> list[Embedding]:
        passes: list[list[tuple[int, int]]] = [[] for _ in traces]
        spent = self.cost_model.batch(traces, passes, passes, pruning)
        values = vectors.float().cpu().numpy()
        return [Embedding(*row) for row in zip(values, spent, strict=True)]


def whole_traces(encoded: Encoded) -> list[BranchTrace]:
    """One trace a row of a branch that was entered unpruned."""
    dense: list[int] = encoded.tokens_in[0].tolist()
    return branch_traces(encoded, dense)
