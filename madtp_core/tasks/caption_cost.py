"""What a caption costs: its image, and the decoder's passes over the kept image tokens."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_core.backbones.blip import text_blocks, text_geometry, vision_blocks, vision_geometry
from madtp_core.flops import Scoring, decoder_macs, vision_macs
from madtp_core.pruning import VISION
from madtp_core.tasks.caption_network import CaptionNetwork
from madtp_core.tasks.cost import CostModel, Passes, Traces


class CaptionCostModel(CostModel):
    """Counts what a BLIP captioner of one geometry spends; an image is projected once for all its beams."""

    def __init__(self, network: CaptionNetwork, image_height: int, image_width: int) -> None:
        super().__init__(network.alignment)
        config = network.blip.config
        seeing = vision_blocks(network.blip.vision_model)
        self.vision = vision_geometry(config.vision_config, image_height, image_width, seeing)
        self.text = text_geometry(config.text_config, text_blocks(network.blip.text_decoder.bert))

    def macs(self, traces: Traces, passes: Passes, scoring: Mapping[str, Scoring | None]) -> int:
        (image,) = traces[VISION]
        image_tokens = image.leaving()[-1] + 1
        decoding = decoder_macs(self.text, passes, image_tokens, self.text.memory_width)
        return vision_macs(self.vision, image, scoring[VISION]) + decoding
