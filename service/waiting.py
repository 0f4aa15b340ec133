"""The jobs that wait: in the order of their arrival, by deadline, and the tokens they may need."""

import heapq
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import islice

PRIORITY_HEAD_START_S = 1.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the batcher knows of a job: a key that is never used twice, and times in seconds of one clock.

    tokens: predicted need. lane: only jobs of one lane run together. priority: every level counts as having
    come `PRIORITY_HEAD_START_S` earlier, so it bounds how long others wait for it and starves nobody.
    """

    key: int
    submitted_s: float
    deadline_s: float
    tokens: float = 1.0
    lane: Hashable = None
    priority: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.tokens < math.inf:
            raise ValueError(f"a job needs a positive, finite number of tokens, got {self.tokens}")


@dataclass(slots=True)
class _Level:
    """The waiting jobs of one priority, each with the number of its arrival; the first is the oldest."""

    arrivals: int = 0
    waiting: OrderedDict[int, tuple[int, Ticket]] = field(default_factory=OrderedDict)

    def add(self, ticket: Ticket) -> None:
        self.waiting[ticket.key] = (self.arrivals, ticket)
        self.arrivals += 1

    def head(self) -> Ticket:
        return next(iter(self.waiting.values()))[1]

    def window(self, length: int) -> Iterator[Ticket]:
        """Those of the `length` arrivals from the oldest waiting job on that still wait.

        Places of jobs that have left count too: so a job is overtaken by fewer than `length` younger ones of
        its priority, whatever is taken out of the window and how often.
        """
        first = next(iter(self.waiting.values()))[0]
        for number, ticket in self.waiting.values():
            if number >= first + length:
                return
            yield ticket


class WaitingRoom:
    """Holds tickets until they are taken out; every operation costs O(log n), a window O(its length)."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self._tickets: dict[int, Ticket] = {}
        self._levels: dict[int, _Level] = {}
        # A heap; keys that have left are skipped when they come up.
        self._deadlines: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def add(self, ticket: Ticket) -> None:
        """Lets a ticket in; raises ValueError when its key already waits."""
        if ticket.key in self._tickets:
            raise ValueError(f"key {ticket.key} already waits")
        self._tickets[ticket.key] = ticket
        self._levels.setdefault(ticket.priority, _Level()).add(ticket)
        self.tokens += ticket.tokens
        if ticket.deadline_s < math.inf:
            heapq.heappush(self._deadlines, (ticket.deadline_s, ticket.key))

    def remove(self, key: int) -> bool:
        """Takes a ticket out; False when it does not wait."""
        ticket = self._tickets.pop(key, None)
        if ticket is None:
            return False
        level = self._levels[ticket.priority]
        del level.waiting[key]
        if not level.waiting:
            del self._levels[ticket.priority]
        self.tokens = self.tokens - ticket.tokens if self._tickets else 0.0  # no rounding error stays behind
        if len(self._deadlines) > 2 * len(self._tickets) + 16:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._tickets]
            heapq.heapify(self._deadlines)
        return True

    def clear(self) -> tuple[int, ...]:
        """Takes every ticket out and gives their keys in the order of submission."""
        keys = tuple(self._tickets)
        for key in keys:
            self.remove(key)
        self._deadlines.clear()
        return keys

    def expire(self, now_s: float) -> tuple[int, ...]:
        """Takes out whose deadline has come and gives their keys, the earliest deadline first."""
        expired = []
        while (next_s := self.next_expiry_s()) is not None and next_s <= now_s:
            key = self._deadlines[0][1]
            self.remove(key)
            expired.append(key)
        return tuple(expired)

    def next_expiry_s(self) -> float | None:
        """When the next deadline comes; None when nobody who waits has one."""
        while self._deadlines and self._deadlines[0][1] not in self._tickets:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def oldest_submitted_s(self) -> float:
        """When the longest waiting of all priorities was submitted; somebody must wait."""
        return min(level.head().submitted_s for level in self._levels.values())

    def window(self, length: int) -> list[Ticket]:
        """The first tickets in turn, at most `length`: by arrival, each priority with its head start."""
        levels = [level.window(length) for level in self._levels.values()]
        return list(islice(heapq.merge(*levels, key=_turn_s), length))


def _turn_s(ticket: Ticket) -> float:
    return ticket.submitted_s - PRIORITY_HEAD_START_S * ticket.priority
