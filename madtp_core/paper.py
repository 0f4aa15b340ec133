"""The paper's five uncompressed models as sums of our formulas: what stands in each of its "GFLOPs".

The paper counts multiply-adds, and for three of the models those of a training forward: momentum encoders,
all answers of a question, a queue of negatives. One served request is another, smaller figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from madtp_core.flops import (
    BranchTrace,
    TextGeometry,
    VisionGeometry,
    clip_text_macs,
    clip_vision_macs,
    decoder_macs,
    linear_macs,
    lm_head_macs,
    memory_macs,
    text_encoder_macs,
    twin_text_encoder_macs,
    vision_macs,
)

BERT_BASE = TextGeometry(width=768, mlp_width=3072, blocks=12, memory_width=768, vocabulary=30524)
CLIP_L_TEXT = TextGeometry(width=768, mlp_width=3072, blocks=12)
CLIP_L_EMBEDDING = 768
NLVR_MERGE_START = 6
_RETRIEVAL_EMBEDDING = 256
_QUEUE = 57_600  # embeddings of past batches, the negatives of the contrastive loss


def vit_base(image_size: int) -> VisionGeometry:
    """BLIP-base's image tower at so many pixels a side."""
    return VisionGeometry(768, 3072, 12, 16, image_size, image_size)


def clip_l_vision() -> VisionGeometry:
    """CLIP ViT-L/14's image tower at 336 pixels."""
    return VisionGeometry(1024, 4096, 24, 14, 336, 336)


@dataclass(frozen=True)
class Part:
    """Something a forward computes `count` times, at so many multiply-adds each."""

    what: str
    macs_each: int
    count: int = 1

    @property
    def macs(self) -> int:
        return self.count * self.macs_each


@dataclass(frozen=True)
class PaperRow:
    """One uncompressed model of the paper: its name, the "GFLOPs" printed there, and our parts of it."""

    model: str
    image_size: int
    printed: float
    forward: str
    parts: tuple[Part, ...]

    @property
    def macs(self) -> int:
        return sum(part.macs for part in self.parts)


def paper_rows() -> tuple[PaperRow, ...]:
    """The five models of the paper's tables 1 to 6, dense."""
    return (_nlvr(), _caption(), _vqa(), _retrieval(), _clip())


def dense_trace(tokens: int, blocks: int) -> BranchTrace:
    """Nothing dropped of so many tokens, class token left out."""
    full = (tokens,) * blocks
    return BranchTrace(tokens, full, full, full)


def _image(vision: VisionGeometry) -> int:
    return vision_macs(vision, dense_trace(vision.patches, vision.blocks))


def _text(tokens: int) -> BranchTrace:
    """A text of so many tokens, its first one the protected token."""
    return dense_trace(tokens - 1, BERT_BASE.blocks)


def _nlvr() -> PaperRow:
    vision = vit_base(384)
    seen, width = vision.patches + 1, BERT_BASE.width
    text = twin_text_encoder_macs(BERT_BASE, _text(36), (seen, seen), NLVR_MERGE_START)
    parts = (
        Part(f"image, {seen} tokens", _image(vision), 2),
        Part("statement, 36 tokens reading both images", text),
        Part("head", linear_macs(width, width, 2)),
    )
    return PaperRow("BLIP-NLVR", 384, 132.54, "inference", parts)


def _caption() -> PaperRow:
    vision = vit_base(384)
    head = lm_head_macs(BERT_BASE, 15)
    decoder = decoder_macs(BERT_BASE, [(15, 15)], vision.patches + 1, BERT_BASE.memory_width)
    parts = (
        Part(f"image, {vision.patches + 1} tokens", _image(vision)),
        Part("caption, 15 tokens in one teacher-forced pass reading the image", decoder - head),
        Part("language-model head, 15 tokens", head),
    )
    return PaperRow("BLIP-Caption", 384, 65.7, "training", parts)


def _vqa() -> PaperRow:
    vision = vit_base(480)
    seen = vision.patches + 1
    memory = memory_macs(BERT_BASE, seen)
    question = text_encoder_macs(BERT_BASE, _text(14), seen) - memory
    head = lm_head_macs(BERT_BASE, 5)
    answers, question_memory = 47, decoder_macs(BERT_BASE, [], 14)
    answer = decoder_macs(BERT_BASE, [(5, 5)], 14) - head - question_memory
    parts = (
        Part(f"image, {seen} tokens", _image(vision)),
        Part("its keys and values for the questions", memory),
        Part("question, 14 tokens", question, 32),
        Part("a question's keys and values for the answers", question_memory),
        Part("answer, 5 tokens in one teacher-forced pass", answer, answers),
        Part("language-model head, 5 tokens", head, answers),
    )
    return PaperRow("BLIP-VQA", 480, 186.1, "training", parts)


def _retrieval() -> PaperRow:
    vision = vit_base(384)
    seen, width = vision.patches + 1, BERT_BASE.width
    pair = text_encoder_macs(BERT_BASE, _text(35), seen)
    parts = (
        Part(f"image, {seen} tokens: model and momentum copy", _image(vision), 2),
        Part(
            "text alone, 35 tokens: model and momentum copy", text_encoder_macs(BERT_BASE, _text(35), None), 2
        ),
        Part("matching, the text reading its image", pair),
        Part("matching, two hard negative pairs", pair, 2),
        Part("projections to embeddings", linear_macs(width, _RETRIEVAL_EMBEDDING), 4),
        Part("matching head", linear_macs(width, 2), 3),
        Part(f"similarities to a queue of {_QUEUE:,}", linear_macs(_RETRIEVAL_EMBEDDING, _QUEUE), 4),
    )
    return PaperRow("BLIP-Retrieval", 384, 153.2, "training", parts)


def _clip() -> PaperRow:
    vision = clip_l_vision()
    image = clip_vision_macs(vision, dense_trace(vision.patches, vision.blocks), CLIP_L_EMBEDDING)
    text = clip_text_macs(CLIP_L_TEXT, dense_trace(76, CLIP_L_TEXT.blocks), CLIP_L_EMBEDDING)
    parts = (
        Part(f"image, {vision.patches + 1} tokens: model and momentum copy", image, 2),
        Part("text, 77 tokens: model and momentum copy", text, 2),
        Part(f"similarities to a queue of {_QUEUE:,}", linear_macs(CLIP_L_EMBEDDING, _QUEUE), 4),
    )
    return PaperRow("CLIP ViT-L/14", 336, 395.7, "training", parts)
