"""The demo's retrieval on the shared vision tower: embeddings that compare, a text encoder that matches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.alignment import alignment_loss
from madtp_core.encoder import Encoded
from madtp_core.images import ImageGeometry
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import reader_of
from madtp_core.tasks.cost import MATCH, Traces, branch_traces
from madtp_core.tasks.retrieval_cost import RetrievalCostModel
from madtp_core.tasks.retrieval_network import RetrievalNetwork
from madtp_core.tasks.text import TextCodec
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.negatives import Pairs, hard_pairs
from madtp_core.train.shapes_describe import CONTRAST_TEMPERATURE, CaptionBatch, contrast_loss
from madtp_core.train.shared_tower import OnSharedTower


@dataclass(frozen=True)
class MatchingLosses:
    """Weights: contrast of embeddings, matching of pairs with hard negatives, MAG's alignment."""

    contrast: float = 1.0
    match: float = 1.0
    alignment: float = 0.1


class MatchShapes(OnSharedTower[RetrievalNetwork, CaptionBatch]):
    """Teaches the text encoder and both projections; texts are pruned, alone and reading an image.

    A request is one image and all texts that it is matched with in the batch: its own and wrong ones, drawn
    the likelier the more alike their embeddings are.
    """

    def __init__(
        self,
        network: RetrievalNetwork,
        codec: TextCodec,
        data: Dataset[CaptionBatch],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
        weights: MatchingLosses,
    ) -> None:
        super().__init__(network, data, geometry, hooks, costs)
        self.codec, self.weights = codec, weights
        self.cost_model = RetrievalCostModel(network, geometry.height, geometry.width)
        blip = network.blip
        self.modules = nn.ModuleDict(
            {
                "text_encoder": blip.text_encoder,
                "vision_proj": blip.vision_proj,
                "text_proj": blip.text_proj,
                "itm_head": blip.itm_head,
            }
        )

    def loss(self, batch: CaptionBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        network, images, reader = self.network, batch.scenes.images, batch.reader
        pruning = self.begin(step, len(reader))
        image = self.see(images, pruning, reader_of(reader, len(images)))
        text = network.encode_text(
            batch.text_ids, batch.text_mask, None, pruning.of(TEXT), collect_aligned=True
        )
        image_embeddings = network.image_embeddings(image)
        text_embeddings = network.text_embeddings(text)
        cosines = image_embeddings[reader].detach().float() @ text_embeddings.detach().float().T
        pairs = hard_pairs(cosines / CONTRAST_TEMPERATURE, reader, torch.Generator().manual_seed(step))
        match_ids = self.codec.reading(batch.text_ids)[pairs.texts]
        match = network.match(
            match_ids,
            batch.text_mask[pairs.texts],
            image,
            reader[pairs.images],
            pruning.of(TEXT, pairs.texts),
        )
        assert image.aligned is not None and text.aligned is not None
        parts = {
            "contrast": contrast_loss(image_embeddings, text_embeddings, reader),
            "match": F.cross_entropy(network.match_logits(match).float(), pairs.labels),
            "alignment": alignment_loss(image.aligned[reader], text.aligned),
        }
        loss = torch.stack([getattr(self.weights, name) * part for name, part in parts.items()]).sum()
        figures = {f"{name}_loss/{self.costs.at(step)}": part.item() for name, part in parts.items()}
        traces = self._traces(batch, pairs, image, text, match)
        return loss, figures | self.steering(traces, (), pruning)

    def _traces(
        self, batch: CaptionBatch, pairs: Pairs, image: Encoded, text: Encoded, match: Encoded
    ) -> list[Traces]:
        """Those of every image, as the request that ranks the texts it is matched with."""
        seen = branch_traces(image, [self.cost_model.vision.patches] * len(batch.scenes.images))
        words = batch.text_mask.sum(1) - 1
        said = branch_traces(text, words.tolist())
        read = branch_traces(match, words[pairs.texts].tolist())
        viewed = batch.reader[pairs.images].tolist()
        rows: list[list[int]] = [[] for _ in seen]
        for pair, of in enumerate(viewed):
            rows[of].append(pair)
        texts = pairs.texts.tolist()
        return [
            {VISION: (one,), TEXT: tuple(said[texts[p]] for p in own), MATCH: tuple(read[p] for p in own)}
            for one, own in zip(seen, rows, strict=True)
        ]
