"""Decides which waiting jobs run together and when: plain numbers and a clock, no threads, no torch.

A batch goes out as soon as one of these holds:
- it is full: nothing more fits;
- the engine was idle: it had asked for work and found nothing, so waiting would only add latency;
- somebody has waited `max_batch_wait_s`, time enough for clients just answered to ask again.

Who is in it is decided within a window of the first `window_batches` batches' worth of arrivals: the oldest,
and its neighbours in predicted need (`sorted`) or in time (`fifo`). The engine owns its batcher and calls it
under one lock; nobody else holds any of its state.
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
    its size x its largest member (max-keep), else the sum (packed). max_batch_tokens and max_queue_tokens are
    predicted tokens. priority_head_start_s: how much earlier a level of priority counts as having arrived;
    so priority bounds the others' wait and starves nobody.
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
        max_queue_tokens: float = math.inf,
        priority_head_start_s: float = 1.0,
    ) -> None:
        self.max_batch_wait_s = max_batch_wait_s
        self.max_queue = max_queue
        self.max_queue_tokens = max_queue_tokens
        self.window = window_batches * max_batch_size
        self._cut = CUTS[order]
        self._limits = BatchLimits(max_batch_size, max_batch_tokens, is_padded)
        self._token_limit = TokenLimit(max_batch_tokens, max_batch_tokens)
        self._room = WaitingRoom(priority_head_start_s)
        self._engine_is_idle = False

    def __len__(self) -> int:
        return len(self._room)

    @property
    def queued_tokens(self) -> float:
        """Predicted tokens of all who wait."""
        return self._room.tokens

    @property
    def batch_token_limit(self) -> float:
        """Predicted tokens that a batch may hold now; below the operator's after an out-of-memory."""
        return self._token_limit.current

    def submit(self, ticket: Ticket) -> bool:
        """Queues a ticket; False when the queue is full. Raises ValueError when its key already waits.

        A job that alone exceeds the bound in tokens is queued when nobody else waits: it must run some time.
        """
        is_over = bool(self._room) and self._room.tokens + ticket.tokens > self.max_queue_tokens
        if is_over or len(self._room) >= self.max_queue:
            return False
        self._room.add(ticket)
        return True

    def cancel(self, key: int) -> bool:
        """Takes a waiting ticket out; False when it is not waiting (it runs, ran, or never came)."""
        return self._room.remove(key)

    def drain(self) -> tuple[int, ...]:
        """Takes every waiting ticket out: the engine is gone."""
        return self._room.clear()

    def expire(self, now_s: float) -> tuple[int, ...]:
        """Takes out whose deadline has come; `next_expiry_s` says when to call it next."""
        return self._room.expire(now_s)

    def next_expiry_s(self) -> float | None:
        """When the next deadline comes; None when nobody who waits has one."""
        return self._room.next_expiry_s()

    def next_batch(self, now_s: float, *, is_busy: bool = False) -> Decision:
        """Called by the engine when it has nothing to run; takes out what it returns.

        is_busy: it still runs a batch and would prepare the next one: then only a full one is given, since a
        batch that is not full can only gain by waiting.
        """
        expired = self._room.expire(now_s)
        if not self._room:
            self._engine_is_idle = self._engine_is_idle or not is_busy
            return Decision(expired=expired)
        due_at_s = self._room.oldest_submitted_s() + self.max_batch_wait_s
        batch = self._choose(
            oldest_only=due_at_s <= now_s,
            may_be_short=not is_busy and (self._engine_is_idle or due_at_s <= now_s),
        )
        if not batch:
            expiry_s = self._room.next_expiry_s()
            times_s = [time_s for time_s in (expiry_s, None if is_busy else due_at_s) if time_s is not None]
            return Decision(expired=expired, wake_at_s=min(times_s, default=None))
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

    def _choose(self, *, oldest_only: bool, may_be_short: bool) -> list[Ticket]:
        """The batch of the first lane, in turn, that may go out; of none but the oldest's once it is due."""
        limits = replace(self._limits, tokens=self._token_limit.current)
        lanes: dict[Hashable, list[Ticket]] = {}
        for ticket in self._room.window(self.window):
            lanes.setdefault(ticket.lane, []).append(ticket)
        for jobs in lanes.values():
            batch = self._cut(jobs, limits)
            is_full = len(batch) == limits.size or len(batch) < len(jobs)
            if may_be_short or is_full:
                return batch
            if oldest_only:
                break
        return []
