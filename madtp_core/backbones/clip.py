"""CLIP as Hugging Face builds it: configurations, embeddings and block adapters.

The Hugging Face modules own the weights and their names; the loop and the masks are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from madtp_core.backbones.blip import inner_widths
from madtp_core.blocks import ClipBlock, Measured
from madtp_core.errors import ConfigError
from madtp_core.flops import TextGeometry
from madtp_core.tokens import Tokens

_OLD_END_ID = 2  # of configurations older than transformers 4.31, whatever the tokenizer's end token was


def clip_config(
    *,
    vision_width: int = 1024,
    vision_heads: int = 16,
    vision_blocks: int = 24,
    image_size: int = 336,
    patch_size: int = 14,
    text_width: int = 768,
    text_heads: int = 12,
    text_blocks: int = 12,
    embedding_width: int = 768,
    vocabulary: int = 49408,
    max_text_tokens: int = 77,
    bos_token_id: int = 49406,
    eos_token_id: int = 49407,
) -> CLIPConfig:
    """A CLIP of any geometry; the defaults are ViT-L/14 at 336 pixels. embedding_width is both towers'."""
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": 4 * vision_width,
        "num_hidden_layers": vision_blocks,
        "num_attention_heads": vision_heads,
        "image_size": image_size,
        "patch_size": patch_size,
        "projection_dim": embedding_width,
    }
    text = {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_blocks,
        "num_attention_heads": text_heads,
        "projection_dim": embedding_width,
        "vocab_size": vocabulary,
        "max_position_embeddings": max_text_tokens,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": eos_token_id,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=embedding_width)


def build_clip(config: CLIPConfig) -> CLIPModel:
    """A CLIP with fresh weights."""
    return CLIPModel(config)


def vision_config(config: CLIPConfig) -> CLIPVisionConfig:
    """The vision part of a configuration."""
    part = config.vision_config
    assert isinstance(part, CLIPVisionConfig)
    return part


def text_config(config: CLIPConfig) -> CLIPTextConfig:
    """The text part of a configuration."""
    part = config.text_config
    assert isinstance(part, CLIPTextConfig)
    return part


def text_geometry(config: Any, blocks: Sequence[Measured] = ()) -> TextGeometry:
    """Cost geometry of a CLIP text configuration; blocks: the tower's, which may have been pruned."""
    return TextGeometry(
        width=config.hidden_size,
        mlp_width=config.intermediate_size,
        blocks=config.num_hidden_layers,
        vocabulary=config.vocab_size,
        inner=inner_widths(config, blocks),
    )


def clip_blocks(tower: CLIPVisionModel | CLIPTextModel) -> list[ClipBlock]:
    """Adapters of a tower's blocks, which are of one kind in both."""
    return [ClipBlock(layer) for layer in tower.encoder.layers]


def embed_image(model: CLIPVisionModel, pixel_values: Tensor) -> Tokens:
    """Normed patch and class embeddings: pixel_values [B, 3, height, width] -> tokens [B, 1 + patches, C].

    Position embeddings are interpolated when the image is not of the size the model was trained on.
    """
    trained = model.embeddings.image_size
    interpolate = tuple(pixel_values.shape[-2:]) != (trained, trained)
    hidden = model.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
    return Tokens.from_hidden(model.pre_layrnorm(hidden))


def embed_text(model: CLIPTextModel, token_ids: Tensor) -> Tokens:
    """Word and position embeddings: token_ids [B, L] -> causal tokens [B, N, C] with EOT first in its row.

    EOT is the token that the text is read from, hence the protected one; what follows it is left out, since
    nothing that counts sees it. Raises ConfigError for a text without EOT or with nothing before it.
    Differs from the reference: SOT, which sees only itself, is a token like the others.
    """
    end_id = model.config.eos_token_id
    assert isinstance(end_id, int)
    end = end_positions(token_ids, end_id)
    if int(end.min()) < 1:
        raise ConfigError("a CLIP text needs an end token and a token before it")
    columns = torch.arange(int(end.max()) + 1, device=end.device)
    hidden = model.embeddings(input_ids=token_ids[:, : len(columns)])  # [B, N, C]
    position = torch.cat([end.unsqueeze(1), columns[:-1].expand(len(end), -1)], 1)  # [B, N]
    moved = hidden.gather(1, position.unsqueeze(-1).expand_as(hidden))
    tokens = Tokens.from_hidden(moved, columns <= end.unsqueeze(1))
    return replace(tokens, position=position, is_causal=True)


def end_positions(token_ids: Tensor, end_id: int) -> Tensor:
    """Where each text's EOT stands, by Hugging Face's rule: token_ids [B, L] -> [B] int64, 0 without one.

    The first end token; in old configurations, whose end_id is 2, the highest id, as in OpenAI's release.
    """
    if end_id == _OLD_END_ID:
        return token_ids.argmax(1)
    return (token_ids == end_id).int().argmax(1)
