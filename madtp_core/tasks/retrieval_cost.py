"""What a retrieval costs: its images, its texts alone, their comparison, and the pairs that are matched."""

from __future__ import annotations

from collections.abc import Mapping

from madtp_core.backbones.blip import text_blocks, text_geometry, vision_blocks, vision_geometry
from madtp_core.flops import Scoring, linear_macs, memory_macs, text_encoder_macs, vision_macs
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.cost import MATCH, CostModel, Passes, Traces
from madtp_core.tasks.retrieval_network import RetrievalNetwork


class RetrievalCostModel(CostModel):
    """Counts what a BLIP retrieval of one geometry spends.

    The match traces of a request are those of its first candidates: text p reads the one image, or the one
    text reads image p. An image is projected once, however many texts read it.
    """

    def __init__(self, network: RetrievalNetwork, image_height: int, image_width: int) -> None:
        super().__init__(network.alignment)
        config = network.blip.config
        seeing = vision_blocks(network.blip.vision_model)
        self.vision = vision_geometry(config.vision_config, image_height, image_width, seeing)
        self.text = text_geometry(config.text_config, text_blocks(network.blip.text_encoder))
        self.embedding_width: int = config.image_text_hidden_size

    def macs(self, traces: Traces, passes: Passes, scoring: Mapping[str, Scoring | None]) -> int:
        images, texts, matches = (traces.get(group, ()) for group in (VISION, TEXT, MATCH))
        embedding = self.embedding_width
        total = sum(vision_macs(self.vision, image, scoring[VISION]) for image in images)
        total += sum(text_encoder_macs(self.text, text, None, scoring[TEXT]) for text in texts)
        total += linear_macs(self.vision.width, embedding, rows=len(images))
        total += linear_macs(self.text.width, embedding, rows=len(texts))
        total += linear_macs(embedding, len(images), rows=len(texts))  # every text against every image
        read = [image.leaving()[-1] + 1 for image in images[: len(matches)]]
        total += sum(memory_macs(self.text, tokens) for tokens in read)
        reads = read * len(matches) if len(images) == 1 else read
        for match, tokens in zip(matches, reads, strict=True):
            apart = text_encoder_macs(self.text, match, tokens, scoring[TEXT])
            total += apart - memory_macs(self.text, tokens)
        return total + linear_macs(self.text.width, 2, rows=len(matches))
