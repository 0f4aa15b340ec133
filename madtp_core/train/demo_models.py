"""The demo's models before and between their stages: Hugging Face models on one vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import nn

from madtp_core.backbones.blip import (
    blip_config,
    build_blip_caption,
    build_blip_retrieval,
    build_blip_vision,
    build_blip_vqa,
)
from madtp_core.backbones.clip import build_clip, clip_config
from madtp_core.backbones.nlvr import BlipForReasoning
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.config import AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.data.shapes import build_tokenizer
from madtp_core.images import ImageGeometry
from madtp_core.pruning import BRANCHES, VISION
from madtp_core.tasks.caption import BlipCaption
from madtp_core.tasks.clip import ClipRetrieval
from madtp_core.tasks.reasoning import BlipReasoning
from madtp_core.tasks.retrieval import BlipRetrieval
from madtp_core.tasks.vqa import BlipVqa
from madtp_core.train.patches import NUM_PATCH_OUTPUTS
from madtp_core.train.shapes_clip import start_from_blip


class DemoModels:
    """A vision tower, alignment tokens, and the texts that were pre-trained with them; makes a task's model.

    recipe: its `image`, `model` and `alignment`. Fresh weights; the global random state decides which.
    patch_head: reads patches off the tower.
    """

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        image, self.shape = recipe["image"], recipe["model"]
        side = image["size"]
        self.tokenizer = build_tokenizer()
        self.geometry = ImageGeometry(side, side, tuple(image["mean"]), tuple(image["std"]))
        self.alignment_config = AlignmentConfig(**recipe["alignment"])
        self.config = blip_config(
            **self.shape,
            image_size=side,
            vocabulary=len(self.tokenizer),
            bos_token_id=self.tokenizer.bos_token_id,
            sep_token_id=self.tokenizer.sep_token_id,
        )
        self.vision = build_blip_vision(self.config)
        self.alignment = build_alignment(self.alignment_config, self.config)
        self.patch_head = nn.Linear(self.shape["width"], NUM_PATCH_OUTPUTS)
        self.caption, self.retrieval = self._caption(), self._retrieval()

    def _caption(self) -> BlipCaption:
        return BlipCaption(self._on_tower(build_blip_caption(self.config), "caption"))

    def _retrieval(self) -> BlipRetrieval:
        return BlipRetrieval(self._on_tower(build_blip_retrieval(self.config), "retrieval"))

    def for_caption(self) -> BlipCaption:
        """The captioner as pre-training left it."""
        return self.caption

    def for_retrieval(self) -> BlipRetrieval:
        """The pre-trained text encoder, which has not yet read an image, with alignment tokens of its own."""
        model = self.retrieval
        return BlipRetrieval(replace(model.checkpoint, alignment=deepcopy(self.alignment)))

    def for_vqa(self) -> BlipVqa:
        """A fresh question encoder and answer decoder."""
        return BlipVqa(self._on_tower(build_blip_vqa(self.config), "vqa", deepcopy(self.alignment)))

    def for_reasoning(self) -> BlipReasoning:
        """A fresh twin text encoder."""
        blip = BlipForReasoning(self.config)
        return BlipReasoning(self._on_tower(blip, "reasoning", deepcopy(self.alignment)))

    def for_clip(self) -> ClipRetrieval:
        """A CLIP whose vision tower starts as a copy of the shared one."""
        shape, side = self.shape, self.geometry.height
        clip = build_clip(
            clip_config(
                vision_width=shape["width"],
                vision_heads=shape["heads"],
                vision_blocks=shape["vision_blocks"],
                image_size=side,
                patch_size=shape["patch_size"],
                text_width=shape["width"],
                text_heads=shape["text_heads"],
                text_blocks=shape["text_blocks"],
                embedding_width=shape["embedding_width"],
                vocabulary=len(self.tokenizer),
                max_text_tokens=shape["max_text_tokens"],
                bos_token_id=self.tokenizer.cls_token_id,
                eos_token_id=self.tokenizer.sep_token_id,
            )
        )
        start_from_blip(clip.vision_model, self.vision)
        alignment = build_alignment(self.alignment_config, clip.config)
        return ClipRetrieval(self._checkpoint(clip, "clip", alignment))

    def _on_tower(self, blip: Any, task: str, alignment: Any = None) -> Checkpoint:
        blip.vision_model = self.vision
        return self._checkpoint(blip, task, alignment or self.alignment)

    def _checkpoint(self, model: Any, task: str, alignment: Any) -> Checkpoint:
        config = MadtpConfig(
            task=task,
            encoder_first_token="cls" if task == "clip" else "enc",
            max_text_tokens=self.shape["max_text_tokens"],
            alignment=self.alignment_config,
            pruning=PruningConfig(branches=(VISION,) if task == "caption" else BRANCHES),
        )
        return Checkpoint(model, self.tokenizer, self.geometry, config, alignment)
