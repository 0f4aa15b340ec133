"""How far quality gives way to load, on a clock that a test moves."""

import pytest

from service.degradation import Degradation, DegradationRules, degraded, slid_target

RULES = DegradationRules(starts_at=0.25, full_at=0.75, recovery_s=2.0)


@pytest.mark.parametrize(
    ("pressure", "level"), [(0.0, 0.0), (0.25, 0.0), (0.5, 0.5), (0.75, 1.0), (1.0, 1.0), (3.0, 1.0)]
)
def test_quality_gives_way_between_two_pressures(pressure: float, level: float) -> None:
    assert degraded(Degradation(), pressure, 10.0, RULES).level == pytest.approx(level)


def test_it_gives_way_at_once_and_comes_back_with_time() -> None:
    state = degraded(Degradation(), 1.0, 100.0, RULES)
    levels = []
    for step in range(1, 6):
        state = degraded(state, 0.0, 100.0 + 0.5 * step, RULES)
        levels.append(state.level)
    assert levels == pytest.approx([0.75, 0.5, 0.25, 0.0, 0.0])


def test_full_quality_is_back_within_five_seconds_even_if_nobody_asked_meanwhile() -> None:
    full = degraded(Degradation(), 1.0, 100.0, DegradationRules())
    assert degraded(full, 0.0, 105.0, DegradationRules()).level == 0.0


def test_it_does_not_come_back_while_the_pressure_lasts() -> None:
    state = degraded(Degradation(), 1.0, 100.0, RULES)
    assert degraded(state, 0.5, 200.0, RULES).level == pytest.approx(0.5)


def test_a_clock_that_stands_changes_nothing() -> None:
    state = degraded(Degradation(), 1.0, 100.0, RULES)
    assert degraded(state, 0.0, 100.0, RULES) == state


def test_the_target_slides_to_the_floor_and_no_further() -> None:
    targets = [slid_target(0.6, 0.3, level / 10) for level in range(11)]
    assert targets == sorted(targets, reverse=True)
    assert (targets[0], targets[-1]) == (0.6, pytest.approx(0.3))


def test_a_target_below_the_floor_stays() -> None:
    assert slid_target(0.2, 0.3, 1.0) == 0.2


@pytest.mark.parametrize("wrong", [{"starts_at": 0.8}, {"full_at": 1.0}, {"recovery_s": 0.0}])
def test_rules_that_could_shed_before_they_degrade_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="degradation needs"):
        DegradationRules(**wrong)
