"""Task accuracy on held-out questions, by family and by difficulty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from madtp_core.data.shapes import ShapesVqa, difficulty_band
from madtp_core.decoding import greedy
from madtp_core.tasks.vqa_network import TEXT, VISION, BatchPruning, VqaNetwork
from madtp_core.train.shapes_vqa import QuestionEncoding, pixel_values


@dataclass(frozen=True)
class ShapesEvaluator:
    """Greedy answers to one question a scene, in batches of batch_size."""

    scenes: ShapesVqa
    tokenizer: Any
    batch_size: int = 16

    def __call__(self, network: VqaNetwork, pruning: BatchPruning | None = None) -> Mapping[str, float]:
        """Accuracy over all questions, and over each family and difficulty band, as `accuracy/...`."""
        right: dict[str, list[bool]] = defaultdict(list)
        network.eval()
        for start in range(0, len(self.scenes), self.batch_size):
            for answer, band, family in self._answers(network, start, pruning):
                for group in ("all", band, family):
                    right[group].append(answer)
        return {f"accuracy/{group}": sum(hits) / len(hits) for group, hits in right.items()}

    @torch.inference_mode()
    def _answers(
        self, network: VqaNetwork, start: int, pruning: BatchPruning | None
    ) -> list[tuple[bool, str, str]]:
        examples = [self.scenes[i] for i in range(start, min(start + self.batch_size, len(self.scenes)))]
        asked = [example.questions[0] for example in examples]
        ids, mask = QuestionEncoding(self.tokenizer).questions([question.text for question in asked])
        images = torch.stack([torch.from_numpy(example.image) for example in examples])
        vision = network.encode_image(pixel_values(images), pruning and pruning.of(VISION))
        text = network.encode_question(ids, mask, vision, None, pruning and pruning.of(TEXT))
        decoder = network.decoder()
        answers = greedy(decoder, decoder.remember(text.tokens), torch.arange(len(asked)), 4)
        decoded = self.tokenizer.batch_decode([list(answer.token_ids) for answer in answers])
        return [
            (said == question.answer, difficulty_band(example.scene), question.family)
            for said, question, example in zip(decoded, asked, examples, strict=True)
        ]
