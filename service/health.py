"""Whether an engine can be trusted: its last check, whether it hangs, and when the next probe is due."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MIN_PROBE_GAP_S = 1.0


class CheckRecord:
    """The outcome of the last check; every batch that passes is a check. Times are the clock's seconds.

    After a job that failed alone it is open whether the job or the engine is to blame: a probe tells, within
    `MIN_PROBE_GAP_S` of the check before. An engine that passes nothing for `probe_interval_s` is probed too.
    Whatever runs for longer than `stall_s` is taken to hang, and for twice as long, to hang for ever.
    """

    def __init__(self, probe_interval_s: float, stall_s: float, clock: Callable[[], float]) -> None:
        self._probe_interval_s = probe_interval_s
        self._stall_s = stall_s
        self._clock = clock
        self._has_passed = False
        self._is_suspect = False
        self._checked_s = -math.inf
        self._running_since_s: float | None = None

    @property
    def is_good(self) -> bool:
        """Whether the last check passed and nothing hangs; any thread may ask."""
        return self._has_passed and self._running_s() <= self._stall_s

    @property
    def is_hung(self) -> bool:
        """Whether only a new process can help; any thread may ask."""
        return self._running_s() > 2 * self._stall_s

    def _running_s(self) -> float:
        since_s = self._running_since_s
        return 0.0 if since_s is None else self._clock() - since_s

    @property
    def probe_due_s(self) -> float:
        """When the next probe should run."""
        return self._checked_s + (MIN_PROBE_GAP_S if self._is_suspect else self._probe_interval_s)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block runs the model; when it hangs, `is_good` tells."""
        self._running_since_s = self._clock()
        try:
            yield
        finally:
            self._running_since_s = None

    def note(self, *, passed: bool) -> None:
        """A batch passed, or a probe ended."""
        self._has_passed = passed
        self._is_suspect = not passed
        self._checked_s = self._clock()

    def suspect(self) -> None:
        """A job failed alone."""
        self._is_suspect = True
