"""Arrivals: the right number at the right times, as irregular as asked, the same for a seed."""

from pathlib import Path

import numpy as np
import pytest

from loadtests.arrivals import Segment, arrival_times_s, read_trace_s
from loadtests.errors import LoadTestError


def _cv(times_s: list[float]) -> float:
    gaps = np.diff(times_s)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 4.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(cv: float) -> None:
    times_s = arrival_times_s([Segment(1000.0, 20.0, 20.0)], cv, seed=3)
    assert len(times_s) == pytest.approx(20_000, rel=0.02 + 0.015 * cv)
    assert _cv(times_s) == pytest.approx(cv, abs=1e-6 + 0.06 * cv)


def test_times_rise_and_stay_inside() -> None:
    times_s = arrival_times_s([Segment(2.0, 0.0, 100.0), Segment(1.0, 50.0, 50.0)], 1.0, seed=0)
    assert times_s == sorted(times_s)
    assert 0 <= times_s[0] <= times_s[-1] <= 3.0


def test_a_seed_gives_the_same_times_and_another_one_others() -> None:
    first, again, other = (arrival_times_s([Segment(5.0, 10.0, 10.0)], 1.0, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_a_clock_on_a_ramp_follows_the_integral_of_its_rate() -> None:
    # 0 to 10 requests a second in 10 s: t^2 / 2 requests until t.
    times_s = arrival_times_s([Segment(10.0, 0.0, 10.0)], 0.0, seed=0)
    assert times_s[:49] == pytest.approx([(2 * count) ** 0.5 for count in range(1, 50)])


def test_steps_hold_their_rates() -> None:
    times_s = np.array(arrival_times_s([Segment(100.0, 5.0, 5.0), Segment(100.0, 50.0, 50.0)], 1.0, seed=4))
    assert (times_s < 100).sum() == pytest.approx(500, rel=0.15)
    assert (times_s >= 100).sum() == pytest.approx(5000, rel=0.05)


def test_a_pause_sends_nothing() -> None:
    segments = [Segment(1.0, 10.0, 10.0), Segment(5.0, 0.0, 0.0), Segment(1.0, 10.0, 10.0)]
    times_s = arrival_times_s(segments, 0.0, seed=0)
    assert [time_s for time_s in times_s if 1.0 + 1e-9 < time_s < 6.0] == []
    assert len(times_s) == 19


def test_a_ramp_down_ends_at_nothing() -> None:
    assert Segment(10.0, 10.0, 0.0).time_of(50.0) == pytest.approx(10.0)
    assert Segment(10.0, 10.0, 0.0).time_of(37.5) == pytest.approx(5.0)


def test_a_trace_begins_at_0_and_is_sorted(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("# seconds\n12.5\n\n10\n11\n")
    assert read_trace_s(path) == [0.0, 1.0, 2.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [("1\ntwo\n", "trace.txt:2"), ("inf\n", ":1"), ("#\n", "got \\[\\]"), ("2\n2\n", "got \\[2.0\\]")],
)
def test_a_wrong_trace_is_refused_with_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    with pytest.raises(LoadTestError, match=said):
        read_trace_s(path)
