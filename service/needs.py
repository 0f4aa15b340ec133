"""What a model's requests need: predicted, observed, and kept over restarts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from madtp_core.difficulty import REQUEST_FEATURES
from service.difficulty import DifficultyPredictor

if TYPE_CHECKING:
    from service.job import Job, Served

logger = logging.getLogger(__name__)

SAVE_INTERVAL_S = 60.0


class Needs:
    """One model's difficulty predictor and the file of its state; its engine calls it under one lock.

    state_dir: None keeps nothing. Raises nothing: without its file a predictor begins anew.
    """

    def __init__(self, model: str, state_dir: Path | None) -> None:
        self._file = None if state_dir is None else state_dir / f"{model}.difficulty.json"
        self._predictor = DifficultyPredictor(REQUEST_FEATURES)
        if self._file is not None:
            self._predictor = DifficultyPredictor.load(self._file, REQUEST_FEATURES)
        self._saved_s = 0.0
        self._saved_observations = self._predictor.observations

    @property
    def mean(self) -> float:
        """The share of its tokens that a request is likely to need, before anything is known of it."""
        return self._predictor.mean_need

    @property
    def rank_correlation(self) -> float | None:
        """Of predictions with what was measured, over the latest requests; None before there are enough."""
        return self._predictor.rank_correlation

    def predict(self, features: Sequence[float]) -> float | None:
        """The share of its tokens that a request should need; None before anything was seen."""
        return self._predictor.predict(features) if self._predictor.observations else None

    def observe(self, jobs: Sequence[Job], served: Sequence[Served]) -> None:
        """Learns from a batch that was answered; what ran dense says nothing."""
        for job, answer in zip(jobs, served, strict=True):
            features = None if job.prepared is None else job.prepared.features
            temperature, need = answer.setting.prune_temperature, answer.spent.difficulty
            if features is None or need is None or temperature == 0:
                continue
            self._predictor.observe(
                features,
                need,
                predicted=job.predicted_difficulty,
                prune_temperature=temperature,
                batch_size=answer.batch_size if answer.keep_mode == "max_keep" else 1,
            )

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
