"""From a state dict of others to a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp_core.alignment import Alignment
from madtp_core.backbones import MODEL_CLASSES
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.config import TASKS, AlignmentConfig, MadtpConfig, PruningConfig
from madtp_core.convert.geometry import (
    blip_config_of,
    clip_config_of,
    has_twins,
    shape_of,
    vocabulary_of,
    with_image_size,
)
from madtp_core.convert.ledger import Ledger
from madtp_core.convert.names import SPACE_DICT, alignment_origin, blip_origin, clip_origin
from madtp_core.convert.tokenizers import blip_tokenizer, clip_tokenizer, load_tokenizer
from madtp_core.errors import CheckpointError, UnknownNameError
from madtp_core.images import ImageGeometry
from madtp_core.pruning import BRANCHES, VISION
from madtp_core.weights import read_weights_file, tensors_of

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # BLIP's and CLIP's
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
SEARCH_START = 1.0  # the prune temperature at which the reference begins to search
_MAX_TEXT_TOKENS = {"vqa": 35, "caption": 40, "retrieval": 35}  # where the reference truncates
_NOT_LEARNT = ("cls_head.", ".merge_layer.")  # by a BLIP that has not been made for two images


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted checkpoint and what became of every tensor of its source.

    converted: names in the source. dropped: names in the source, by the reason. fresh: names of ours that the
    source has nothing for; they hold random values, and the model is of no use before it is trained.
    """

    checkpoint: Checkpoint
    converted: tuple[str, ...]
    dropped: Mapping[str, tuple[str, ...]]
    fresh: tuple[str, ...]


def convert_file(
    path: str | Path,
    task: str,
    tokenizer: str | Path,
    *,
    image_size: int | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
) -> Conversion:
    """Convert a .pth, .pt or .safetensors file of the reference, the original BLIP or OpenAI's CLIP.

    The file holds a state dict, or `{"model": state dict, "temperature": prune temperature, ...}` as the
    reference writes. tokenizer: a directory or an id on the hub, `bert-base-uncased` for BLIP. The rest is as
    in `convert_state_dict`; raises CheckpointError also for a file that only executing it would open.
    """
    content = read_weights_file(Path(path))
    prune_temperature = None
    if isinstance(content.get("model"), Mapping):
        prune_temperature = content.get("temperature")
        if not isinstance(prune_temperature, int | float | None):
            raise CheckpointError(f"the temperature in {str(path)!r} is {prune_temperature!r}, not a number")
        content = content["model"]
    return convert_state_dict(
        tensors_of(content, str(path)),
        task,
        load_tokenizer(tokenizer),
        image_size=image_size,
        vision_heads=vision_heads,
        text_heads=text_heads,
        prune_temperature=prune_temperature,
    )


def convert_state_dict(
    state: Mapping[str, Tensor],
    task: str,
    tokenizer: Any,
    *,
    image_size: int | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    prune_temperature: float | None = None,
) -> Conversion:
    """Convert weights under the names of the original BLIP or OpenAI's CLIP, of any geometry, to float32.

    tokenizer: Hugging Face's; [DEC] and [ENC] are appended to a copy for BLIP. image_size: pixels a side to
    interpolate the position embeddings to; default: as they are. vision_heads, text_heads: default 64 wide.
    prune_temperature: of training; default: where the reference's search starts. Weights with alignment
    tokens (`space_dict`) get MADTP's pruning, those without stay dense. A BLIP without twins becomes a model
    for reasoning as in the original: both twins copy its cross-attention, merge layers and classifier are
    fresh.

    Raises CheckpointError naming every tensor that is missing, unexpected or of another shape; ConfigError
    for options that do not fit the geometry. Source: the original BLIP's `load_checkpoint` (`blip_nlvr`).
    """
    if task not in TASKS:
        raise UnknownNameError("task", task, TASKS)
    is_clip = task == "clip"
    source = dict(state)
    if image_size is not None:
        source = with_image_size(source, is_clip, image_size)
    fitted = (clip_tokenizer if is_clip else blip_tokenizer)(tokenizer, vocabulary_of(source, task))
    read_config = clip_config_of if is_clip else partial(blip_config_of, task=task)
    model_config: Any = read_config(source, fitted, vision_heads=vision_heads, text_heads=text_heads)
    ledger = Ledger(source)
    model = _filled_model(task, model_config, ledger)
    alignment = _filled_alignment(is_clip, model_config, ledger)
    dropped = ledger.close()
    side = model_config.vision_config.image_size
    geometry = ImageGeometry(side, side, IMAGE_MEAN, IMAGE_STD, shortest_edge=side if is_clip else None)
    config = _madtp_config(task, model_config, alignment, prune_temperature)
    checkpoint = Checkpoint(model, fitted, geometry, config, alignment)
    return Conversion(checkpoint, tuple(sorted(ledger.used)), dropped, tuple(ledger.fresh))


def _filled_model(task: str, model_config: Any, ledger: Ledger) -> Any:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # what is fresh is the same in every conversion
        model = MODEL_CLASSES[task](model_config).eval()
    is_plain = task == "reasoning" and not has_twins(ledger.source)
    ledger.fill(model, clip_origin if task == "clip" else blip_origin, _NOT_LEARNT if is_plain else ())
    return model


def _filled_alignment(is_clip: bool, model_config: Any, ledger: Ledger) -> Alignment | None:
    if SPACE_DICT not in ledger.source:
        return None
    tokens, dim = shape_of(ledger.source, SPACE_DICT, 2)
    alignment = build_alignment(AlignmentConfig(tokens, dim), model_config)
    ledger.fill(alignment, partial(alignment_origin, is_clip=is_clip))
    return alignment


def _madtp_config(
    task: str, model_config: Any, alignment: Alignment | None, prune_temperature: float | None
) -> MadtpConfig:
    positions = model_config.text_config.max_position_embeddings
    pruning = PruningConfig(
        branches=(VISION,) if task == "caption" else BRANCHES,
        prune_temperature=SEARCH_START if prune_temperature is None else float(prune_temperature),
    )
    return MadtpConfig(
        task=task,
        encoder_first_token="cls" if task == "clip" else "enc",
        max_text_tokens=min(_MAX_TEXT_TOKENS.get(task, positions), positions),
        alignment=None if alignment is None else AlignmentConfig(alignment.num_tokens, alignment.dim),
        pruning=None if alignment is None else pruning,
    )
