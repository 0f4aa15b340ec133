"""What a statement costs: its two images, its words that read both, and the classifier."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_core.backbones.blip import text_config, text_geometry, vision_blocks, vision_geometry
from madtp_core.backbones.nlvr import LABELS, merge_start, twin_text_blocks
from madtp_core.flops import (
    BranchTrace,
    Scoring,
    linear_macs,
    memory_macs,
    twin_text_encoder_macs,
    vision_macs,
)
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import CostModel, Passes, Traces
from madtp_core.tasks.reasoning_network import ReasoningNetwork


class ReasoningCostModel(CostModel):
    """Counts what a BLIP for NLVR2 of one geometry spends; it has no decoder, so no passes."""

    def __init__(self, network: ReasoningNetwork, image_height: int, image_width: int) -> None:
        super().__init__(network.alignment)
        config = network.blip.config
        seeing = vision_blocks(network.blip.vision_model)
        self.vision = vision_geometry(config.vision_config, image_height, image_width, seeing)
        self.text = text_geometry(config.text_config, twin_text_blocks(network.blip.text_encoder))
        self.merge_start = merge_start(text_config(config))

    def macs(self, traces: Traces, passes: Passes, scoring: Mapping[str, Scoring | None]) -> int:
        (left, right), (statement,) = traces[VISION], traces[TEXT]
        image_tokens = left.leaving()[-1] + 1, right.leaving()[-1] + 1
        return (
            vision_macs(self.vision, left, scoring[VISION])
            + vision_macs(self.vision, right, scoring[VISION])
            + twin_text_encoder_macs(self.text, statement, image_tokens, self.merge_start, scoring[TEXT])
            + linear_macs(self.text.width, self.text.width, len(LABELS))
        )

    def branch_macs(self, branch: str, trace: BranchTrace, scoring: Scoring | None) -> int:
        if branch == VISION:
            return super().branch_macs(branch, trace, scoring)
        image_tokens = self.vision.patches + 1
        both = image_tokens, image_tokens
        whole = twin_text_encoder_macs(self.text, trace, both, self.merge_start, scoring)
        return whole - sum(memory_macs(self.text, image_tokens, side) for side in (0, 1))
