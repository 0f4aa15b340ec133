"""Predicts what share of its tokens a request will need, learning from every batch: plain numbers.

Recursive least squares by its normal equations: weighted means and comoments of everything observed, the
past forgotten geometrically, solved with a ridge every few observations. So features may have any scale and
may be constant.
"""

import json
import logging
import math
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from madtp_core.rank_correlation import spearman

Vector = NDArray[np.float64]

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
LEAST_OBSERVATIONS = 32  # below these the mean is the better guess
REFIT_EVERY = 16
RIDGE_OBSERVATIONS = 8.0  # the weight of the belief that no feature says anything
LEAST_NEED = 0.01
OUTLIER_DEVIATIONS = 6.0
NUISANCES = ("log_prune_temperature", "log_batch_size")


@dataclass(frozen=True)
class _Fit:
    """A linear prediction: need at the features' means, and how it changes with each, as far as believed."""

    mean: Vector
    reach: Vector
    coefficients: Vector
    need: float


class DifficultyPredictor:
    """Predicts the need of one model's requests from named features.

    forgetting: what is left of an observation's weight one observation later. window: pairs of prediction and
    measurement that the rank correlation looks back on. `predict` may be called from any thread, everything
    else from one at a time.
    """

    def __init__(self, names: Sequence[str], *, forgetting: float = 0.999, window: int = 1024) -> None:
        self.names = tuple(names)
        self.observations = 0
        self._forgetting = forgetting
        self._pairs: deque[tuple[float, float]] = deque(maxlen=window)
        columns = len(self.names) + len(NUISANCES) + 1  # the last is the need
        self._weight = 0.0
        self._mean: Vector = np.zeros(columns)
        self._comoment: Vector = np.zeros((columns, columns))
        self._fitted: _Fit | None = None

    @property
    def mean_need(self) -> float:
        """The mean of what was measured lately; 1 before anything was."""
        return _bounded(float(self._mean[-1])) if self._weight else 1.0

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's, of what was predicted and what was measured lately; None where there is too little.

        Measured at whatever temperatures the batches ran at: a lower bound of what sorting a queue has.
        """
        if len(self._pairs) < LEAST_OBSERVATIONS:
            return None
        predicted, measured = np.array(self._pairs).T
        return spearman(predicted, measured)

    def predict(self, features: Sequence[float]) -> float:
        """The need to expect, in (0, 1], at the usual prune temperature and batch size.

        The mean need while little was seen. A feature that is not a finite number says nothing. Raises
        ValueError for another number of features.
        """
        x = self._checked(features)
        fit = self._fitted
        if fit is None:
            return self.mean_need
        away = np.clip(np.where(np.isfinite(x), x - fit.mean, 0.0), -fit.reach, fit.reach)
        return _bounded(fit.need + float(away @ fit.coefficients))

    def observe(
        self,
        features: Sequence[float],
        need: float,
        *,
        predicted: float | None = None,
        prune_temperature: float | None = None,
        batch_size: int = 1,
    ) -> None:
        """Learns from one measured need, in (0, 1]; predicted: what `predict` said before it ran.

        A batch's need depends on its temperature and, after the first block, on its mates: both are regressed
        out. Ignored unless every number is one. Raises ValueError for another number of features.
        """
        usual = float(self._mean[len(self.names)])
        nuisances = [math.log(prune_temperature) if prune_temperature else usual, math.log(batch_size)]
        row = np.array([*self._checked(features), *nuisances, need])
        if not np.isfinite(row).all():
            return
        if predicted is not None:
            self._pairs.append((predicted, need))
        if self.observations >= LEAST_OBSERVATIONS:
            reach = self._reach()
            row = np.clip(row, self._mean - reach, self._mean + reach)
        self._weight = self._forgetting * self._weight + 1
        before = row - self._mean
        self._mean = self._mean + before / self._weight
        self._comoment = self._forgetting * self._comoment + np.outer(before, row - self._mean)
        self.observations += 1
        if self.observations >= LEAST_OBSERVATIONS and self.observations % REFIT_EVERY == 0:
            self._fitted = self._fit()

    def save(self, path: Path) -> None:
        """Writes everything learned as JSON; a reader sees the old file or the new one, never a half."""
        state = {
            "schema_version": SCHEMA_VERSION,
            "names": self.names,
            "observations": self.observations,
            "weight": self._weight,
            "mean": self._mean.tolist(),
            "comoment": self._comoment.tolist(),
            "pairs": list(self._pairs),
        }
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(json.dumps(state))
        os.replace(beside, path)

    @classmethod
    def load(cls, path: Path, names: Sequence[str]) -> "DifficultyPredictor":
        """What was saved; one that knows nothing when there is no such file, or it is of other features."""
        predictor = cls(names)
        if not path.exists():
            return predictor
        try:
            predictor._restore(json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("what was learned of difficulty is not used", extra={"reason": repr(error)})
            return cls(names)
        return predictor

    def _restore(self, state: dict[str, Any]) -> None:
        """Takes over a saved state; raises ValueError, KeyError or TypeError when it is not one of ours."""
        if (state["schema_version"], tuple(state["names"])) != (SCHEMA_VERSION, self.names):
            raise ValueError("it is of another version or of other features")
        mean, comoment = np.array(state["mean"], float), np.array(state["comoment"], float)
        if mean.shape != self._mean.shape or comoment.shape != self._comoment.shape:
            raise ValueError(f"its moments have the shapes {mean.shape} and {comoment.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(comoment).all() and math.isfinite(state["weight"])):
            raise ValueError("its moments are not all finite")
        self._pairs.extend((float(predicted), float(need)) for predicted, need in state["pairs"])
        self.observations, self._weight = int(state["observations"]), float(state["weight"])
        self._mean, self._comoment = mean, comoment
        if self.observations >= LEAST_OBSERVATIONS:
            self._fitted = self._fit()

    def _checked(self, features: Sequence[float]) -> Vector:
        values = np.asarray(features, float)
        if values.shape != (len(self.names),):
            raise ValueError(f"wanted {len(self.names)} features, got the shape {values.shape}")
        return values

    def _deviations(self) -> Vector:
        """The standard deviation of every column; 0 where it is constant up to rounding."""
        deviations = np.sqrt(np.maximum(np.diag(self._comoment), 0.0) / self._weight)
        constant = deviations <= 1e-9 * (1 + np.abs(self._mean))
        return np.where(constant, 0.0, deviations)

    def _reach(self) -> Vector:
        """How far from the mean a value is believed: a constant column has no scale yet, so anything is."""
        deviations = self._deviations()
        return np.where(deviations > 0, OUTLIER_DEVIATIONS * deviations, np.inf)

    def _fit(self) -> "_Fit":
        """Solves for all columns but the need's, and leaves the nuisances at their means."""
        deviations = self._deviations()
        scale = np.where(deviations > 0, deviations, 1.0)
        correlation = self._comoment / self._weight / np.outer(scale, scale)
        among = correlation[:-1, :-1] + np.eye(len(scale) - 1) * (RIDGE_OBSERVATIONS / self._weight)
        weights: Vector = np.linalg.solve(among, correlation[:-1, -1])
        coefficients = np.where(deviations[:-1] > 0, weights * scale[-1] / scale[:-1], 0.0)
        features = slice(len(self.names))
        return _Fit(
            self._mean[features], self._reach()[features], coefficients[features], float(self._mean[-1])
        )


def _bounded(need: float) -> float:
    return min(1.0, max(LEAST_NEED, need))
