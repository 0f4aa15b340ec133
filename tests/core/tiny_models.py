"""A tiny scrambled model of every task that reads drawn scenes of 64 pixels."""

from dataclasses import replace

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.backbones.blip import blip_config, scramble
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.config import MadtpConfig, PruningConfig
from madtp_core.tasks import model_class
from madtp_core.tasks.base import PrunedModel
from tests.core import tiny_clip

IMAGE_SIZE = 64
TASKS = ("vqa", "caption", "retrieval", "reasoning", "clip")
_LETTERS = 160  # CLIP's tiny tokenizer spells every word


def tiny_model(task: str, vqa_checkpoint: Checkpoint) -> PrunedModel:
    """The model of a task, its prune temperature 1, with the shapes' tokenizer except for CLIP."""
    pruning = PruningConfig(prune_temperature=1.0)
    if task == "clip":
        checkpoint = tiny_clip.make_checkpoint()
        tokenizer = checkpoint.tokenizer
        network = tiny_clip.make_network(
            vocabulary=len(tokenizer), bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, max_text_tokens=_LETTERS,
        )  # fmt: skip
        config = replace(checkpoint.config, max_text_tokens=_LETTERS, pruning=pruning)
        return model_class(task)(
            replace(checkpoint, model=network.clip, alignment=network.alignment, config=config)
        )
    tokenizer, alignment_config = vqa_checkpoint.tokenizer, vqa_checkpoint.config.alignment
    config = blip_config(
        width=32, heads=2, vision_blocks=2, text_blocks=2, image_size=IMAGE_SIZE, patch_size=8,
        vocabulary=len(tokenizer), max_text_tokens=40, embedding_width=24,
        bos_token_id=tokenizer.bos_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    model = MODEL_CLASSES[task](config).eval()
    scramble(model, std=0.2)
    alignment = build_alignment(alignment_config, config)
    scramble(alignment, seed=1, std=1.0)
    madtp = MadtpConfig(task=task, max_text_tokens=40, alignment=alignment_config, pruning=pruning)
    return model_class(task)(replace(vqa_checkpoint, model=model, alignment=alignment, config=madtp))
