"""Compression of question answering: a language-model loss over all answers that annotators gave."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp_core.alignment import alignment_loss
from madtp_core.backbones.blip import text_config
from madtp_core.encoder import BatchPruning, Encoded
from madtp_core.flops import greedy_passes
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import reader_of
from madtp_core.tasks.cost import branch_traces
from madtp_core.tasks.vqa_cost import VqaCostModel
from madtp_core.tasks.vqa_network import VqaNetwork
from madtp_core.train.batches import VqaAnswers
from madtp_core.train.compression import ALIGNMENT, Compression, Losses, request, text_tokens


class CompressVqa(Compression[VqaAnswers]):
    """Answer loss + alpha * alignment loss; image and question are pruned, the answer decoder is not."""

    network: VqaNetwork
    cost_model: VqaCostModel

    def requests_of(self, batch: VqaAnswers) -> int:
        return len(batch.reader)

    def weight(self, batch: VqaAnswers) -> float:
        """What the loss is a mean over: questions."""
        return len(batch.reader)

    def losses(self, batch: VqaAnswers, pruning: BatchPruning | None, step: int) -> Losses:
        asker = reader_of(batch.reader, len(batch.pixel_values))
        align = self.has_alignment
        vision = self.network.encode_image(
            batch.pixel_values, pruning.of(VISION, asker) if pruning else None, align
        )
        text = self.network.encode_question(
            batch.question_ids,
            batch.question_mask,
            vision,
            batch.reader,
            pruning.of(TEXT) if pruning else None,
            align,
        )
        parts = {"answer": weighted_answer_loss(self.network, text, batch)}
        if align:
            assert vision.aligned is not None and text.aligned is not None
            parts[ALIGNMENT] = alignment_loss(vision.aligned[batch.reader], text.aligned)
        images = branch_traces(vision, [self.cost_model.vision.patches] * len(batch.pixel_values))
        questions = branch_traces(text, text_tokens(batch.question_mask))
        steps = _answer_steps(batch)
        return Losses(
            parts,
            [
                request({VISION: [images[image]], TEXT: [question]}, greedy_passes(answer))
                for image, question, answer in zip(batch.reader.tolist(), questions, steps, strict=True)
            ],
        )


def weighted_answer_loss(network: VqaNetwork, text: Encoded, batch: VqaAnswers) -> Tensor:
    """Sum over answers of weight * sum over its tokens of cross-entropy, a question in the mean.

    Smoothed as the configuration says. Source: the original BLIP, `BLIP_VQA.forward`.
    """
    decoder = network.decoder()
    memory = decoder.remember(text.tokens).read_by(batch.answer_reader)
    logits, _ = decoder.forward(batch.answer_ids[:, :-1].clamp_min(0), memory)
    of_tokens = F.cross_entropy(
        logits.transpose(1, 2),
        batch.answer_ids[:, 1:],
        ignore_index=-100,
        label_smoothing=text_config(network.blip.config).label_smoothing,
        reduction="none",
    )  # [A, T - 1]
    return (batch.answer_weights * of_tokens.sum(1)).sum() / len(batch.reader)


def _answer_steps(batch: VqaAnswers) -> list[int]:
    """Decoder steps of each question's first answer, its end included: [Q]."""
    steps = (batch.answer_ids[:, 1:] != -100).sum(1)
    questions, counts = torch.unique_consecutive(batch.answer_reader, return_counts=True)
    firsts = counts.cumsum(0) - counts
    found = dict(zip(questions.tolist(), steps[firsts].tolist(), strict=True))
    return [found.get(question, 1) for question in range(len(batch.reader))]
