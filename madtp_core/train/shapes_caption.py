"""The demo's captioning: the decoder's finish on the shared vision tower."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.flops import greedy_passes
from madtp_core.images import ImageGeometry
from madtp_core.pruning import VISION
from madtp_core.tasks.blip_network import reader_of
from madtp_core.tasks.caption_cost import CaptionCostModel
from madtp_core.tasks.caption_network import CaptionNetwork
from madtp_core.tasks.cost import branch_traces
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.shapes_describe import CaptionBatch
from madtp_core.train.shared_tower import OnSharedTower

_SERVED_PASSES = greedy_passes(10)  # a caption of usual length


class WriteShapesCaptions(OnSharedTower[CaptionNetwork, CaptionBatch]):
    """Teaches the decoder, which is never pruned, to write all captions; a request is one caption."""

    def __init__(
        self,
        network: CaptionNetwork,
        data: Dataset[CaptionBatch],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
    ) -> None:
        super().__init__(network, data, geometry, hooks, costs)
        self.cost_model = CaptionCostModel(network, geometry.height, geometry.width)
        self.modules = nn.ModuleDict({"text_decoder": network.blip.text_decoder})

    def loss(self, batch: CaptionBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        images = batch.scenes.images
        pruning = self.begin(step, len(batch.reader))
        image = self.see(images, pruning, reader_of(batch.reader, len(images)))
        loss = self.network.caption_loss(image, batch.caption_ids, 1, batch.reader)
        traces = branch_traces(image, [self.cost_model.vision.patches] * len(images))
        figures = self.steering([{VISION: (trace,)} for trace in traces], _SERVED_PASSES, pruning)
        return loss, {f"caption_loss/{self.costs.at(step)}": loss.item()} | figures
