"""Compression of reasoning over two images (NLVR2): is the statement true."""

from __future__ import annotations

from madtp_core.encoder import BatchPruning
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import branch_traces
from madtp_core.tasks.reasoning_cost import ReasoningCostModel
from madtp_core.tasks.reasoning_network import ReasoningNetwork
from madtp_core.train.batches import Statements
from madtp_core.train.compression import ALIGNMENT, Compression, Losses, request, text_tokens


class CompressReasoning(Compression[Statements]):
    """Cross-entropy of true and false + alpha * alignment loss; both images and the statement are pruned."""

    network: ReasoningNetwork
    cost_model: ReasoningCostModel

    def requests_of(self, batch: Statements) -> int:
        return len(batch.labels)

    def weight(self, batch: Statements) -> float:
        """What the loss is a mean over: statements."""
        return len(batch.labels)

    def losses(self, batch: Statements, pruning: BatchPruning | None, step: int) -> Losses:
        out = self.network(
            batch.pixel_values, batch.token_ids, batch.mask, batch.labels, pruning, self.has_alignment
        )
        parts = {"answer": out.answer_loss}
        if out.alignment_loss is not None:
            parts[ALIGNMENT] = out.alignment_loss
        count = len(batch.labels)
        images = branch_traces(out.vision, [self.cost_model.vision.patches] * (2 * count))
        texts = branch_traces(out.text, text_tokens(batch.mask))
        return Losses(
            parts,
            [request({VISION: [images[i], images[count + i]], TEXT: [texts[i]]}) for i in range(count)],
        )
