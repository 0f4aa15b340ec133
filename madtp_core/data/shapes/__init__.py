"""Seeded synthetic scenes with exact labels: pictures, questions, captions, statements and patches."""

from madtp_core.data.shapes.captions import captions
from madtp_core.data.shapes.census import Census, Description
from madtp_core.data.shapes.dataset import ShapesVqa, VqaExample
from madtp_core.data.shapes.draw import draw
from madtp_core.data.shapes.patches import NUM_PATCH_LABELS, patch_labels
from madtp_core.data.shapes.questions import ANSWERS, FAMILIES, Question, questions
from madtp_core.data.shapes.scene import (
    SPLITS,
    Background,
    Band,
    Scene,
    SceneObject,
    Split,
    difficulty_band,
    sample_scene,
    split_of,
)
from madtp_core.data.shapes.statements import statement
from madtp_core.data.shapes.vocabulary import build_tokenizer

__all__ = [
    "ANSWERS",
    "FAMILIES",
    "NUM_PATCH_LABELS",
    "SPLITS",
    "Background",
    "Band",
    "Census",
    "Description",
    "Question",
    "Scene",
    "SceneObject",
    "ShapesVqa",
    "Split",
    "VqaExample",
    "build_tokenizer",
    "captions",
    "difficulty_band",
    "draw",
    "patch_labels",
    "questions",
    "sample_scene",
    "split_of",
    "statement",
]
