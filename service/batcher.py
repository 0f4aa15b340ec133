"""Decides which waiting jobs run together and when: plain numbers and a clock, no threads, no torch.

A batch goes out as soon as one of these holds:
- it is full: nothing more fits;
- the engine was idle: it had asked for work and found nothing, so waiting would only add latency;
- somebody has waited `max_batch_wait_s`, time enough for clients just answered to ask again.

Who is in it is decided within a window of the first `window_batches` batches' worth of arrivals: the oldest,
and its neighbours in predicted need (`sorted`) or in time (`fifo`). The engine's queue owns its batcher and
calls it under one lock; nobody else holds any of its state.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from service.budget import TokenLimit
from service.cut import CUTS, BatchLimits, Order
from service.waiting import Ticket, WaitingRoom

__all__ = ["Batcher", "Decision", "Ticket"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now: keys to run together, keys whose deadline has passed, and when to ask again.

    `wake_at_s` is None when only a new job can change anything.
    """

    batch: tuple[int, ...] = ()
    expired: tuple[int, ...] = ()
    wake_at_s: float | None = None


class Batcher:
    """A bounded queue of tickets that is cut into batches.

    order: `sorted` puts jobs of like need together, which pays under max-keep only. is_padded: a batch costs
    its size x its largest member (max-keep), else the sum (packed). max_batch_tokens: predicted ones.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_batch_wait_s: float,
        max_queue: int,
        order: Order = "fifo",
        window_batches: int = 8,
        is_padded: bool = True,
        max_batch_tokens: float = math.inf,
    ) -> None:
        self.max_batch_wait_s = max_batch_wait_s
        self.max_queue = max_queue
        self.window = window_batches * max_batch_size
        self._cut = CUTS[order]
        self._limits = BatchLimits(max_batch_size, max_batch_tokens, is_padded)
        self._token_limit = TokenLimit(max_batch_tokens, max_batch_tokens)
        self._room = WaitingRoom()
        self._engine_is_idle = False

    def __len__(self) -> int:
        return len(self._room)

    @property
    def queued_tokens(self) -> float:
        """Predicted tokens of all who wait."""
        return self._room.tokens

    def submit(self, ticket: Ticket) -> bool:
        """Queues a ticket; False when the queue is full. Raises ValueError when its key already waits."""
        if len(self._room) >= self.max_queue:
            return False
        self._room.add(ticket)
        return True

    def cancel(self, key: int) -> bool:
        """Takes a waiting ticket out; False when it is not waiting (it runs, ran, or never came)."""
        return self._room.remove(key)

    def drain(self) -> tuple[int, ...]:
        """Takes every waiting ticket out: the engine is gone."""
        return self._room.clear()

    def next_batch(self, now_s: float) -> Decision:
        """Called by the engine when it has nothing to run; takes out what it returns.

        Never while a batch still runs: one that is cut ahead misses who comes meanwhile. A cut takes less
        than a millisecond; stacking and tokenising take 1 ms of the 7 s of a full-size batch on a CPU.
        """
        expired = self._room.expire(now_s)
        if not self._room:
            self._engine_is_idle = True
            return Decision(expired=expired)
        due_at_s = self._room.oldest_submitted_s() + self.max_batch_wait_s
        batch = self._choose(may_be_short=self._engine_is_idle or due_at_s <= now_s)
        if not batch:
            expiry_s = self._room.next_expiry_s()
            return Decision(
                expired=expired, wake_at_s=due_at_s if expiry_s is None else min(due_at_s, expiry_s)
            )
        self._engine_is_idle = False
        for ticket in batch:
            self._room.remove(ticket.key)
        return Decision(batch=tuple(ticket.key for ticket in batch), expired=expired)

    def note_success(self) -> None:
        """A batch was answered: heals the limit of tokens."""
        self._token_limit = self._token_limit.after_success()

    def note_out_of_memory(self, cost: float) -> None:
        """A batch of that `cost` did not fit into memory: halves the limit of tokens."""
        self._token_limit = self._token_limit.after_out_of_memory(cost)

    def cost(self, tokens: Sequence[float]) -> float:
        """What a batch of jobs with these predicted tokens costs, as its limit counts."""
        return self._limits.cost(tokens)

    def _choose(self, *, may_be_short: bool) -> list[Ticket]:
        """The batch of the first lane, in turn, that may go out."""
        limits = replace(self._limits, tokens=self._token_limit.current)
        lanes: dict[Hashable, list[Ticket]] = {}
        for ticket in self._room.window(self.window):
            lanes.setdefault(ticket.lane, []).append(ticket)
        for jobs in lanes.values():
            batch = self._cut(jobs, limits)
            is_full = len(batch) == limits.size or len(batch) < len(jobs)
            if may_be_short or is_full:
                return batch
        return []
