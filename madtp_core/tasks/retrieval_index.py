"""A gallery's images and texts, each encoded once, so that pairs of them are matched at no other cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.image_cache import EncodedImage, join_images, split_images
from madtp_core.pruning import MAX_KEEP, PER_INSTANCE, TEXT, VISION
from madtp_core.tasks.cost import MATCH, Traces
from madtp_core.tasks.embedding import Embedding, EmbeddingModel, RetrievalAnswer, whole_traces
from madtp_core.tasks.ranking import Compared
from madtp_core.tasks.retrieval import BlipRetrieval

Search = tuple[Sequence[int], Sequence[int]]  # images and texts to match, one of them alone


class RetrievalIndex:
    """Images and texts in the order in which they were added, and their embeddings.

    For BLIP, which matches pairs, encoded images wait in the CPU's memory: a search is answered, and costs,
    as `BlipRetrieval.predict` would, but no image is encoded anew. Under max_keep an image keeps what the
    neediest of those added with it needs.
    """

    def __init__(
        self, model: EmbeddingModel, *, prune_temperature: float = 0.0, keep_mode: str = MAX_KEEP
    ) -> None:
        self.model = model
        self.images: list[Embedding] = []
        self.texts: list[Embedding] = []
        self._prune_temperature, self._keep_mode = prune_temperature, keep_mode
        self._encoded: list[EncodedImage] = []
        self._words: list[str] = []

    @property
    def can_match(self) -> bool:
        return isinstance(self.model, BlipRetrieval)

    def add_images(self, images: Sequence[NDArray[np.float32]]) -> None:
        """Encode a batch of images, pixel values float32 [3, height, width] each."""
        encoded, embeddings = self.model.encode_images(
            images, prune_temperature=self._prune_temperature, keep_mode=self._keep_mode
        )
        if self.can_match:
            self._encoded += [image.to("cpu") for image in split_images(encoded)]
        self.images += embeddings

    def add_texts(self, texts: Sequence[str]) -> None:
        """Encode a batch of texts, each alone."""
        self.texts += self.model.embed_texts(
            texts, prune_temperature=self._prune_temperature, keep_mode=self._keep_mode
        )
        self._words += texts

    @torch.inference_mode()
    def match(self, searches: Sequence[Search]) -> list[RetrievalAnswer]:
        """Match every pair of each search; its candidates are ranked by match logit plus similarity."""
        model = self.model
        pairs = [[(image, text) for image in images for text in texts] for images, texts in searches]
        sizes = [len(each) for each in pairs]
        pruning = model.batch_pruning(self._prune_temperature, len(searches), self._keep_mode)
        match = self._read([pair for each in pairs for pair in each], sizes, pruning)
        logits = torch.split(model.network.match_logits(match).float().cpu(), sizes)
        matches = iter(whole_traces(match))
        traces: list[Traces] = [
            {
                VISION: tuple(self.images[row].spent.traces[VISION][0] for row in images),
                TEXT: tuple(self.texts[row].spent.traces[TEXT][0] for row in texts),
                MATCH: tuple(next(matches) for _ in each),
            }
            for (images, texts), each in zip(searches, pairs, strict=True)
        ]
        passes: list[list[tuple[int, int]]] = [[] for _ in searches]
        spent = model.cost_model.batch(traces, passes, passes, pruning)
        return [
            RetrievalAnswer(self._compared(each).ranked(own), cost, 0.0)
            for each, own, cost in zip(pairs, logits, spent, strict=True)
        ]

    def _read(
        self, pairs: Sequence[tuple[int, int]], sizes: Sequence[int], pruning: BatchPruning | None
    ) -> Encoded:
        """Each pair's text, reading its image; sizes: how many pairs are of each search."""
        model, device = self.model, self.model.device
        of_images, of_texts = torch.tensor(pairs).unbind(1)
        images, image = torch.unique(of_images, return_inverse=True)
        texts, text = torch.unique(of_texts, return_inverse=True)
        encoded = join_images(
            [self._encoded[row].to(device) for row in images.tolist()],
            is_packed=pruning is not None and VISION in pruning.branches and self._keep_mode == PER_INSTANCE,
        )
        token_ids, mask = model.codec.texts([self._words[row] for row in texts.tolist()])
        match_ids = model.codec.reading(token_ids)
        owner = torch.repeat_interleave(torch.tensor(sizes)).to(device)
        own = pruning.of(TEXT, owner) if pruning else None
        match: Encoded = model.network.match(
            match_ids[text].to(device), mask[text].to(device), encoded, image.to(device), own
        )
        return match

    def _compared(self, pairs: Sequence[tuple[int, int]]) -> Compared:
        """One search's candidates in the order of its pairs, all to be matched."""
        similarities = tuple(
            float(self.images[image].values @ self.texts[text].values) for image, text in pairs
        )
        return Compared(tuple(range(len(pairs))), similarities, tuple(pairs), len(pairs))
