"""What a question costs: its image, its words that read the image, and the answer decoder's passes."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_core.backbones.blip import text_blocks, text_geometry, vision_blocks, vision_geometry
from madtp_core.flops import Scoring, decoder_macs, text_encoder_macs, vision_macs
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import CostModel, Passes, Traces
from madtp_core.tasks.vqa_network import VqaNetwork


class VqaCostModel(CostModel):
    """Counts what a BLIP-VQA of one geometry spends; the answer decoder is never pruned."""

    def __init__(self, network: VqaNetwork, image_height: int, image_width: int) -> None:
        super().__init__(network.alignment)
        config = network.blip.config
        seeing = vision_blocks(network.blip.vision_model)
        self.vision = vision_geometry(config.vision_config, image_height, image_width, seeing)
        self.text = text_geometry(config.text_config, text_blocks(network.blip.text_encoder))
        answering = text_blocks(network.blip.text_decoder.bert)
        self.decoder = text_geometry(config.text_config, answering)

    def macs(self, traces: Traces, passes: Passes, scoring: Mapping[str, Scoring | None]) -> int:
        (image,), (question,) = traces[VISION], traces[TEXT]
        image_tokens = image.leaving()[-1] + 1
        return (
            vision_macs(self.vision, image, scoring[VISION])
            + text_encoder_macs(self.text, question, image_tokens, scoring[TEXT])
            + decoder_macs(self.decoder, passes, question.leaving()[-1] + 1)
        )
