"""Decides which waiting jobs run together and when: plain numbers and a clock, no threads, no torch.

First in, first out. A batch goes out as soon as one of these holds:
- it is full;
- the engine was idle: it had asked for work and found nothing, so waiting would only add latency;
- its oldest job has waited `max_batch_wait_s`, time enough for clients just answered to ask again.

The engine owns its batcher and calls it under one lock; nobody else holds any of its state.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the batcher knows of a job: a key that is never used twice, and times in seconds of one clock."""

    key: int
    submitted_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: keys to run together, keys whose deadline has passed, and when to ask again.

    `wake_at_s` is None when only a new job can change anything.
    """

    batch: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()
    wake_at_s: float | None = None


class Batcher:
    """A bounded queue of tickets that is cut into batches."""

    def __init__(self, *, max_batch_size: int, max_batch_wait_s: float, max_queue: int) -> None:
        self.max_batch_size = max_batch_size
        self.max_batch_wait_s = max_batch_wait_s
        self.max_queue = max_queue
        self._waiting: dict[int, Ticket] = {}  # a dict keeps the order of arrival and drops a key in O(1)
        self._engine_is_idle = False

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, ticket: Ticket) -> bool:
        """Queues a ticket; False when the queue is full. Raises ValueError when its key already waits."""
        if ticket.key in self._waiting:
            raise ValueError(f"key {ticket.key} already waits")
        if len(self._waiting) >= self.max_queue:
            return False
        self._waiting[ticket.key] = ticket
        return True

    def cancel(self, key: int) -> bool:
        """Takes a waiting ticket out; False when it is not waiting (it runs, ran, or never came)."""
        return self._waiting.pop(key, None) is not None

    def drain(self) -> tuple[int, ...]:
        """Takes every waiting ticket out: the engine is gone."""
        keys = tuple(self._waiting)
        self._waiting.clear()
        return keys

    def next_batch(self, now_s: float) -> Decision:
        """Called by the engine when it has nothing to run; takes out what it returns."""
        expired = tuple(key for key, ticket in self._waiting.items() if ticket.deadline_s <= now_s)
        for key in expired:
            del self._waiting[key]
        if not self._waiting:
            self._engine_is_idle = True
            return Decision(expired=expired)
        oldest = next(iter(self._waiting.values()))
        due_at_s = oldest.submitted_s + self.max_batch_wait_s
        is_full = len(self._waiting) >= self.max_batch_size
        if not (is_full or self._engine_is_idle or due_at_s <= now_s):
            return Decision(expired=expired, wake_at_s=due_at_s)
        self._engine_is_idle = False
        batch = tuple(self._waiting)[: self.max_batch_size]
        for key in batch:
            del self._waiting[key]
        return Decision(batch=batch, expired=expired)
