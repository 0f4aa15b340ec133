"""The demo's shared vision tower: one pre-training on synthetic scenes, pruned from the start.

Patch labels, scene contents, captions and contrast with captions, at several costs in turn: what it learns to
prune, every task of the demo reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.alignment import alignment_loss
from madtp_core.backbones.blip import vision_geometry
from madtp_core.data.shapes import captions
from madtp_core.encoder import Encoded
from madtp_core.flops import AlignmentGeometry, vision_macs
from madtp_core.images import ImageGeometry
from madtp_core.pruning import VISION
from madtp_core.tasks.caption_network import CaptionNetwork
from madtp_core.tasks.cost import branch_traces
from madtp_core.tasks.retrieval_network import RetrievalNetwork
from madtp_core.tasks.text import TextCodec
from madtp_core.train.contents import Contents, contents_tensor
from madtp_core.train.costs import CostsInTurn
from madtp_core.train.importance import WatchedMadtp, importance_loss, spread_loss
from madtp_core.train.patches import by_patch, patches_loss
from madtp_core.train.shapes_data import SceneBatch, ShapesBatches, pixel_values, scene_batch
from madtp_core.train.steered import Steered

CONTRAST_TEMPERATURE = 0.07  # what cosines are divided by, as the original BLIP starts with


@dataclass(frozen=True, eq=False)
class CaptionBatch:
    """B scenes with all their captions.

    text_ids, text_mask [Q, L]: captions as they are encoded alone; reader [Q] caption -> image; caption_ids
    [Q, A]: start token, caption, end token, then -100; contents [B, 1 + counts] as `contents_of`.
    """

    scenes: SceneBatch
    text_ids: Tensor
    text_mask: Tensor
    reader: Tensor
    caption_ids: Tensor
    contents: Tensor


class ShapesCaptionBatches(Dataset[CaptionBatch]):
    """Step -> the scenes of that step with their captions."""

    def __init__(self, batches: ShapesBatches, codec: TextCodec) -> None:
        self.batches, self.codec = batches, codec

    def __getitem__(self, step: int) -> CaptionBatch:
        examples = self.batches.examples(step)
        written = [(row, text) for row, example in enumerate(examples) for text in captions(example.scene)]
        texts = [text for _, text in written]
        ids, mask = self.codec.texts(texts, "caption")
        return CaptionBatch(
            scene_batch(examples),
            ids,
            mask,
            torch.tensor([row for row, _ in written]),
            self.codec.training_answers(texts, self.codec.tokenizer.bos_token_id),
            contents_tensor([example.scene for example in examples]),
        )


@dataclass(frozen=True)
class DescribeLosses:
    """Weights of the losses.

    patches: what stands in every patch that is kept. contents: how many of what, read off the class token.
    captions: a decoder writes all captions. contrast: image and captions find each other among the batch's.
    alignment: MAG's. importance: objects' patches come out `margin` times as important as background. spread:
    the alignment tokens look everywhere, so that small prune temperatures prune little.
    """

    patches: float = 1.0
    contents: float = 0.5
    captions: float = 1.0
    contrast: float = 0.3
    alignment: float = 0.1
    importance: float = 0.1
    spread: float = 0.1
    margin: float = 2.0


class DescribeShapes(Steered[CaptionBatch]):
    """Trains vision tower, alignment tokens, a caption decoder and a text encoder together.

    caption and retrieval share one vision tower and one alignment. costs: of the vision tower, in turn.
    patch_head: the one that `ShapesVision` trained; a fresh one would disturb the tower.
    """

    def __init__(
        self,
        caption: CaptionNetwork,
        retrieval: RetrievalNetwork,
        patch_head: nn.Linear,
        data: Dataset[CaptionBatch],
        geometry: ImageGeometry,
        costs: CostsInTurn,
        weights: DescribeLosses,
    ) -> None:
        self.watched = WatchedMadtp()
        super().__init__(data, geometry, costs, self.watched)
        self.caption, self.retrieval, self.weights = caption, retrieval, weights
        self.vision_geometry = vision_geometry(
            caption.blip.config.vision_config, geometry.height, geometry.width
        )
        assert caption.alignment is not None and caption.alignment is retrieval.alignment
        assert caption.blip.vision_model is retrieval.blip.vision_model
        self.scoring = AlignmentGeometry(caption.alignment.num_tokens, caption.alignment.dim)
        self.patch_head, self.contents = patch_head, Contents(self.vision_geometry.width)
        blip = retrieval.blip
        self.modules: nn.Module = nn.ModuleDict(
            {
                "caption": caption,
                "text_encoder": blip.text_encoder,
                "vision_proj": blip.vision_proj,
                "text_proj": blip.text_proj,
                "patch_head": self.patch_head,
                "contents": self.contents,
            }
        )

    def loss(self, batch: CaptionBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        pruning = self.begin(step, len(batch.scenes.images)).of(VISION)
        image = self.caption.encode_image(
            pixel_values(batch.scenes.images, self.geometry), pruning, collect_aligned=True
        )
        text = self.retrieval.encode_text(batch.text_ids, batch.text_mask, collect_aligned=True)
        assert image.aligned is not None and text.aligned is not None
        features, stays = by_patch(image.tokens, self.vision_geometry.patches)
        is_object = batch.scenes.patch_labels > 0
        seen = self.watched.seen()
        parts = {
            "patches": patches_loss(self.patch_head(features).float(), batch.scenes, stays),
            "contents": self.contents(image.tokens.protected(), batch.contents),
            "captions": self.caption.caption_loss(image, batch.caption_ids, 1, batch.reader),
            "contrast": contrast_loss(
                self.retrieval.image_embeddings(image), self.retrieval.text_embeddings(text), batch.reader
            ),
            "alignment": alignment_loss(image.aligned[batch.reader], text.aligned),
            "importance": importance_loss(seen, is_object, self.weights.margin),
            "spread": spread_loss(seen),
        }
        loss = torch.stack([getattr(self.weights, name) * part for name, part in parts.items()]).sum()
        figures = {f"{name}_loss": part.item() for name, part in parts.items()}
        kept = (stays & is_object).sum() / is_object.sum()
        figures[f"objects_kept/{self.costs.at(step)}"] = kept.item()
        return loss, figures | self.costs.figures(step, self._flops_ratio(image))

    def _flops_ratio(self, image: Encoded) -> float:
        """Vision multiply-adds of the batch, spent over dense."""
        geometry = self.vision_geometry
        traces = branch_traces(image, [geometry.patches] * image.tokens.batch_size)
        spent = sum(vision_macs(geometry, trace, self.scoring) for trace in traces)
        return spent / (len(traces) * vision_macs(geometry, traces[0].unpruned()))


def contrast_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    reader: Tensor,
    temperature: float = CONTRAST_TEMPERATURE,
) -> Tensor:
    """Images find their texts and texts their images: rows [B, E] and [Q, E], reader [Q] text -> image."""
    logits = image_embeddings.float() @ text_embeddings.float().T / CONTRAST_TEMPERATURE  # [B, Q]
    is_own = reader == torch.arange(len(logits), device=reader.device).unsqueeze(1)
    wanted = is_own / is_own.sum(1, keepdim=True)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, reader)) / 2
