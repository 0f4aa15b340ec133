"""The demo's visual question answering: questions and answers learned on the shared vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.alignment import alignment_loss
from madtp_core.backbones.blip import text_config
from madtp_core.data.shapes import ANSWERS
from madtp_core.encoder import Encoded
from madtp_core.flops import greedy_passes
from madtp_core.images import ImageGeometry
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import reader_of
from madtp_core.tasks.cost import Traces, branch_traces
from madtp_core.tasks.text import TextCodec
from madtp_core.tasks.vqa_cost import VqaCostModel
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.reading import Pointing, Reckoning
from madtp_core.train.shapes_data import Named, SceneBatch, ShapesBatches, named_by, scene_batch
from madtp_core.train.shared_tower import OnSharedTower

_SERVED_PASSES = greedy_passes(2)  # a one-token answer and its end


@dataclass(frozen=True)
class ReadingLosses:
    """Weights of the auxiliary losses beside the answer loss.

    pointing: cross-attention heads look at what the question names; tally: others spread over all of it.
    reckoning: how many objects a description names, where, and which is more, read off the first token behind
    the last block but one and, at half the weight, behind the last. answer: the answer, read off the first
    token by a linear head: without it the step from "left or right of it" to "yes or no" is hardly found.
    alignment: MAG's.
    """

    pointing: float = 0.3
    tally: float = 0.15
    reckoning: float = 0.5
    answer: float = 0.5
    alignment: float = 0.1


@dataclass(frozen=True, eq=False)
class VqaBatch:
    """B scenes with Q questions.

    question_ids, question_mask [Q, L], reader [Q] question -> image, answer_ids [Q, A] with -100 behind the
    end token, answer_labels [Q]: the answer's index in ANSWERS; named: what its two descriptions name.
    """

    scenes: SceneBatch
    question_ids: Tensor
    question_mask: Tensor
    reader: Tensor
    answer_ids: Tensor
    answer_labels: Tensor
    named: Named


class ShapesVqaBatches(Dataset[VqaBatch]):
    """Step -> the scenes of that step with their questions."""

    def __init__(self, batches: ShapesBatches, codec: TextCodec) -> None:
        self.batches, self.codec = batches, codec

    def __getitem__(self, step: int) -> VqaBatch:
        examples = self.batches.examples(step)
        asked = [(row, question) for row, example in enumerate(examples) for question in example.questions]
        ids, mask = self.codec.questions([question.text for _, question in asked])
        start_id = self.codec.tokenizer.bos_token_id
        return VqaBatch(
            scene_batch(examples),
            ids,
            mask,
            torch.tensor([row for row, _ in asked]),
            self.codec.training_answers([question.answer for _, question in asked], start_id),
            torch.tensor([ANSWERS.index(question.answer) for _, question in asked]),
            named_by([(examples[row], question.about) for row, question in asked], 2),
        )


class ReadShapesVqa(OnSharedTower[VqaNetwork, VqaBatch]):
    """Teaches the question encoder, pruned too, and the answer decoder to read the shared tower.

    A request is one image, one question and a one-token answer.
    """

    def __init__(
        self,
        network: VqaNetwork,
        data: Dataset[VqaBatch],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
        weights: ReadingLosses,
    ) -> None:
        super().__init__(network, data, geometry, hooks, costs)
        self.weights = weights
        self.cost_model = VqaCostModel(network, geometry.height, geometry.width)
        width = text_config(network.blip.config).hidden_size
        layers: Any = network.blip.text_encoder.encoder.layer
        self.pointing = Pointing([layer.crossattention.self for layer in layers], descriptions=2)
        self.early_reckoning, self.late_reckoning = Reckoning(width), Reckoning(width)
        self.answer_head = nn.Linear(width, len(ANSWERS))
        self.modules = nn.ModuleDict(
            {
                "text_encoder": network.blip.text_encoder,
                "text_decoder": network.blip.text_decoder,
                "early_reckoning": self.early_reckoning,
                "late_reckoning": self.late_reckoning,
                "answer_head": self.answer_head,
            }
        )

    def loss(self, batch: VqaBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        pruning, early = self.begin(step, len(batch.reader)), list[Tensor]()
        image = self.see(batch.scenes.images, pruning, reader_of(batch.reader, len(batch.scenes.images)))
        question = self.network.encode_question(
            batch.question_ids,
            batch.question_mask,
            image,
            batch.reader,
            pruning.of(TEXT),
            collect_aligned=True,
            on_block=lambda tokens: early.append(tokens.protected()),
        )
        first_token = question.tokens.protected()
        assert image.aligned is not None and question.aligned is not None
        pointing, tally = self.pointing.losses(batch.named, batch.reader, image.tokens)
        answer_loss = self.network.answer_loss(question, batch.answer_ids)
        parts = {
            "pointing": pointing,
            "tally": tally,
            "reckoning": self.early_reckoning(early[-2], batch.named)
            + self.late_reckoning(first_token, batch.named) / 2,
            "answer": F.cross_entropy(self.answer_head(first_token).float(), batch.answer_labels),
            "alignment": alignment_loss(image.aligned[batch.reader], question.aligned),
        }
        loss = answer_loss + sum(getattr(self.weights, name) * part for name, part in parts.items())
        figures = {f"answer_loss/{self.costs.at(step)}": answer_loss.item()}
        figures |= {f"{name}_loss": part.item() for name, part in parts.items()}
        return loss, figures | self.steering(self._traces(image, question, batch), _SERVED_PASSES, pruning)

    def _traces(self, image: Encoded, question: Encoded, batch: VqaBatch) -> list[Traces]:
        """Those of one question of every image."""
        seen = branch_traces(image, [self.cost_model.vision.patches] * len(batch.scenes.images))
        asked = branch_traces(question, (batch.question_mask.sum(1) - 1).tolist())
        first = reader_of(batch.reader, len(seen)).tolist()
        return [{VISION: (one,), TEXT: (asked[row],)} for one, row in zip(seen, first, strict=True)]
