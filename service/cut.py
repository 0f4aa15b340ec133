"""Which of the jobs in a window run together: pure functions on predicted tokens.

Under max-keep a batch pays size x its hardest member's need, so members should be alike; packed, the sum.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.waiting import Ticket

Order = Literal["fifo", "sorted"]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How much runs together: jobs, and predicted tokens as `cost` counts them."""

    size: int
    tokens: float
    is_padded: bool

    def cost(self, tokens: Sequence[float]) -> float:
        """Predicted tokens of a batch: its size x its largest member when padded, else their sum."""
        if not tokens:
            return 0.0
        return len(tokens) * max(tokens) if self.is_padded else sum(tokens)


def first_in_first_out(jobs: Sequence[Ticket], limits: BatchLimits) -> list[Ticket]:
    """The longest run from the first job that fits; the first goes alone if it does not."""
    batch = _Batch(jobs[0], limits)
    for job in jobs[1:]:
        if not batch.has_room_for(job):
            break
        batch.add(job)
    return batch.jobs


def nearest_to_the_first(jobs: Sequence[Ticket], limits: BatchLimits) -> list[Ticket]:
    """The first job and those next to it in predicted tokens, always over the smaller of the two gaps.

    In the simulator this packs as well as emptying a sorted window batch by batch, and nobody waits for the
    window's turn: the oldest is in every batch. Of equals the oldest is taken.
    """
    first, batch = jobs[0], _Batch(jobs[0], limits)
    above = deque(sorted((job for job in jobs[1:] if job.tokens >= first.tokens), key=_tokens))
    below = deque(sorted((job for job in jobs[1:] if job.tokens < first.tokens), key=_tokens, reverse=True))
    while above or below:
        sides = [side for side in (above, below) if side and batch.has_room_for(side[0])]
        if not sides:
            break
        batch.add(min(sides, key=lambda side: batch.gap_to(side[0])).popleft())
    return batch.jobs


CUTS = {"fifo": first_in_first_out, "sorted": nearest_to_the_first}


class _Batch:
    """Jobs that run together, as they are added."""

    def __init__(self, first: Ticket, limits: BatchLimits) -> None:
        self.jobs = [first]
        self._limits = limits
        self._total = self._least = self._largest = first.tokens

    def has_room_for(self, job: Ticket) -> bool:
        size = len(self.jobs) + 1
        is_padded = self._limits.is_padded
        cost = size * max(self._largest, job.tokens) if is_padded else self._total + job.tokens
        return size <= self._limits.size and cost <= self._limits.tokens

    def add(self, job: Ticket) -> None:
        self.jobs.append(job)
        self._total += job.tokens
        self._least = min(self._least, job.tokens)
        self._largest = max(self._largest, job.tokens)

    def gap_to(self, job: Ticket) -> float:
        """Tokens between the batch and a job outside of its range."""
        return max(job.tokens - self._largest, self._least - job.tokens)


def _tokens(job: Ticket) -> float:
    return job.tokens
