"""What one served request costs, dense and at kept counts that someone asks for, before anything runs.

Counted by the task's own cost model, so these figures and a request's report cannot differ. BLIP-base and
CLIP ViT-L/14 need no weights: their models stand on torch's meta device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from madtp_core.backbones import MODEL_CLASSES
from madtp_core.backbones.blip import blip_config
from madtp_core.backbones.clip import clip_config
from madtp_core.checkpoint import Checkpoint, build_alignment
from madtp_core.config import AlignmentConfig, MadtpConfig
from madtp_core.errors import ConfigError
from madtp_core.flops import FLOPS_PER_MULTIPLY_ADD, BranchTrace, greedy_passes
from madtp_core.images import ImageGeometry
from madtp_core.paper import dense_trace
from madtp_core.pruning import TEXT, VISION
from madtp_core.pruning.schedule import geometric_counts, scheduled_trace
from madtp_core.tasks import model_class
from madtp_core.tasks.base import PrunedModel
from madtp_core.tasks.cost import BRANCH_OF, MATCH, Traces

Kept = float | Sequence[int]  # a share of what enters each block, or a count behind each


@dataclass(frozen=True)
class RequestShape:
    """What one request consists of.

    text_tokens: of each text, its first token included; 0 without a text. candidates: texts that the images
    are compared and matched with. steps: of the decoder, a new token each; 0 without one.
    """

    images: int = 1
    text_tokens: int = 0
    candidates: int = 1
    steps: int = 0


# Lengths as in the paper's rows, so that a served request differs from them only in what is run.
_SHAPES = {
    "vqa": RequestShape(text_tokens=14, steps=5),
    "caption": RequestShape(steps=15),
    "retrieval": RequestShape(text_tokens=35),
    "reasoning": RequestShape(images=2, text_tokens=36),
    "clip": RequestShape(text_tokens=77),
}
_IMAGE_SIZES = {"vqa": 480, "clip": 336}  # pixels; the others' is 384


@dataclass(frozen=True)
class ServedCost:
    """Multiply-adds of one request, and the share of them that its images take.

    The rest is what follows: texts, the keys and values that they read, heads and decoding.
    """

    macs: int
    image_macs: int

    @property
    def flops(self) -> int:
        return FLOPS_PER_MULTIPLY_ADD * self.macs


def reference_model(task: str) -> PrunedModel:
    """The paper's model of a task, without weights: its cost model works, its forward does not."""
    is_clip, size = task == "clip", _IMAGE_SIZES.get(task, 384)
    config = clip_config(image_size=size) if is_clip else blip_config(image_size=size)
    alignment = AlignmentConfig()
    with torch.device("meta"):
        model, tokens = MODEL_CLASSES[task](config), build_alignment(alignment, config)
    image = ImageGeometry(size, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    checkpoint = Checkpoint(model, None, image, MadtpConfig(task=task, alignment=alignment), tokens)
    return model_class(task)(checkpoint, name="CLIP ViT-L/14" if is_clip else "BLIP-base", device="meta")


def request_shape(
    task: str, text_tokens: int | None = None, steps: int | None = None, candidates: int = 1
) -> RequestShape:
    """A request of a task with the paper's lengths, or those that are given and that the task has.

    Raises ConfigError for a length that is none, or several candidates where the task takes one text.
    """
    shape = _SHAPES[task]
    if candidates < 1 or (candidates > 1 and task not in ("retrieval", "clip")):
        raise ConfigError(f"task {task!r} takes no {candidates} candidates")
    if (text_tokens is not None and text_tokens < 2) or (steps is not None and steps < 1):
        raise ConfigError(f"need at least 2 text tokens and 1 step, got {text_tokens} and {steps}")
    if text_tokens is not None and shape.text_tokens:
        shape = replace(shape, text_tokens=text_tokens)
    if steps is not None and shape.steps:
        shape = replace(shape, steps=steps)
    return replace(shape, candidates=candidates)


def served_cost(
    model: PrunedModel, shape: RequestShape, kept: Mapping[str, Kept], *, whole: bool = False
) -> ServedCost:
    """The cost of one request; kept: branch -> what its blocks keep, merged token left out; {}: dense.

    whole: of the model before parameters were pruned from it. A branch that is named pays for MADTP's
    scoring, if the model has alignment tokens. Raises ConfigError for counts of another number of blocks, or
    that are none.
    """
    costs = model.cost_model.whole if whole else model.cost_model
    traces = {
        group: tuple(_pruned(trace, kept.get(BRANCH_OF[group])) for trace in dense)
        for group, dense in _dense_traces(model, shape).items()
    }
    scoring = {branch: costs.alignment if branch in kept else None for branch in (VISION, TEXT)}
    images = sum(costs.branch_macs(VISION, trace, scoring[VISION]) for trace in traces[VISION])
    return ServedCost(costs.macs(traces, greedy_passes(shape.steps), scoring), images)


def _dense_traces(model: PrunedModel, shape: RequestShape) -> Traces:
    vision, text = model.vision_geometry, model.text_geometry
    traces = {VISION: (dense_trace(vision.patches, vision.blocks),) * shape.images}
    if shape.text_tokens:
        traces[TEXT] = (dense_trace(shape.text_tokens - 1, text.blocks),) * shape.candidates
    if model.task == "retrieval":
        traces[MATCH] = traces[TEXT]  # the same texts again, reading the image
    return traces


def _pruned(trace: BranchTrace, kept: Kept | None) -> BranchTrace:
    """The trace of a sequence that keeps so many; where it would drop fewer than two, a block drops none."""
    if kept is None:
        return trace
    blocks = len(trace.kept)
    if isinstance(kept, int | float):
        if not 0 < kept <= 1:
            raise ConfigError(f"a keep rate must be in (0, 1], got {kept}")
        return scheduled_trace(trace.dense, geometric_counts(trace.dense, [kept] * blocks))
    if len(kept) != blocks or min(kept) < 1:
        raise ConfigError(f"need {blocks} kept counts of at least 1, one a block, got {list(kept)}")
    return scheduled_trace(trace.dense, kept)
