"""The demo's training task: BLIP-VQA on synthetic scenes, dense or compressed by MADTP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from madtp_core.data.shapes import NUM_PATCH_LABELS, ShapesVqa
from madtp_core.data.shapes.dataset import VqaExample
from madtp_core.data.shapes.scene import GRID, SIZES, TEXTURES
from madtp_core.tasks.vqa_network import VqaNetwork

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
NUM_LOOK_LABELS = 1 + len(SIZES) * len(TEXTURES)


@dataclass(frozen=True, eq=False)
class VqaBatch:
    """B scenes with Q questions.

    images [B, H, W, 3] uint8, patch_labels [B, patches] (shape and colour), look_labels [B, patches] (size and
    texture), 0 for background in both; question_ids, question_mask [Q, L], reader [Q] question
    -> image, answer_ids [Q, A] with -100 behind the end token.
    """

    images: Tensor
    patch_labels: Tensor
    look_labels: Tensor
    question_ids: Tensor
    question_mask: Tensor
    reader: Tensor
    answer_ids: Tensor


class QuestionEncoding:
    """Texts to token ids as BLIP wants them: [ENC] question [SEP], and [DEC] answer [SEP]."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder_id: int = tokenizer.convert_tokens_to_ids("[ENC]")

    def questions(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask [Q, L], right padded."""
        encoded = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        ids = encoded["input_ids"]
        ids[:, 0] = self.encoder_id
        return ids, encoded["attention_mask"]

    def answers(self, texts: list[str]) -> Tensor:
        """Token ids [Q, A], -100 behind the end token."""
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt")
        ids = encoded["input_ids"]
        ids[:, 0] = self.tokenizer.bos_token_id
        return ids.masked_fill(encoded["attention_mask"] == 0, -100)


class ShapesVqaBatches(Dataset[VqaBatch]):
    """Step -> batch: every step sees scenes that no other step saw."""

    def __init__(self, scenes: ShapesVqa, batch_size: int, tokenizer: Any, offset: int = 0) -> None:
        self.scenes, self.batch_size, self.offset = scenes, batch_size, offset
        self.encoding = QuestionEncoding(tokenizer)

    def __getitem__(self, step: int) -> VqaBatch:
        first = self.offset + step * self.batch_size
        examples = [self.scenes[first + index] for index in range(self.batch_size)]
        asked = [(row, question) for row, example in enumerate(examples) for question in example.questions]
        ids, mask = self.encoding.questions([question.text for _, question in asked])
        return VqaBatch(
            torch.from_numpy(np.stack([example.image for example in examples])),
            torch.from_numpy(np.stack([example.patch_labels for example in examples])),
            torch.from_numpy(np.stack([look_labels(example) for example in examples])),
            ids,
            mask,
            torch.tensor([row for row, _ in asked]),
            self.encoding.answers([question.answer for _, question in asked]),
        )


def look_labels(example: VqaExample) -> NDArray[np.int64]:
    """Size and texture in every patch: 0 background, else 1 + size * textures + texture; int64 [patches].

    An object never leaves its cell, so a patch's cell names its object.
    """
    side = int(len(example.patch_labels) ** 0.5)
    look_of_cell = np.zeros(GRID * GRID, np.int64)
    for thing in example.scene.objects:
        look_of_cell[thing.cell] = 1 + SIZES.index(thing.size) * len(TEXTURES) + TEXTURES.index(thing.texture)
    cell = np.arange(side) * GRID // side
    looks = look_of_cell[(cell[:, None] * GRID + cell).ravel()]
    return np.where(example.patch_labels > 0, looks, 0)


def pixel_values(images: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] -> normalised float32 [B, 3, H, W]."""
    scaled = images.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (IMAGE_MEAN, IMAGE_STD))
    return (scaled - mean) / std


class DenseShapesVqa:
    """Dense training: answer loss, and an auxiliary loss that names what is in every patch.

    Without the auxiliary loss a model of this size stays at the language prior for very long.
    """

    def __init__(
        self, network: VqaNetwork, batches: ShapesVqaBatches, evaluator: Any, patch_loss_weight: float = 1.0
    ) -> None:
        self.network, self._batches, self.evaluator = network, batches, evaluator
        self.patch_loss_weight = patch_loss_weight
        width = network.blip.config.vision_config.hidden_size
        self.patch_head = nn.Linear(width, NUM_PATCH_LABELS + NUM_LOOK_LABELS)
        self.modules: nn.Module = nn.ModuleDict({"network": network, "patch_head": self.patch_head})

    def batches(self) -> Dataset[VqaBatch]:
        return self._batches

    def loss(self, batch: VqaBatch, step: int) -> tuple[Tensor, Mapping[str, float]]:
        out = self.network(
            pixel_values(batch.images), batch.question_ids, batch.question_mask, batch.reader, batch.answer_ids
        )
        logits = self.patch_head(out.vision.tokens.hidden[:, 1:]).float().transpose(1, 2)  # [B, labels, patches]
        kinds, looks = logits.split([NUM_PATCH_LABELS, NUM_LOOK_LABELS], 1)
        patch_loss = F.cross_entropy(kinds, batch.patch_labels) + F.cross_entropy(looks, batch.look_labels)
        loss = out.answer_loss + self.patch_loss_weight * patch_loss
        return loss, {"answer_loss": out.answer_loss.item(), "patch_loss": patch_loss.item()}

    def after_step(self, figures: Mapping[str, float]) -> None:
        """Nothing is steered in dense training."""

    def evaluate(self) -> Mapping[str, float]:
        figures: Mapping[str, float] = self.evaluator(self.network)
        return figures

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def save(self, directory: Path) -> None:
        raise NotImplementedError
