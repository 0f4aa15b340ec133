"""Who is let in: bounded requests and predicted tokens inside, and how long those turned away should wait."""

import math
from collections import deque
from dataclasses import dataclass

RATE_WINDOW_S = 30.0
MAX_RETRY_AFTER_S = 60
_MAX_SAMPLES = 1024
_FORGETTING = 0.98  # of a request's weight in the typical one, with every request after it


@dataclass(eq=False)
class Place:
    """What one request takes up where it is inside, in predicted tokens."""

    admission: "Admission"
    tokens: float = 0.0


class Admission:
    """Counts what is inside for one model, and the rate at which it is answered; times in seconds.

    A request enters before its body is read, as a typical one; what it really asks for is known later, and
    still before anything is decoded (`try_resize`). max_tokens: predicted tokens inside; a request that is
    larger than that is served alone.
    """

    def __init__(self, limit: int, *, max_tokens: float = math.inf) -> None:
        self.limit = limit
        self.max_tokens = max_tokens
        self.inside = 0
        self.tokens = 0.0
        self._typical_tokens = 1.0
        self._answered_s: deque[float] = deque(maxlen=_MAX_SAMPLES)

    @property
    def pressure(self) -> float:
        """The share of its places or of its tokens that is taken, 0 to 1: whichever is larger."""
        return min(1.0, max(self.inside / self.limit, self.tokens / self.max_tokens))

    @property
    def is_full(self) -> bool:
        """Whether nobody is let in now."""
        has_tokens = not self.inside or self.tokens + self._typical_tokens <= self.max_tokens
        return self.inside >= self.limit or not has_tokens

    def try_enter(self) -> Place | None:
        """Lets one request in; None when all places or tokens are taken. Every place needs one `leave`."""
        if self.is_full:
            return None
        self.inside += 1
        self.tokens += self._typical_tokens
        return Place(self, self._typical_tokens)

    def try_resize(self, place: Place, tokens: float) -> bool:
        """Corrects what a request inside takes up; False, and nothing changes, when there is not so much."""
        if not self._try_take(place, tokens):
            return False
        self._typical_tokens += (1 - _FORGETTING) * (tokens - self._typical_tokens)
        return True

    def leave(self, place: Place, now_s: float, *, was_answered: bool) -> None:
        """Frees a place; only answers of the model count for the rate."""
        self.inside -= 1
        self.tokens = self.tokens - place.tokens if self.inside else 0.0  # no rounding error stays behind
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

    def _try_take(self, place: Place, tokens: float) -> bool:
        others = self.tokens - place.tokens
        if self.inside > 1 and tokens > place.tokens and others + tokens > self.max_tokens:
            return False
        self.tokens = others + tokens
        place.tokens = tokens
        return True
