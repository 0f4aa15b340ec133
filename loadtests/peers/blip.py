"""Hugging Face's own BLIP for questions: its processor, its `generate`, its weights."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, BlipForQuestionAnswering

_MAX_NEW_TOKENS = 20  # as our service


@dataclass(frozen=True)
class Query:
    """One prepared request: pixels [3, H, W] and the question."""

    pixels: Tensor
    question: str


class HuggingFaceBlip:
    """A dense BLIP that answers batches; the same weights as ours, as float32, on so many threads."""

    def __init__(self, checkpoint: str, *, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        load: Any = AutoProcessor.from_pretrained
        self._processor = load(checkpoint)
        model: Any = BlipForQuestionAnswering.from_pretrained(checkpoint, dtype=torch.float32)
        self._model = model.to(self._device).eval()
        # BLIP reads a question with [ENC] in the first place; Hugging Face's processor leaves [CLS] there.
        self._first_id = self._processor.tokenizer.convert_tokens_to_ids("[ENC]")

    def prepare(self, image: bytes, question: str) -> Query:
        """Decode and preprocess one request; raises what Pillow raises on what is no image."""
        picture = Image.open(io.BytesIO(image)).convert("RGB")
        pixels = self._processor.image_processor(images=picture, return_tensors="pt")["pixel_values"][0]
        return Query(pixels, question)

    @torch.inference_mode()
    def answer(self, queries: Sequence[Query]) -> list[str]:
        """Answer a batch, greedily, as our service does."""
        text = self._processor.tokenizer(
            [query.question for query in queries], padding=True, return_tensors="pt"
        )
        input_ids = text["input_ids"].clone()
        input_ids[:, 0] = self._first_id
        ids = self._model.generate(
            pixel_values=torch.stack([query.pixels for query in queries]).to(self._device),
            input_ids=input_ids.to(self._device),
            attention_mask=text["attention_mask"].to(self._device),
            max_new_tokens=_MAX_NEW_TOKENS,
        )
        answers: list[str] = self._processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return answers
