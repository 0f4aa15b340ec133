"""Who is let in: a bounded number of requests inside, and how long those turned away should wait."""

import math
from collections import deque

RATE_WINDOW_S = 30.0
MAX_RETRY_AFTER_S = 60
_MAX_SAMPLES = 1024


class Admission:
    """Counts the requests inside the service and the rate at which they are answered; times in seconds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.inside = 0
        self._answered_s: deque[float] = deque(maxlen=_MAX_SAMPLES)

    def try_enter(self) -> bool:
        """Lets one request in; False when all places are taken. Every True needs one `leave`."""
        if self.inside >= self.limit:
            return False
        self.inside += 1
        return True

    def leave(self, now_s: float, *, was_answered: bool) -> None:
        """Frees a place; only answers of the model count for the rate."""
        self.inside -= 1
        if was_answered:
            self._answered_s.append(now_s)

    def retry_after_s(self, now_s: float) -> int:
        """Whole seconds until a place should be free for all who are inside now, at the measured rate.

        From 1 to 60; 1 while nothing is measured.
        """
        recent = [at_s for at_s in self._answered_s if at_s > now_s - RATE_WINDOW_S]
        if len(recent) < 2:
            return 1
        rate_per_s = len(recent) / max(now_s - recent[0], 1e-3)
        return min(MAX_RETRY_AFTER_S, max(1, math.ceil(self.inside / rate_per_s)))
