"""When requests are sent: a random process warped through a rate that changes over time. Pure and seeded.

A renewal process of unit rate decides how irregular arrivals are (Poisson, or gamma gaps for bursts), a rate
profile how many there are when (constant, ramp, steps). A trace replaces both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from loadtests.errors import LoadTestError


@dataclass(frozen=True)
class Segment:
    """A stretch of time in which the rate, in requests per second, goes linearly from `start` to `end`."""

    duration_s: float
    start_per_s: float
    end_per_s: float

    @property
    def expected(self) -> float:
        """Requests sent in it, in the mean."""
        return self.duration_s * (self.start_per_s + self.end_per_s) / 2

    def time_of(self, count: float) -> float:
        """Seconds from its beginning until `count` requests are expected; `count` is at most `expected`."""
        if count <= 0:
            return 0.0
        slope = (self.end_per_s - self.start_per_s) / self.duration_s
        # The root of start * t + slope / 2 * t^2 = count in the form that does not cancel, also for slope 0.
        discriminant = max(0.0, self.start_per_s**2 + 2 * slope * count)
        return min(self.duration_s, 2 * count / (self.start_per_s + math.sqrt(discriminant)))


def renewals(cv: float, seed: int) -> Iterator[float]:
    """Yield the times of a renewal process of rate 1 whose gaps have the coefficient of variation `cv`.

    1 is a Poisson process, 0 a clock; above 1 the gamma gaps come in bursts.
    """
    generator = random.Random(seed)
    now = 0.0
    while True:
        if cv == 0:
            now += 1.0
        else:
            now += generator.gammavariate(1 / cv**2, cv**2)
        yield now


def arrival_times_s(segments: Sequence[Segment], cv: float, seed: int) -> list[float]:
    """Draw the send times over all segments, in seconds from their beginning, upwards.

    Each renewal at x is moved to when x requests were expected (time rescaling), so the mean follows the
    profile and a Poisson process stays one.
    """
    starts_s = [0.0, *accumulate(segment.duration_s for segment in segments)]
    before = [0.0, *accumulate(segment.expected for segment in segments)]
    times_s: list[float] = []
    index = 0
    for count in renewals(cv, seed):
        while index < len(segments) and count >= before[index + 1]:
            index += 1
        if index == len(segments):
            return times_s
        times_s.append(starts_s[index] + segments[index].time_of(count - before[index]))
    raise AssertionError("renewals never end")


def read_trace_s(path: Path) -> list[float]:
    """Read send times from a text file, a number of seconds a line, and give them from 0 upwards.

    Empty lines and lines that begin with # are left out. Raises LoadTestError for anything else that is not a
    finite number, and for a file without two different times.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LoadTestError(f"cannot read the trace {path}: {error}") from error
    times_s = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            time_s = float(line)
        except ValueError:
            time_s = math.nan
        if not math.isfinite(time_s):
            raise LoadTestError(f"{path}:{number}: wanted a number of seconds, got {line.strip()!r}")
        times_s.append(time_s)
    if len(set(times_s)) < 2:
        raise LoadTestError(f"{path}: wanted two different send times at least, got {sorted(set(times_s))}")
    first_s = min(times_s)
    return sorted(time_s - first_s for time_s in times_s)
