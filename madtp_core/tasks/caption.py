"""Captioning with BLIP: images in, captions out, each with what it cost."""

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
from madtp_core.pruning import MAX_KEEP, VISION
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.caption_cost import CaptionCostModel
from madtp_core.tasks.caption_network import CaptionNetwork
from madtp_core.tasks.cost import Spent, branch_traces
from madtp_core.tasks.text import TextCodec

ORIGINAL_PROMPT = "a picture of "  # what the original BLIP's captioners were trained with


@dataclass(frozen=True, eq=False)
class CaptionQuery:
    """One preprocessed image to describe.

    pixel_values: float32 [3, height, width]. prompt: what the caption continues, `ORIGINAL_PROMPT` for
    instance. candidates: rank these captions instead of writing one. min_new_tokens: none ends before.
    """

    pixel_values: NDArray[np.float32]
    prompt: str = ""
    candidates: tuple[str, ...] | None = None
    num_beams: int = 1
    max_new_tokens: int = 20
    min_new_tokens: int = 0


@dataclass(frozen=True)
class CaptionAnswer:
    """A caption, without its prompt, and what it took.

    score: mean log-probability of the caption's tokens, its end included. ranked: all candidates with their
    scores, best first. postprocess_s: seconds spent turning tokens into text.
    """

    caption: str
    score: float
    ranked: tuple[tuple[str, float], ...] | None
    spent: Spent
    postprocess_s: float


class BlipCaption(PrunedModel):
    """A BLIP captioner, dense or pruned: its image is, its decoder never."""

    task = "caption"
    network: CaptionNetwork

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        super().__init__(checkpoint, name=name, device=device)
        if self.pruning is not None and VISION not in self.pruning.branches:
            raise ConfigError(f"captioning prunes the image alone, but branches are {self.pruning.branches}")
        config, geometry = checkpoint.config, checkpoint.image_geometry
        self.codec = TextCodec(checkpoint.tokenizer, config.encoder_first_token, config.max_text_tokens)
        self.cost_model = CaptionCostModel(self.network, geometry.height, geometry.width)
        self._decoder = self.network.decoder()

    def _build_network(self) -> CaptionNetwork:
        return CaptionNetwork(self.checkpoint.model, self.checkpoint.alignment)

    @property
    def vision_geometry(self) -> VisionGeometry:
        return self.cost_model.vision

    @property
    def text_geometry(self) -> TextGeometry:
        return self.cost_model.text

    @torch.inference_mode()
    def predict(
        self,
        queries: Sequence[CaptionQuery],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[CaptionAnswer]:
        """Caption a batch; prune_temperature is one for all or one a query, 0 runs dense.

        Raises ConfigError for a value the model cannot take, before anything has run.
        """
        if not queries:
            return []
        searches = [self._search(query) for query in queries]
        pruning = self.batch_pruning(prune_temperature, len(queries), keep_mode)
        pixels = torch.from_numpy(np.stack([query.pixel_values for query in queries]))
        image = self.encode_image(pixels, pruning.of(VISION) if pruning else None)
        decoded = decode(self._decoder, self._decoder.remember(image.tokens), searches)

        patches = [self.cost_model.vision.patches] * len(queries)
        spent = self.cost_model.batch(
            [{VISION: (seen,)} for seen in branch_traces(image, patches)],
            [[step for text in texts for step in text.passes] for texts in decoded],
            [[step for text in texts for step in text.padded_passes] for texts in decoded],
            pruning,
        )
        return [self._answer(*row) for row in zip(queries, decoded, spent, strict=True)]

    def _search(self, query: CaptionQuery) -> Search:
        """A checked query as the decoder takes it."""
        self.check_image(query.pixel_values)
        prompt = self.codec.prompt_ids(query.prompt)
        longest = text_config(self.checkpoint.model.config).max_position_embeddings - 1 - len(prompt)
        if query.num_beams < 1 or not 1 <= query.max_new_tokens <= longest:
            raise ConfigError(
                f"need num_beams >= 1 and, behind this prompt, max_new_tokens in 1..{longest}, "
                f"got {query.num_beams} and {query.max_new_tokens}"
            )
        if not 0 <= query.min_new_tokens <= query.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens must be in 0..{query.max_new_tokens}, got {query.min_new_tokens}"
            )
        candidates = query.candidates
        ids = None if candidates is None else self.codec.candidate_ids(candidates, longest - 1)
        return Search(query.max_new_tokens, query.num_beams, query.min_new_tokens, prompt, ids)

    def _answer(self, query: CaptionQuery, decoded: list[Decoded], spent: Spent) -> CaptionAnswer:
        started = time.perf_counter()
        outcome = self.codec.outcome(decoded, query.candidates)
        return CaptionAnswer(*outcome, spent, time.perf_counter() - started)
