"""The geometry of a released checkpoint, read off its tensors' shapes, as a Hugging Face configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BlipConfig, CLIPConfig

from madtp_core.errors import CheckpointError, ConfigError

HEAD_WIDTH = 64  # of every model that BLIP's and CLIP's authors released
BLIP_VISION_EPS, BERT_EPS, CLIP_EPS = 1e-6, 1e-12, 1e-5
_BLIP_PATCHES, _BLIP_POSITIONS = "visual_encoder.patch_embed.proj.weight", "visual_encoder.pos_embed"
_CLIP_PATCHES, _CLIP_POSITIONS = "visual.conv1.weight", "visual.positional_embedding"
_MERGE = re.compile(r"text_encoder\.encoder\.layer\.(\d+)\.crossattention\.output\.merge_layer\.weight")


def shape_of(source: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor that every checkpoint of its kind has; raises CheckpointError without it."""
    if key not in source:
        raise CheckpointError(f"the checkpoint has no {key!r}, so it is none of the kind that the task needs")
    shape = tuple(source[key].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{key!r} has the shape {shape}, wanted {dimensions} dimensions")
    return shape


def block_count(source: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks stand under `prefix.N.`."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({found[1] for key in source if (found := pattern.match(key))})


def vocabulary_of(source: Mapping[str, Tensor], task: str) -> int:
    """How many tokens the text tower embeds."""
    clip, blip = "token_embedding.weight", f"{_text_tower(task)}.embeddings.word_embeddings.weight"
    return shape_of(source, clip if task == "clip" else blip, 2)[0]


def with_image_size(source: Mapping[str, Tensor], is_clip: bool, image_size: int) -> dict[str, Tensor]:
    """The source with its position embeddings brought to another image size, in pixels a side.

    Bicubic, the class token's left alone: `interpolate_pos_embed` of the original BLIP. Raises ConfigError
    when whole patches do not fill such an image.
    """
    key = _CLIP_POSITIONS if is_clip else _BLIP_POSITIONS
    patch = shape_of(source, _CLIP_PATCHES if is_clip else _BLIP_PATCHES, 4)[-1]
    if image_size < patch or image_size % patch:
        raise ConfigError(f"the image size must be a multiple of the patch size {patch}, got {image_size}")
    old, new = _grid(shape_of(source, key, 2 if is_clip else 3)), image_size // patch
    table = source[key]
    if old == new:
        return dict(source)
    rows = table.reshape(-1, table.shape[-1]).float()  # [1 + old * old, C]
    squares = rows[1:].T.reshape(1, -1, old, old)  # [1, C, old, old]
    resized = F.interpolate(squares, size=(new, new), mode="bicubic", align_corners=False)
    rows = torch.cat([rows[:1], resized[0].flatten(1).T])  # [1 + new * new, C]
    return {**source, key: rows.reshape(*table.shape[:-2], *rows.shape)}


def blip_config_of(
    source: Mapping[str, Tensor],
    tokenizer: Any,
    *,
    task: str,
    vision_heads: int | None,
    text_heads: int | None,
) -> BlipConfig:
    """The configuration of an original BLIP.

    LayerNorm eps as there: 1e-6 in the vision tower (Hugging Face's default, and the hub's, is 1e-5) and
    1e-12 in BERT. Heads are 64 wide unless given. Raises CheckpointError for shapes that make no BLIP.
    """
    width, _, _, patch = shape_of(source, _BLIP_PATCHES, 4)
    text = _text_tower(task)
    vocabulary, text_width = shape_of(source, f"{text}.embeddings.word_embeddings.weight", 2)
    if task == "vqa" and width != text_width:
        raise CheckpointError(
            f"the image tower is {width} wide, the text {text_width}: Hugging Face's BLIP for questions "
            "expects the image's width where its answer decoder reads the question"
        )
    vision_config = {
        "hidden_size": width,
        "intermediate_size": shape_of(source, "visual_encoder.blocks.0.mlp.fc1.weight", 2)[0],
        "num_hidden_layers": block_count(source, "visual_encoder.blocks"),
        "num_attention_heads": _heads(width, vision_heads, "vision"),
        "image_size": patch * _grid(shape_of(source, _BLIP_POSITIONS, 3)),
        "patch_size": patch,
        "layer_norm_eps": BLIP_VISION_EPS,
        "initializer_range": 0.02,
    }
    layers = block_count(source, f"{text}.encoder.layer")
    text_config = {
        "hidden_size": text_width,
        "encoder_hidden_size": width,
        "intermediate_size": shape_of(source, f"{text}.encoder.layer.0.intermediate.dense.weight", 2)[0],
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(text_width, text_heads, "text"),
        "vocab_size": vocabulary,
        "max_position_embeddings": shape_of(source, f"{text}.embeddings.position_embeddings.weight", 2)[0],
        "layer_norm_eps": BERT_EPS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **_merge_start(source, task, layers),
    }
    config = BlipConfig(vision_config=vision_config, text_config=text_config)
    if task == "retrieval":
        config.image_text_hidden_size = shape_of(source, "vision_proj.weight", 2)[0]
    return config


def clip_config_of(
    source: Mapping[str, Tensor], tokenizer: Any, *, vision_heads: int | None, text_heads: int | None
) -> CLIPConfig:
    """The configuration of an OpenAI CLIP; raises CheckpointError where its image tower is no ViT."""
    if "visual.attnpool.c_proj.weight" in source:
        raise CheckpointError(
            "the checkpoint is a CLIP with a ResNet; only those with a ViT have tokens to prune"
        )
    width, _, _, patch = shape_of(source, _CLIP_PATCHES, 4)
    vocabulary, text_width = shape_of(source, "token_embedding.weight", 2)
    embedding_width = shape_of(source, "text_projection", 2)[1]
    vision_config = {
        "hidden_size": width,
        "intermediate_size": shape_of(source, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": block_count(source, "visual.transformer.resblocks"),
        "num_attention_heads": _heads(width, vision_heads, "vision"),
        "image_size": patch * _grid(shape_of(source, _CLIP_POSITIONS, 2)),
        "patch_size": patch,
        "projection_dim": embedding_width,
        "layer_norm_eps": CLIP_EPS,
    }
    text_config = {
        "hidden_size": text_width,
        "intermediate_size": shape_of(source, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        "num_hidden_layers": block_count(source, "transformer.resblocks"),
        "num_attention_heads": _heads(text_width, text_heads, "text"),
        "vocab_size": vocabulary,
        "max_position_embeddings": shape_of(source, "positional_embedding", 2)[0],
        "projection_dim": embedding_width,
        "layer_norm_eps": CLIP_EPS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=embedding_width)


def has_twins(source: Mapping[str, Tensor]) -> bool:
    """Whether a BLIP's text encoder already reads two images."""
    return any(".crossattention.self0." in key for key in source)


def _text_tower(task: str) -> str:
    return "text_decoder.bert" if task == "caption" else "text_encoder"


def _merge_start(source: Mapping[str, Tensor], task: str, layers: int) -> dict[str, int]:
    """The first text layer with a merge layer, where it is not the usual half."""
    if task != "reasoning" or not has_twins(source):
        return {}
    start = min((int(found[1]) for key in source if (found := _MERGE.fullmatch(key))), default=layers)
    return {} if start == layers // 2 else {"merge_start": start}


def _grid(shape: tuple[int, ...]) -> int:
    """Patches a side of image position embeddings [..., 1 + patches, C]."""
    patches = shape[-2] - 1
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise CheckpointError(f"the image position embeddings have the shape {shape}, wanted 1 + n * n rows")
    return side


def _heads(width: int, given: int | None, branch: str) -> int:
    if given is None and width % HEAD_WIDTH:
        raise ConfigError(f"the {branch} tower is {width} wide, no multiple of 64: give {branch}_heads")
    heads = width // HEAD_WIDTH if given is None else given
    if heads < 1 or width % heads:
        raise ConfigError(f"the {branch} tower is {width} wide, which {branch}_heads={heads} does not divide")
    return heads
