"""How long a batch takes, fitted from measured ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loadtests.errors import LoadTestError


class Measured(NamedTuple):
    """One batch that ran. tokens: what it computed, in tokens of unpruned requests: theirs x flops_ratio."""

    size: int
    tokens: float
    seconds: float


@dataclass(frozen=True)
class CostModel:
    """seconds = fixed + per request x size + per token x tokens."""

    fixed_s: float = 0.004
    per_request_s: float = 0.0002
    per_token_s: float = 20e-6

    def seconds(self, size: int, tokens: float) -> float:
        """How long a batch takes that computes `tokens`, pads included."""
        return self.fixed_s + self.per_request_s * size + self.per_token_s * tokens


def fit_costs(batches: Sequence[Measured]) -> CostModel:
    """The cost model with the least relative squared error; a term that would be negative is left out.

    Raises LoadTestError for fewer than three batches, or one that took no time.
    """
    if len(batches) < 3 or min(batch.seconds for batch in batches) <= 0:
        raise LoadTestError(f"wanted at least three batches that took some time, got {len(batches)}")
    columns = np.array([(1.0, batch.size, batch.tokens) for batch in batches])
    seconds = np.array([batch.seconds for batch in batches])
    terms = [0, 1, 2]
    while True:
        found, *_ = np.linalg.lstsq(columns[:, terms] / seconds[:, None], np.ones(len(seconds)), rcond=None)
        if min(found) >= 0 or len(terms) == 1:
            break
        terms.remove(terms[int(np.argmin(found))])
    coefficients = np.zeros(3)
    coefficients[terms] = found
    return CostModel(*map(float, coefficients))


@dataclass(frozen=True)
class Costs:
    """Costs of a model and what they were fitted to. tokens: of an unpruned request, in the mean."""

    model: CostModel = CostModel()
    tokens: float = 577.0
    batches: tuple[Measured, ...] = ()

    def save(self, path: Path) -> None:
        """Write what `read_costs` reads: the measured batches."""
        path.write_text(json.dumps({"tokens": self.tokens, "batches": self.batches}, indent=1) + "\n")


def read_costs(path: Path) -> Costs:
    """Fits what was saved; raises LoadTestError for any other file."""
    try:
        data = json.loads(path.read_text("utf-8"))
        batches = tuple(
            Measured(int(size), float(tokens), float(seconds)) for size, tokens, seconds in data["batches"]
        )
        tokens = float(data["tokens"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoadTestError(f"{path}: wanted what --measure writes: {error!r}") from error
    return Costs(fit_costs(batches), tokens, batches)
