"""Visual question answering with BLIP: queries in, answers out, each with what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_core.backbones.blip import text_config
from madtp_core.checkpoint import Checkpoint
from madtp_core.decoding import Decoded, Search, decode
from madtp_core.errors import ConfigError
from madtp_core.flops import TextGeometry, VisionGeometry
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import Spent, Traces, branch_traces
from madtp_core.tasks.text import TextCodec
from madtp_core.tasks.vqa_cost import VqaCostModel
from madtp_core.tasks.vqa_network import VqaNetwork


@dataclass(frozen=True, eq=False)
class VqaQuery:
    """One question about one preprocessed image.

    pixel_values: float32 [3, height, width]. candidates: rank these answers instead of generating one.
    shortlist: only so many of them, those whose first token is likeliest, as BLIP does for a benchmark
    (`k_test`); None all.
    """

    pixel_values: NDArray[np.float32]
    question: str
    candidates: tuple[str, ...] | None = None
    num_beams: int = 1
    max_new_tokens: int = 20
    shortlist: int | None = None


@dataclass(frozen=True)
class VqaAnswer:
    """An answer and what it took.

    score: mean log-probability of the answer's tokens, its end included; of a shortlist the smoothed
    log-likelihood that BLIP ranks by. ranked: all scored candidates, best first. postprocess_s: seconds spent
    turning tokens into text.
    """

    answer: str
    score: float
    ranked: tuple[tuple[str, float], ...] | None
    spent: Spent
    postprocess_s: float


class BlipVqa(PrunedModel):
    """A BLIP-VQA ready to answer, dense or pruned."""

    task = "vqa"
    network: VqaNetwork

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        super().__init__(checkpoint, name=name, device=device)
        config, geometry = checkpoint.config, checkpoint.image_geometry
        self.codec = TextCodec(checkpoint.tokenizer, config.encoder_first_token, config.max_text_tokens)
        self.cost_model = VqaCostModel(self.network, geometry.height, geometry.width)
        self._decoder = self.network.decoder()

    def _build_network(self) -> VqaNetwork:
        return VqaNetwork(self.checkpoint.model, self.checkpoint.alignment)

    @property
    def vision_geometry(self) -> VisionGeometry:
        return self.cost_model.vision

    @property
    def text_geometry(self) -> TextGeometry:
        return self.cost_model.text

    @torch.inference_mode()
    def predict(
        self,
        queries: Sequence[VqaQuery],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[VqaAnswer]:
        """Answer a batch; prune_temperature is one for all or one a query, 0 runs dense.

        Raises ConfigError for a value the model cannot take, before anything has run.
        """
        if not queries:
            return []
        searches = [self._search(query) for query in queries]
        token_ids, mask = self.codec.questions([query.question for query in queries])
        pruning = self.batch_pruning(prune_temperature, len(queries), keep_mode)
        pixels = torch.from_numpy(np.stack([query.pixel_values for query in queries]))
        image = self.encode_image(pixels, pruning.of(VISION) if pruning else None)
        question = self.network.encode_question(
            token_ids.to(self.device),
            mask.to(self.device),
            image,
            None,
            pruning.of(TEXT) if pruning else None,
        )
        decoded = decode(self._decoder, self._decoder.remember(question.tokens), searches)

        traces: list[Traces] = [
            {VISION: (seen,), TEXT: (asked,)}
            for seen, asked in zip(
                branch_traces(image, [self.cost_model.vision.patches] * len(queries)),
                branch_traces(question, (mask.sum(1) - 1).tolist()),
                strict=True,
            )
        ]
        spent = self.cost_model.batch(
            traces,
            [[step for text in texts for step in text.passes] for texts in decoded],
            [[step for text in texts for step in text.padded_passes] for texts in decoded],
            pruning,
        )
        return [self._answer(*row) for row in zip(queries, decoded, spent, strict=True)]

    def _search(self, query: VqaQuery) -> Search:
        """A checked query as the decoder takes it."""
        self.check_image(query.pixel_values)
        longest = text_config(self.checkpoint.model.config).max_position_embeddings - 1
        if query.num_beams < 1 or not 1 <= query.max_new_tokens <= longest:
            raise ConfigError(
                f"need num_beams >= 1 and max_new_tokens in 1..{longest}, "
                f"got {query.num_beams} and {query.max_new_tokens}"
            )
        if query.shortlist is not None and (query.shortlist < 1 or query.candidates is None):
            raise ConfigError(f"shortlist must be >= 1 and of candidates, got {query.shortlist}")
        candidates = query.candidates
        ids = None if candidates is None else self.codec.candidate_ids(candidates, longest - 1)
        return Search(query.max_new_tokens, query.num_beams, candidates=ids, shortlist=query.shortlist)

    def _answer(self, query: VqaQuery, decoded: list[Decoded], spent: Spent) -> VqaAnswer:
        started = time.perf_counter()
        outcome = self.codec.outcome(decoded, query.candidates)
        return VqaAnswer(*outcome, spent, time.perf_counter() - started)
