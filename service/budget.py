"""How many tokens a batch may hold after memory ran out: halved at once, doubled back with patience."""

import math
from dataclasses import dataclass, replace

LEAST_PATIENCE = 8
MOST_PATIENCE = 1024


@dataclass(frozen=True, slots=True)
class TokenLimit:
    """A limit of predicted tokens a batch; states follow each other, none is changed.

    full: the operator's. patience: batches to be answered before the limit doubles. It doubles with every
    failure and halves when as many batches were answered at the full limit, so a lasting shortage costs ever
    fewer failures.
    """

    full: float = math.inf
    current: float = math.inf
    patience: int = LEAST_PATIENCE
    answered: int = 0

    def after_out_of_memory(self, cost: float) -> "TokenLimit":
        """Half of what did not fit; cost: predicted tokens of that batch."""
        patience = min(2 * self.patience, MOST_PATIENCE)
        return TokenLimit(self.full, min(self.current, cost) / 2, patience)

    def after_success(self) -> "TokenLimit":
        """One more batch was answered."""
        is_full = self.current >= self.full
        if is_full and self.patience == LEAST_PATIENCE:
            return self
        if self.answered + 1 < self.patience:
            return replace(self, answered=self.answered + 1)
        if is_full:
            return replace(self, patience=max(self.patience // 2, LEAST_PATIENCE), answered=0)
        return replace(self, current=min(2 * self.current, self.full), answered=0)
