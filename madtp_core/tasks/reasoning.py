"""Reasoning over two images (NLVR2) with BLIP: statements in, true or false out, each with what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from madtp_core.backbones.nlvr import LABELS
from madtp_core.checkpoint import Checkpoint
from madtp_core.encoder import Encoded
from madtp_core.flops import TextGeometry, VisionGeometry
from madtp_core.pruning import MAX_KEEP, TEXT, VISION
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import Spent, Traces, branch_traces
from madtp_core.tasks.reasoning_cost import ReasoningCostModel
from madtp_core.tasks.reasoning_network import ReasoningNetwork
from madtp_core.tasks.text import TextCodec


@dataclass(frozen=True, eq=False)
class ReasoningQuery:
    """One statement about two preprocessed images; left and right: float32 [3, height, width]."""

    left: NDArray[np.float32]
    right: NDArray[np.float32]
    statement: str


@dataclass(frozen=True)
class ReasoningAnswer:
    """Whether a statement is true, and what it took to say so.

    probability: of the statement being true, by the model. spent: its vision traces are those of the left and
    the right image. postprocess_s: seconds spent turning logits into the answer.
    """

    answer: bool
    probability: float
    spent: Spent
    postprocess_s: float


class BlipReasoning(PrunedModel):
    """A BLIP for NLVR2 ready to answer, dense or pruned."""

    task = "reasoning"
    network: ReasoningNetwork

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None, device: str = "cpu") -> None:
        super().__init__(checkpoint, name=name, device=device)
        config, geometry = checkpoint.config, checkpoint.image_geometry
        self.codec = TextCodec(checkpoint.tokenizer, config.encoder_first_token, config.max_text_tokens)
        self.cost_model = ReasoningCostModel(self.network, geometry.height, geometry.width)

    def _build_network(self) -> ReasoningNetwork:
        return ReasoningNetwork(self.checkpoint.model, self.checkpoint.alignment)

    @property
    def vision_geometry(self) -> VisionGeometry:
        return self.cost_model.vision

    @property
    def text_geometry(self) -> TextGeometry:
        return self.cost_model.text

    @torch.inference_mode()
    def predict(
        self,
        queries: Sequence[ReasoningQuery],
        *,
        prune_temperature: float | Sequence[float],
        keep_mode: str = MAX_KEEP,
    ) -> list[ReasoningAnswer]:
        """Answer a batch; prune_temperature is one for all or one a query, 0 runs dense.

        Raises ConfigError for a value the model cannot take, before anything has run.
        """
        if not queries:
            return []
        for query in queries:
            self.check_image(query.left)
            self.check_image(query.right)
        token_ids, mask = self.codec.texts([query.statement for query in queries], "statement")
        pruning = self.batch_pruning(prune_temperature, len(queries), keep_mode)
        pixels = [query.left for query in queries] + [query.right for query in queries]
        owners = torch.arange(len(queries), device=self.device).repeat(2)
        images = self.encode_image(
            torch.from_numpy(np.stack(pixels)), pruning.of(VISION, owners) if pruning else None
        )
        statements = self.network.encode_statement(
            self.codec.reading(token_ids).to(self.device),
            mask.to(self.device),
            images,
            pruning.of(TEXT) if pruning else None,
        )
        probabilities = self.network.classify(statements).softmax(-1).tolist()
        traces = self._traces(images, statements, (mask.sum(1) - 1).tolist())
        spent = self.cost_model.batch(traces, [()] * len(queries), [()] * len(queries), pruning)
        return [_answer(*row) for row in zip(probabilities, spent, strict=True)]

    def _traces(self, images: Encoded, statements: Encoded, dense: list[int]) -> list[Traces]:
        """A request's traces; images: all left ones, then all right ones; dense: words of each statement."""
        seen = branch_traces(images, [self.cost_model.vision.patches] * 2 * len(dense))
        said = branch_traces(statements, dense)
        rows = zip(seen[: len(dense)], seen[len(dense) :], said, strict=True)
        return [{VISION: (left, right), TEXT: (statement,)} for left, right, statement in rows]


def _answer(probabilities: list[float], spent: Spent) -> ReasoningAnswer:
    started = time.perf_counter()
    answer = LABELS[probabilities.index(max(probabilities))]
    probability = probabilities[LABELS.index(True)]
    return ReasoningAnswer(answer, probability, spent, time.perf_counter() - started)
