"""Task accuracy and cost on held-out questions, by family and by difficulty, through the served path."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from madtp_core.data.shapes import ShapesVqa, difficulty_band
from madtp_core.images import preprocess_image
from madtp_core.pruning import MAX_KEEP
from madtp_core.tasks.vqa import BlipVqa, VqaQuery


@dataclass
class VqaEvaluation:
    """Answers right and asked per group, operations spent and dense, tokens needed and kept."""

    right: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    flops: int = 0
    dense_flops: int = 0
    needed_tokens: int = 0
    kept_tokens: int = 0

    def accuracy(self, group: str = "all") -> float:
        """Share of right answers of a group: all, a family, a difficulty band or `up_to_6_objects`."""
        return self.right[group] / self.asked[group]

    @property
    def flops_ratio(self) -> float:
        """Spent over dense, summed over requests."""
        return self.flops / self.dense_flops

    def figures(self) -> dict[str, float]:
        """Plain figures for a log or a table."""
        return {
            **{f"accuracy/{group}": self.accuracy(group) for group in sorted(self.asked)},
            "flops_ratio": self.flops_ratio,
            "keep_efficiency": self.needed_tokens / self.kept_tokens,
            "samples": self.asked["all"],
        }


def evaluate_vqa(
    model: BlipVqa,
    scenes: ShapesVqa,
    *,
    batch_size: int = 16,
    prune_temperature: float = 0.0,
    keep_mode: str = MAX_KEEP,
    progress: str | None = None,
) -> VqaEvaluation:
    """Ask the first question of every scene in batches, in the order of the data set.

    prune_temperature 0 runs dense. progress names a progress bar; None shows none.
    """
    result = VqaEvaluation()
    starts = range(0, len(scenes), batch_size)
    for start in tqdm(starts, desc=progress, disable=progress is None, unit="batch", mininterval=2.0):
        examples = [scenes[i] for i in range(start, min(start + batch_size, len(scenes)))]
        queries = [
            VqaQuery(query_pixels(model, example.image), example.questions[0].text, max_new_tokens=6)
            for example in examples
        ]
        answers = model.predict(queries, prune_temperature=prune_temperature, keep_mode=keep_mode)
        for example, answer in zip(examples, answers, strict=True):
            question = example.questions[0]
            is_right = answer.answer == question.answer
            groups = ["all", question.family, difficulty_band(example.scene)]
            if example.scene.num_objects <= 6:
                groups.append("up_to_6_objects")
            for group in groups:
                result.asked[group] += 1
                result.right[group] += is_right
            result.flops += answer.spent.cost.flops
            result.dense_flops += answer.spent.cost.dense_flops
            for trace in (trace for each in answer.spent.traces.values() for trace in each):
                result.needed_tokens += sum(trace.needed)
                result.kept_tokens += sum(trace.kept)
    return result


def query_pixels(model: BlipVqa, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A drawn image, uint8 [H, W, 3], as the model wants it: float32 [3, height, width]."""
    return preprocess_image(Image.fromarray(image), model.image_geometry)
