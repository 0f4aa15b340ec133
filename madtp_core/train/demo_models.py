"""The demo's models before and between their stages: Hugging Face models on one vision tower."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from madtp_core.backbones.blip import (
    blip_config,
    build_blip_caption,
    build_blip_retrieval,
    build_blip_vision,
    build_blip_vqa,
)
from madtp_core.backbones.clip import build_clip, clip_config
from madtp_core.backbones.nlvr import build_blip_reasoning
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
    """A vision tower, its alignment tokens, and a model a task on it, made at first use.

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
        self.caption = BlipCaption(self._on_tower(build_blip_caption(self.config), "caption"))
        self.retrieval = BlipRetrieval(self._on_tower(build_blip_retrieval(self.config), "retrieval"))

    @cached_property
    def vqa(self) -> BlipVqa:
        """A fresh question encoder and answer decoder on the tower."""
        return BlipVqa(self._on_tower(build_blip_vqa(self.config), "vqa"))

    @cached_property
    def reasoning(self) -> BlipReasoning:
        """A twin text encoder on the tower: both twins start as what the question encoder reads with."""
        blip = build_blip_reasoning(self.config)
        start_from_reader(blip.text_encoder, self.vqa.checkpoint.model.text_encoder)
        return BlipReasoning(self._on_tower(blip, "reasoning"))

    @cached_property
    def matching(self) -> BlipRetrieval:
        """The retrieval model, its text encoder now starting as the question encoder, which can read."""
        text: Any = self.retrieval.checkpoint.model.text_encoder
        text.load_state_dict(self.vqa.checkpoint.model.text_encoder.state_dict())
        return self.retrieval

    @cached_property
    def clip(self) -> ClipRetrieval:
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

    def _on_tower(self, blip: Any, task: str) -> Checkpoint:
        blip.vision_model = self.vision
        return self._checkpoint(blip, task, self.alignment)

    def _checkpoint(self, model: Any, task: str, alignment: Any) -> Checkpoint:
        config = MadtpConfig(
            task=task,
            encoder_first_token="cls" if task == "clip" else "enc",
            max_text_tokens=self.shape["max_text_tokens"],
            alignment=self.alignment_config,
            pruning=PruningConfig(branches=(VISION,) if task == "caption" else BRANCHES),
        )
        return Checkpoint(model, self.tokenizer, self.geometry, config, alignment)


@torch.no_grad()
def start_from_reader(twins: Any, reader: Any) -> None:
    """Copy a text encoder that reads one image into one that reads two, as the original BLIP does for NLVR2.

    twins, reader: Hugging Face text encoders. A merge layer starts as the mean of both twins.
    """
    weights = dict(reader.state_dict())
    for name in [name for name in weights if ".crossattention." in name]:
        value = weights.pop(name)
        for twin in "01":
            own = re.sub(r"(\.crossattention\.(?:self|output\.dense))\.", rf"\g<1>{twin}.", name)
            weights[own] = value
    for name, value in twins.state_dict().items():
        if name.endswith("merge_layer.weight"):
            half = torch.eye(len(value), device=value.device) / 2
            weights[name] = torch.cat([half, half], 1)
        elif name.endswith("merge_layer.bias"):
            weights[name] = torch.zeros_like(value)
    twins.load_state_dict(weights)
