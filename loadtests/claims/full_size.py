"""A BLIP-VQA of full size with random weights, as a checkpoint directory: what overhead is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from madtp_core.backbones.blip import blip_config, build_blip_vqa, vision_config
from madtp_core.checkpoint import Checkpoint, save_checkpoint
from madtp_core.config import MadtpConfig
from madtp_core.data.shapes.vocabulary import MAX_TEXT_TOKENS, build_tokenizer
from madtp_core.images import ImageGeometry

_CERTAIN = 1e4  # a logit that no other reaches


def write_full_size(directory: Path, sizes: Mapping[str, int]) -> None:
    """Write the checkpoint; sizes: options of `blip_config`, BLIP-base without any.

    It is not pruned, and its answers end at once: random weights would go on to the limit, and most of their
    tokens are no words of the tokenizer.
    """
    tokenizer = build_tokenizer()
    config = blip_config(
        **{"vocabulary": 30524, **sizes},
        max_text_tokens=MAX_TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    torch.manual_seed(0)
    model = build_blip_vqa(config)
    with torch.no_grad():
        model.text_decoder.cls.predictions.decoder.bias[tokenizer.sep_token_id] = _CERTAIN
    side = vision_config(config).image_size
    assert isinstance(side, int), "BLIP's images are squares"
    geometry = ImageGeometry(side, side, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    madtp = MadtpConfig(encoder_first_token="enc", max_text_tokens=MAX_TEXT_TOKENS)
    save_checkpoint(Checkpoint(model, tokenizer, geometry, madtp), directory)
