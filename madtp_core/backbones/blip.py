"""BLIP as Hugging Face builds it: configurations, embeddings and block adapters.

The Hugging Face modules own the weights and their names; the loop, the masks and the decoding are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipTextConfig,
    BlipVisionConfig,
)
from transformers.models.blip.modeling_blip import BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from madtp_core.blocks import BlipTextBlock, BlipVisionBlock, Measured
from madtp_core.flops import BlockWidths, TextGeometry, VisionGeometry
from madtp_core.tokens import Tokens


def blip_config(
    *,
    width: int = 768,
    heads: int = 12,
    text_width: int | None = None,
    text_heads: int | None = None,
    vision_blocks: int = 12,
    text_blocks: int = 12,
    image_size: int = 384,
    patch_size: int = 16,
    vocabulary: int = 30524,
    max_text_tokens: int = 512,
    bos_token_id: int = 30522,
    sep_token_id: int = 102,
    pad_token_id: int = 0,
    embedding_width: int = 256,
    merge_start: int | None = None,
    initializer_range: float = 0.02,
) -> BlipConfig:
    """A BLIP; the defaults are BLIP-base. Text has the width and heads of vision unless given its own.

    embedding_width: of what an image and a text are compared by in retrieval. merge_start: the first text
    block that merges what it reads of two images, half of the blocks unless given (`nlvr.merge_start`).

    Differs from Hugging Face's defaults where those differ from BLIP: vision LayerNorm eps 1e-6, twelve text
    heads, and a vision initialiser that is not practically zero.
    """
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": vision_blocks,
        "num_attention_heads": heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "layer_norm_eps": 1e-6,
        "initializer_range": initializer_range,
    }
    text = {
        "hidden_size": text_width or width,
        "encoder_hidden_size": width,
        "intermediate_size": 4 * (text_width or width),
        "num_hidden_layers": text_blocks,
        "num_attention_heads": text_heads or heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": max_text_tokens,
        "bos_token_id": bos_token_id,
        "eos_token_id": sep_token_id,
        "sep_token_id": sep_token_id,
        "pad_token_id": pad_token_id,
        "initializer_range": initializer_range,
    }
    if merge_start is not None:
        text["merge_start"] = merge_start
    return BlipConfig(
        vision_config=vision,
        text_config=text,
        image_text_hidden_size=embedding_width,
        initializer_range=initializer_range,
    )


def build_blip_vqa(config: BlipConfig) -> BlipForQuestionAnswering:
    """A BLIP-VQA with fresh weights."""
    return BlipForQuestionAnswering(config)


def build_blip_caption(config: BlipConfig) -> BlipForConditionalGeneration:
    """A BLIP that writes captions, with fresh weights."""
    return BlipForConditionalGeneration(config)


def build_blip_retrieval(config: BlipConfig) -> BlipForImageTextRetrieval:
    """A BLIP that compares images and texts and matches them, with fresh weights."""
    return BlipForImageTextRetrieval(config)


def build_blip_vision(config: BlipConfig) -> BlipVisionModel:
    """BLIP's vision tower alone, with fresh weights."""
    return BlipVisionModel(vision_config(config))


def scramble(module: nn.Module, seed: int = 0, std: float = 0.05) -> None:
    """Replace every parameter by noise, norms around one: a fresh model is too close to zero to test."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * std
            is_norm_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(noise + 1.0 if is_norm_scale else noise)


def vision_config(config: BlipConfig) -> BlipVisionConfig:
    """The vision part of a configuration."""
    part = config.vision_config
    assert isinstance(part, BlipVisionConfig)
    return part


def text_config(config: BlipConfig) -> BlipTextConfig:
    """The text part of a configuration."""
    part = config.text_config
    assert isinstance(part, BlipTextConfig)
    return part


def inner_widths(config: Any, blocks: Sequence[Measured]) -> tuple[BlockWidths, ...]:
    """How wide a tower's blocks are inside, () where all are as wide as the configuration says."""
    widths = tuple(block.widths for block in blocks)
    whole = {config.hidden_size}, {config.intermediate_size}
    if all(({own.attention, *own.cross}, {own.mlp}) == whole for own in widths):
        return ()
    return widths


def vision_geometry(
    config: Any, image_height: int, image_width: int, blocks: Sequence[Measured] = ()
) -> VisionGeometry:
    """Cost geometry of a BLIP or CLIP vision configuration at an image size in pixels.

    blocks: the tower's, where parameters may have been pruned.
    """
    return VisionGeometry(
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        blocks=config.num_hidden_layers,
        patch_size=config.patch_size,
        image_height=image_height,
        image_width=image_width,
        inner=inner_widths(config, blocks),
    )


def text_geometry(config: Any, blocks: Sequence[Measured] = ()) -> TextGeometry:
    """Cost geometry of a BLIP text configuration; blocks: the tower's, which may have been pruned."""
    return TextGeometry(
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        blocks=config.num_hidden_layers,
        memory_width=config.encoder_hidden_size,
        vocabulary=config.vocab_size,
        inner=inner_widths(config, blocks),
    )


def vision_blocks(model: BlipVisionModel) -> list[BlipVisionBlock]:
    """Adapters of a vision tower's blocks."""
    return [BlipVisionBlock(layer) for layer in model.encoder.layers]


def text_blocks(model: BlipTextModel) -> list[BlipTextBlock]:
    """Adapters of a text tower's blocks."""
    return [BlipTextBlock(layer) for layer in model.encoder.layer]


def embed_image(model: BlipVisionModel, pixel_values: Tensor) -> Tokens:
    """Patch and class embeddings: pixel_values [B, 3, height, width] -> tokens [B, 1 + patches, C].

    Position embeddings are interpolated when the image is not of the size the model was trained on.
    """
    trained = model.embeddings.image_size
    interpolate = tuple(pixel_values.shape[-2:]) != (trained, trained)
    return Tokens.from_hidden(model.embeddings(pixel_values, interpolate_pos_encoding=interpolate))


def embed_text(model: BlipTextModel, token_ids: Tensor, mask: Tensor | None) -> Tokens:
    """Word and position embeddings: token_ids [B, L], mask [B, L] -> tokens [B, L, C]."""
    return Tokens.from_hidden(model.embeddings(input_ids=token_ids), mask)
