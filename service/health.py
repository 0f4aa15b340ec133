"""Whether an engine can be trusted: what its last batch or probe said, and when the next probe is due."""

import math

MIN_PROBE_GAP_S = 1.0


class CheckRecord:
    """The outcome of the last check; every batch that passes is a check. Times are seconds of one clock.

    After a job that failed alone it is open whether the job or the engine is to blame: a probe tells, within
    `MIN_PROBE_GAP_S` of the check before. An engine that passes nothing for `probe_interval_s` is probed too.
    """

    def __init__(self, probe_interval_s: float) -> None:
        self.has_passed = False
        self._probe_interval_s = probe_interval_s
        self._is_suspect = False
        self._checked_s = -math.inf

    @property
    def probe_due_s(self) -> float:
        """When the next probe should run."""
        return self._checked_s + (MIN_PROBE_GAP_S if self._is_suspect else self._probe_interval_s)

    def note(self, now_s: float, *, passed: bool) -> None:
        """A batch passed, or a probe ended."""
        self.has_passed = passed
        self._is_suspect = not passed
        self._checked_s = now_s

    def suspect(self) -> None:
        """A job failed alone."""
        self._is_suspect = True
