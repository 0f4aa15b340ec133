"""A model that answers at once without a network, and does on request what models do on bad days."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from madtp_core.config import PruningConfig
from madtp_core.errors import ConfigError
from madtp_core.flops import BranchTrace, RequestCost
from madtp_core.images import ImageGeometry
from madtp_core.tasks.cost import Spent
from madtp_core.tasks.vqa import VqaAnswer, VqaQuery

GEOMETRY = ImageGeometry(height=16, width=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
VISION = BranchTrace(dense=16, tokens_in=(16, 9), needed=(8, 3), kept=(8, 4))
TEXT = BranchTrace(dense=6, tokens_in=(6, 6), needed=(6, 3), kept=(6, 3))
COST = RequestCost(flops=600, dense_flops=1000, needed_flops=500, padded_flops=700)


class FakeCalibration:
    """A temperature that tells what it was asked for: batch size + ratio; reached are 0.1 to 0.9."""

    dense_ratio = 1.0

    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float:
        return batch_size + flops_ratio

    def reachable(self, batch_size: int, keep_mode: str) -> tuple[float, float]:
        return 0.1, 0.9

    def accuracy_at(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float:
        return 0.5 + flops_ratio / 2


class FakeModel:
    """Answers a question with its last word; some questions make it fail.

    "refuse ..." is refused as a model refuses bad values, "break ..." raises, "kill ..." ends the thread,
    "not finite ..." gives NaN. `batches` holds the questions of every call, also of those that failed.
    """

    task = "vqa"
    image_geometry = GEOMETRY
    image_cache = None

    def __init__(self, *, is_pruned: bool = True, is_calibrated: bool = True, delay_s: float = 0.0) -> None:
        self.pruning = PruningConfig() if is_pruned else None
        self.calibration = FakeCalibration() if is_calibrated else None
        self.delay_s = delay_s
        self.is_broken = False
        self.batches: list[list[str]] = []
        self.queries: list[VqaQuery] = []
        self.temperatures: list[float | Sequence[float]] = []
        self.keep_modes: list[str] = []
        self._may_go_on = threading.Event()
        self._may_go_on.set()
        self.has_begun = threading.Event()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No batch ends within the block, unless it calls `release`."""
        self.has_begun.clear()
        self._may_go_on.clear()
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        self._may_go_on.set()

    def forget_warm_up(self) -> None:
        for record in (self.batches, self.queries, self.temperatures, self.keep_modes):
            record.clear()

    def shape_of(self, query: VqaQuery) -> dict[str, int]:
        return {"text": 2 if " several " in query.question else 1}

    def calibration_of(self, shape: Mapping[str, int], keep_mode: str) -> FakeCalibration | None:
        return self.calibration

    def predict(
        self, queries: Sequence[VqaQuery], *, prune_temperature: float | Sequence[float], keep_mode: str
    ) -> list[VqaAnswer]:
        self.batches.append([query.question for query in queries])
        self.queries += queries
        self.temperatures.append(prune_temperature)
        self.keep_modes.append(keep_mode)
        self.has_begun.set()
        assert self._may_go_on.wait(10), "a test held the model for too long"
        time.sleep(self.delay_s)
        if self.is_broken:
            raise RuntimeError("broken")
        return [self._answer(query) for query in queries]

    def _answer(self, query: VqaQuery) -> VqaAnswer:
        verb, _, rest = query.question.partition(" ")
        match verb:
            case "refuse":
                raise ConfigError("the question has 99 tokens, at most 20 are allowed")
            case "break":
                raise RuntimeError(f"secret text: {query.question}")
            case "kill":
                raise SystemExit
        ranked = None
        answer, score = query.question.split()[-1], -0.25
        if query.candidates is not None:
            ranked = tuple((text, -0.5 * (rank + 1)) for rank, text in enumerate(sorted(query.candidates)))
            answer, score = ranked[0]
        return VqaAnswer(
            answer=answer,
            score=float("nan") if rest.startswith("finite") else score,
            ranked=ranked,
            spent=Spent(
                {"vision": (VISION,), "text": (TEXT,)}, COST, 0.4 if self.pruning is not None else None
            ),
            postprocess_s=0.0,
        )

    def describe(self) -> dict[str, object]:
        return {"architecture": "fake", "vision": {"tokens": VISION.dense}}


def solid_picture(size: tuple[int, int] = (8, 6), colour: Any = (200, 30, 30)) -> np.ndarray:
    """Levels [H, W, 3] of one colour; `size` is (width, height)."""
    return np.full((size[1], size[0], 3), colour, dtype=np.uint8)
