"""A tiny scrambled model of every task, made once: they answer nonsense, in the right form."""

from dataclasses import replace
from typing import Any

from madtp_core.backbones.blip import (
    blip_config,
    build_blip_caption,
    build_blip_retrieval,
    build_blip_vqa,
    scramble,
)
from madtp_core.backbones.nlvr import build_blip_reasoning
from madtp_core.calibration import Calibration, CalibrationRow
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.pruning import KEEP_MODES
from madtp_core.tasks import model_class
from madtp_core.tasks.base import PrunedModel
from tests.core.tiny_clip import make_checkpoint

_BUILDERS = {
    "vqa": build_blip_vqa,
    "caption": build_blip_caption,
    "retrieval": build_blip_retrieval,
    "reasoning": build_blip_reasoning,
}


def make_models(vqa_checkpoint: Checkpoint) -> dict[str, PrunedModel]:
    """A model of every task by its task's name; vqa_checkpoint lends its tokenizer and its sizes."""
    checkpoints = {task: _blip(task, vqa_checkpoint) for task in _BUILDERS} | {"clip": make_checkpoint()}
    return {
        task: model_class(task)(replace(checkpoint, calibration=make_calibration()), name=f"tiny-{task}")
        for task, checkpoint in checkpoints.items()
    }


def _blip(task: str, like: Checkpoint) -> Checkpoint:
    sizes: dict[str, Any] = {"embedding_width": 24} if task == "retrieval" else {}
    tokenizer = like.tokenizer
    config = blip_config(
        width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=64, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id, **sizes,
    )  # fmt: skip
    blip = _BUILDERS[task](config).eval()
    scramble(blip, std=0.2)
    alignment = build_alignment(like.config.alignment, config)
    scramble(alignment, seed=1, std=1.0)
    return replace(like, model=blip, alignment=alignment, config=replace(like.config, task=task))


def make_calibration() -> Calibration:
    """Says that temperatures from 0.1 to 2 spend from 0.9 to 0.4, in batches of whatever size."""
    return Calibration(
        tuple(
            CalibrationRow(keep_mode, size, temperature, ratio, ratio, 100)
            for keep_mode in KEEP_MODES
            for size in (1, 32)
            for temperature, ratio in ((0.1, 0.9), (2.0, 0.4))
        )
    )
