"""What a model's requests need: predicted, observed, and kept over restarts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from madtp_core.difficulty import REQUEST_FEATURES
from service.difficulty import DifficultyPredictor

if TYPE_CHECKING:
    from madtp_core.tasks.cost import Spent
    from service.job import Job, Served

logger = logging.getLogger(__name__)

SAVE_INTERVAL_S = 60.0
FORGETTING = 0.999  # of a request's weight in the scale of first blocks, with every request after it


class Needs:
    """One model's difficulty predictor and the file of its state.

    Any thread asks; the engine's alone observes and saves. state_dir: None keeps nothing. Raises nothing:
    without its file a predictor begins anew.
    """

    def __init__(self, model: str, state_dir: Path | None) -> None:
        self._file = None if state_dir is None else state_dir / f"{model}.difficulty.json"
        self._predictor = DifficultyPredictor(REQUEST_FEATURES)
        if self._file is not None:
            self._predictor = DifficultyPredictor.load(self._file, REQUEST_FEATURES)
        self._lock = threading.Lock()
        self._whole = self._first = 0.0  # what requests needed lately: in all blocks, and in the first ones
        self._saved_s = 0.0
        self._saved_observations = self._predictor.observations

    @property
    def mean(self) -> float:
        """The share of its tokens that a request is likely to need, before anything is known of it."""
        with self._lock:
            return self._predictor.mean_need

    @property
    def rank_correlation(self) -> float | None:
        """Of predictions with what was learned, over the latest requests; None before there are enough."""
        with self._lock:
            return self._predictor.rank_correlation

    def predict(self, features: Sequence[float]) -> float | None:
        """The share of its tokens that a request should need; None before anything was seen."""
        with self._lock:
            return self._predictor.predict(features) if self._predictor.observations else None

    def observe(self, jobs: Sequence[Job], served: Sequence[Served]) -> None:
        """Learns from a batch that was answered; what ran dense says nothing."""
        for job, answer in zip(jobs, served, strict=True):
            features = None if job.prepared is None else job.prepared.features
            temperature, need = answer.setting.prune_temperature, answer.spent.difficulty
            if features is None or need is None or temperature == 0:
                continue
            is_shared = answer.keep_mode == "max_keep"
            with self._lock:
                self._predictor.observe(
                    features,
                    self._own(need, first_need(answer.spent)) if is_shared else need,
                    predicted=job.predicted_difficulty,
                    prune_temperature=temperature,
                    batch_size=answer.batch_size if is_shared else 1,
                )

    def _own(self, need: float, first: float) -> float:
        """What a request of a max-keep batch needs by itself: its first blocks' need on the scale of all.

        Behind its first block a request holds what its neediest mate kept, and what it needs of that says
        more of the mate.
        """
        self._whole = FORGETTING * self._whole + need
        self._first = FORGETTING * self._first + first
        return min(1.0, first * self._whole / self._first) if self._first else need

    def save_when_due(self, now_s: float) -> None:
        """Writes the state once a minute, if there is anything new."""
        if now_s - self._saved_s >= SAVE_INTERVAL_S:
            self._saved_s = now_s
            self.save()

    def save(self) -> None:
        """Writes the state if there is anything new; a disk that is full or read-only is only logged."""
        if self._file is None or self._predictor.observations == self._saved_observations:
            return
        try:
            self._predictor.save(self._file)
        except OSError:
            logger.exception("the state of the difficulty predictor was not saved")
        self._saved_observations = self._predictor.observations


def first_need(spent: Spent) -> float:
    """The share of a request's tokens that the first block of every sequence needed."""
    traces = [trace for sequences in spent.traces.values() for trace in sequences]
    return sum(trace.needed[0] for trace in traces) / sum(trace.dense for trace in traces)
