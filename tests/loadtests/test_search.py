"""The search for the highest rate: it brackets, it bisects, it ends."""

import math

import pytest

from loadtests.search import Bracket, highest_rate


@pytest.mark.parametrize("capacity", [0.3, 7.0, 10.0, 11.0, 444.0])
def test_the_bracket_holds_the_capacity_and_is_narrow(capacity: float) -> None:
    found = highest_rate(lambda rate: rate <= capacity, start=10.0, tolerance=0.05)
    assert found.met <= capacity < found.missed <= found.met * 1.05


def test_a_server_that_never_fails_is_asked_no_more_than_allowed() -> None:
    asked: list[float] = []
    found = highest_rate(lambda rate: not asked.append(rate), start=1.0, max_trials=5)
    assert asked == [1, 2, 4, 8, 16]
    assert found == Bracket(16.0, math.inf)


def test_a_server_that_always_fails_has_no_rate() -> None:
    assert highest_rate(lambda rate: False, start=8.0, max_trials=4) == Bracket(0.0, 1.0)
