"""What one micro-batch of each task holds, as tensors, wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class VqaAnswers:
    """B images, Q questions about them, A answers to those.

    pixel_values [B, 3, height, width]; question_ids, question_mask [Q, L]; reader [Q] question -> image.
    answer_ids [A, T]: start token, answer, end token, then -100; answer_reader [A] answer -> question, in
    order; answer_weights [A]: of VQA v2, the share of annotators who gave the answer.
    """

    pixel_values: Tensor
    question_ids: Tensor
    question_mask: Tensor
    reader: Tensor
    answer_ids: Tensor
    answer_reader: Tensor
    answer_weights: Tensor


@dataclass(frozen=True, eq=False)
class Captions:
    """B images and Q captions of them.

    pixel_values [B, 3, height, width]; caption_ids [Q, L]: start token, prompt, caption, end token, then
    -100; prompt_tokens: how many stand before every caption, the start token included; reader [Q] caption ->
    image.
    """

    pixel_values: Tensor
    caption_ids: Tensor
    prompt_tokens: int
    reader: Tensor


@dataclass(frozen=True, eq=False)
class ImageTexts:
    """B images and the B texts that belong to them.

    pixel_values [B, 3, height, width]; text_ids, mask [B, L]: the texts as they are encoded alone; match_ids
    [B, L]: as they read an image (the same for CLIP, which matches none); image_keys [B] int64: which picture
    it is, so that two texts of one picture are no negatives of each other.
    """

    pixel_values: Tensor
    text_ids: Tensor
    match_ids: Tensor
    mask: Tensor
    image_keys: Tensor


@dataclass(frozen=True, eq=False)
class Statements:
    """B statements about two images each.

    pixel_values [2B, 3, height, width]: all left images, then all right ones; token_ids, mask [B, L]; labels
    [B] int64, 1 where the statement is true.
    """

    pixel_values: Tensor
    token_ids: Tensor
    mask: Tensor
    labels: Tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with its tensors on a device; looks into dataclasses within dataclasses."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    moved: dict[str, Any] = {
        entry.name: to_device(getattr(batch, entry.name), device) for entry in fields(batch)
    }
    return replace(batch, **moved)
