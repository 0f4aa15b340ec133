"""What each question of a batch cost, from both branches' counts and the decoder's passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from madtp_core.attention import GUIDANCE
from madtp_core.backbones.blip import text_geometry, vision_geometry
from madtp_core.decoding import Decoded
from madtp_core.encoder import Encoded
from madtp_core.flops import (
    FLOPS_PER_MULTIPLY_ADD,
    AlignmentGeometry,
    BranchTrace,
    RequestCost,
    attention_padding_macs,
    decoder_macs,
    text_encoder_macs,
    vision_macs,
    widest,
)
from madtp_core.pruning import MAX_KEEP
from madtp_core.tasks.vqa_network import TEXT, VISION, BatchPruning, VqaNetwork

Passes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class VqaTrace:
    """One question's tokens in both branches."""

    vision: BranchTrace
    text: BranchTrace


class VqaCostModel:
    """Counts what a BLIP-VQA of one geometry spends; the answer decoder is never pruned."""

    def __init__(self, network: VqaNetwork, image_height: int, image_width: int) -> None:
        config = network.blip.config
        self.vision = vision_geometry(config.vision_config, image_height, image_width)
        self.text = text_geometry(config.text_config)
        self.alignment: AlignmentGeometry | None = None
        if (alignment := network.alignment) is not None:
            self.alignment = AlignmentGeometry(
                alignment.num_tokens, alignment.dim, VISION in alignment.maps, TEXT in alignment.maps
            )

    def macs(self, trace: VqaTrace, passes: Passes, pruning: BatchPruning | None) -> int:
        """Multiply-adds of one served question, MAG and merging included in the branches that prune."""
        guided = pruning is not None and GUIDANCE in pruning.pruner.needs
        scored = {
            branch: self.alignment if guided and pruning and branch in pruning.branches else None
            for branch in (VISION, TEXT)
        }
        image_tokens = trace.vision.leaving()[-1] + 1
        return (
            vision_macs(self.vision, trace.vision, scored[VISION])
            + text_encoder_macs(self.text, trace.text, image_tokens, scored[TEXT])
            + decoder_macs(self.text, passes, trace.text.leaving()[-1] + 1)
        )

    def dense_macs(self, trace: VqaTrace, passes: Passes) -> int:
        """Multiply-adds of the same question and answer, unpruned."""
        return self.macs(VqaTrace(trace.vision.unpruned(), trace.text.unpruned()), passes, None)

    def batch_costs(
        self, traces: Sequence[VqaTrace], decoded: Sequence[Sequence[Decoded]], pruning: BatchPruning | None
    ) -> list[RequestCost]:
        """The cost of every question of one batch; decoded: the texts generated or ranked for each."""
        batch = VqaTrace(widest([t.vision for t in traces]), widest([t.text for t in traces]))
        costs = []
        for trace, texts in zip(traces, decoded, strict=True):
            own = [step for text in texts for step in text.passes]
            run = [step for text in texts for step in text.padded_passes]
            spent = self.macs(trace, own, pruning)
            if pruning is not None and pruning.keep_mode != MAX_KEEP:
                padded = self.macs(trace, run, pruning) + attention_padding_macs(
                    self.vision, self.text, (trace.vision, trace.text), (batch.vision, batch.text)
                )
            else:
                padded = self.macs(batch, run, pruning)
            needed = VqaTrace(trace.vision.as_needed(), trace.text.as_needed())
            counts = (spent, self.dense_macs(trace, own), self.macs(needed, own, pruning), padded)
            costs.append(RequestCost(*(FLOPS_PER_MULTIPLY_ADD * count for count in counts)))
        return costs

    def difficulty(self, trace: VqaTrace, pruning: BatchPruning | None) -> float | None:
        """Share of its tokens that the question needed in all blocks of pruned branches; None without any."""
        parts = {VISION: trace.vision, TEXT: trace.text}
        pruned = [part for branch, part in parts.items() if pruning and branch in pruning.branches]
        if not pruned:
            return None
        return sum(sum(part.needed) for part in pruned) / sum(
            part.dense * len(part.needed) for part in pruned
        )


def branch_traces(encoded: Encoded, dense: Sequence[int]) -> list[BranchTrace]:
    """One trace a row from a branch's counts; dense: unpruned tokens a row, class token left out."""
    tokens_in, needed, kept = (c.T.tolist() for c in (encoded.tokens_in, encoded.needed, encoded.kept))
    return [
        BranchTrace(dense[row], tuple(tokens_in[row]), tuple(needed[row]), tuple(kept[row]))
        for row in range(len(dense))
    ]
