"""The jobs that wait for one engine: any thread puts and cancels them, the engine's thread takes batches."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence

from service.batcher import Batcher, Ticket
from service.errors import ApiError
from service.job import Job


class JobQueue:
    """A batcher's tickets and the jobs that they stand for, under one lock; times are the clock's seconds."""

    def __init__(self, batcher: Batcher, clock: Callable[[], float]) -> None:
        self._batcher = batcher
        self._clock = clock
        self._keys = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._changed = threading.Condition()
        self._closed_by: str | None = None

    def __len__(self) -> int:
        return len(self._batcher)

    @property
    def tokens(self) -> float:
        """Predicted tokens of all who wait."""
        return self._batcher.queued_tokens

    @property
    def is_closed(self) -> bool:
        """Whether nothing comes in or out any more."""
        return self._closed_by is not None

    def put(self, job: Job, lane: Hashable) -> int:
        """Queues a job, which waits from now on, and gives the key to cancel it by.

        Only jobs of one lane run together. Raises ApiError when the queue is full or closed.
        """
        with self._changed:
            if self._closed_by is not None:
                raise ApiError(self._closed_by)
            key, job.submitted_s = next(self._keys), self._clock()
            ticket = Ticket(key, job.submitted_s, job.deadline_s, job.tokens, lane, job.priority)
            if not self._batcher.submit(ticket):
                raise ApiError("overloaded")
            self._jobs[key] = job
            self._changed.notify()
        return key

    def cancel(self, key: int) -> None:
        """Takes a job out if it still waits."""
        with self._changed:
            if self._batcher.cancel(key):
                del self._jobs[key]

    def take(self, *, until_s: float) -> list[Job]:
        """Waits for the next batch; gives none when `until_s` has come or the queue is closed.

        Who has waited beyond its deadline is answered here.
        """
        with self._changed:
            while not self.is_closed and (now_s := self._clock()) < until_s:
                decision = self._batcher.next_batch(now_s)
                for key in decision.expired:
                    self._jobs.pop(key).fail(ApiError("deadline_exceeded"))
                if decision.batch:
                    return [self._jobs.pop(key) for key in decision.batch]
                wake_at_s = until_s if decision.wake_at_s is None else min(decision.wake_at_s, until_s)
                self._changed.wait(min(wake_at_s - now_s, threading.TIMEOUT_MAX))
        return []

    def close(self, code: str) -> None:
        """Answers everyone who waits with an error, and from now on everyone who comes."""
        with self._changed:
            self._closed_by = code
            self._batcher.drain()
            left, self._jobs = self._jobs, {}
            self._changed.notify()
        for job in left.values():
            job.fail(ApiError(code))

    def note_success(self) -> None:
        """A batch was answered."""
        with self._changed:
            self._batcher.note_success()

    def note_out_of_memory(self, jobs: Sequence[Job]) -> None:
        """These did not fit into memory together: from now on batches hold half as much."""
        with self._changed:
            self._batcher.note_out_of_memory(self._batcher.cost([job.tokens for job in jobs]))
