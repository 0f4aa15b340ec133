"""Which Hugging Face model serves which task."""

from __future__ import annotations

from typing import Any

from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    CLIPModel,
)

from madtp_core.backbones.nlvr import BlipForReasoning

MODEL_CLASSES: dict[str, Any] = {
    "vqa": BlipForQuestionAnswering,
    "caption": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
    "reasoning": BlipForReasoning,
    "clip": CLIPModel,
}
