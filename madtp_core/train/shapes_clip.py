"""The demo's CLIP: both towers together, the vision tower starting from BLIP's shared one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.alignment import alignment_loss
from madtp_core.images import ImageGeometry
from madtp_core.pruning import TEXT, VISION
from madtp_core.tasks.blip_network import reader_of
from madtp_core.tasks.clip_cost import ClipCostModel
from madtp_core.tasks.clip_network import ClipNetwork
from madtp_core.tasks.cost import branch_traces
from madtp_core.train.contents import Contents
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.hooks import Hooks
from madtp_core.train.importance import WatchedMadtp, importance_loss, spread_loss
from madtp_core.train.patches import NUM_PATCH_OUTPUTS, by_patch, patches_loss
from madtp_core.train.shapes_data import pixel_values
from madtp_core.train.shapes_describe import CaptionBatch, DescribeLosses, contrast_loss
from madtp_core.train.steered import Steered


class ClipShapes(Steered[CaptionBatch]):
    """Trains both towers, pruned from the start, and the alignment tokens with their maps.

    The losses are those of `DescribeShapes` but for captions, which CLIP cannot write. A request is one image
    and one caption.
    """

    def __init__(
        self,
        network: ClipNetwork,
        data: Dataset[CaptionBatch],
        geometry: ImageGeometry,
        hooks: Hooks,
        costs: CostsInTurn,
        weights: DescribeLosses,
    ) -> None:
        self.watched = WatchedMadtp()
        super().__init__(data, geometry, costs, self.watched, hooks)
        self.network, self.weights = network, weights
        self.cost_model = ClipCostModel(network, geometry.height, geometry.width)
        width = self.cost_model.vision.width
        self.patch_head, self.contents = nn.Linear(width, NUM_PATCH_OUTPUTS), Contents(width)
        self.modules: nn.Module = nn.ModuleDict(
            {"network": network, "patch_head": self.patch_head, "contents": self.contents}
        )

    def loss(self, batch: CaptionBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        network, images, reader = self.network, batch.scenes.images, batch.reader
        pruning = self.begin(step, len(reader))
        viewers = reader_of(reader, len(images))
        image = network.encode_image(
            pixel_values(images, self.geometry), pruning.of(VISION, viewers), collect_aligned=True
        )
        text = network.encode_text(batch.text_ids, pruning.of(TEXT), collect_aligned=True)
        assert image.aligned is not None and text.aligned is not None
        norm = network.clip.vision_model.post_layernorm
        features, stays = by_patch(image.tokens, self.cost_model.vision.patches)
        is_object = batch.scenes.patch_labels > 0
        seen = self.watched.seen()
        parts = {
            "patches": patches_loss(self.patch_head(norm(features)).float(), batch.scenes, stays),
            "contents": self.contents(norm(image.tokens.protected()), batch.contents),
            "contrast": contrast_loss(network.image_embeddings(image), network.text_embeddings(text), reader),
            "alignment": alignment_loss(image.aligned[reader], text.aligned),
            "importance": importance_loss(seen, is_object, self.weights.margin),
            "spread": spread_loss(seen),
        }
        loss = torch.stack([getattr(self.weights, name) * part for name, part in parts.items()]).sum()
        figures = {f"{name}_loss": part.item() for name, part in parts.items()}
        traces = branch_traces(image, [self.cost_model.vision.patches] * len(images))
        said = branch_traces(text, (batch.text_mask.sum(1) - 1).tolist())
        pairs = [
            {VISION: (one,), TEXT: (said[row],)} for one, row in zip(traces, viewers.tolist(), strict=True)
        ]
        return loss, figures | self.steering(pairs, (), pruning)


@torch.no_grad()
def start_from_blip(clip: Any, blip: Any) -> None:
    """Copy a BLIP vision tower into a CLIP's of the same geometry.

    clip, blip: their Hugging Face vision models. What CLIP has no place for (the bias of the patch embedding)
    goes into its positions; what BLIP lacks (the norm before the blocks) stays fresh.
    """
    theirs, ours = blip.embeddings, clip.embeddings
    ours.class_embedding.copy_(theirs.class_embedding.flatten())
    ours.patch_embedding.weight.copy_(theirs.patch_embedding.weight)
    positions = theirs.position_embedding[0]
    ours.position_embedding.weight.copy_(positions)
    ours.position_embedding.weight[1:] += theirs.patch_embedding.bias
    for target, source in zip(clip.encoder.layers, blip.encoder.layers, strict=True):
        attention, width = source.self_attn, source.self_attn.projection.out_features
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = slice(index * width, (index + 1) * width)
            projection = getattr(target.self_attn, name)
            projection.weight.copy_(attention.qkv.weight[part])
            projection.bias.copy_(attention.qkv.bias[part])
        target.self_attn.out_proj.load_state_dict(attention.projection.state_dict())
        for name in ("layer_norm1", "layer_norm2", "mlp"):
            getattr(target, name).load_state_dict(getattr(source, name).state_dict())
    clip.post_layernorm.load_state_dict(blip.post_layernorm.state_dict())
