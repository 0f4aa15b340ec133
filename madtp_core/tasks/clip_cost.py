"""What a CLIP retrieval costs: its images, its texts, and the comparison of their embeddings."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_core.backbones.blip import vision_geometry
from madtp_core.backbones.clip import clip_blocks, text_geometry
from madtp_core.flops import BranchTrace, Scoring, clip_text_macs, clip_vision_macs, linear_macs
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tasks.cost import CostModel, Passes, Traces


class ClipCostModel(CostModel):
    """Counts what a CLIP of one geometry spends; every image and every text is encoded once."""

    def __init__(self, network: ClipNetwork, image_height: int, image_width: int) -> None:
        super().__init__(network.alignment)
        clip, config = network.clip, network.clip.config
        self.vision = vision_geometry(
            config.vision_config, image_height, image_width, clip_blocks(clip.vision_model)
        )
        self.text = text_geometry(config.text_config, clip_blocks(clip.text_model))
        self.embedding_width: int = clip.visual_projection.out_features

    def macs(self, traces: Traces, passes: Passes, scoring: Mapping[str, Scoring | None]) -> int:
        total = sum(
            self.branch_macs(branch, trace, scoring[branch])
            for branch in (VISION, TEXT)
            for trace in traces.get(branch, ())
        )
        images, texts = len(traces.get(VISION, ())), len(traces.get(TEXT, ()))
        return total + linear_macs(self.embedding_width, images, rows=texts)  # every text against every image

    def branch_macs(self, branch: str, trace: BranchTrace, scoring: Scoring | None) -> int:
        if branch == VISION:
            return clip_vision_macs(self.vision, trace, self.embedding_width, scoring)
        return clip_text_macs(self.text, trace, self.embedding_width, scoring)
