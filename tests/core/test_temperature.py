"""The control laws of the prune temperature on plants whose answer is known."""

import math
import random
from collections.abc import Callable

import pytest

from madtp_core.errors import ConfigError
from madtp_core.pruning.temperature import SearchState, TemperatureSearch, nearest_temperature


def smooth(prune_temperature: float) -> float:
    """Falls from 1 to 0.25 like pruning does: 0.5 at T = 2."""
    return 0.25 + 0.75 / (1 + prune_temperature)


def steps(prune_temperature: float) -> float:
    """A step function: tokens come in whole numbers."""
    return round(smooth(prune_temperature) * 12) / 12


def settle(
    search: TemperatureSearch, plant: Callable[[float], float], state: SearchState, measurements: int
) -> SearchState:
    for _ in range(measurements):
        state = search.step(state, plant(state.prune_temperature))
    return state


@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
def test_the_search_settles_where_the_plant_spends_the_target(start: float) -> None:
    state = settle(TemperatureSearch(0.5), smooth, SearchState(start), 400)
    assert state.prune_temperature == pytest.approx(2.0, rel=0.01)
    assert state.mean == pytest.approx(0.5, abs=1e-3)


def test_the_search_follows_a_target_that_moves() -> None:
    state = settle(TemperatureSearch(0.9), smooth, SearchState(1.0), 400)
    assert smooth(state.prune_temperature) == pytest.approx(0.9, abs=0.005)
    state = settle(TemperatureSearch(0.4), smooth, state, 400)
    assert smooth(state.prune_temperature) == pytest.approx(0.4, abs=0.005)


def test_the_search_averages_noise_away() -> None:
    noise = random.Random(0)
    state = settle(TemperatureSearch(0.5), lambda t: smooth(t) + noise.gauss(0, 0.05), SearchState(1.0), 600)
    assert smooth(state.prune_temperature) == pytest.approx(0.5, abs=0.03)


def test_the_search_hovers_at_the_step_next_to_the_target() -> None:
    search, state = TemperatureSearch(0.46), SearchState(1.0)
    state = settle(search, steps, state, 400)
    ratios = []
    for _ in range(100):
        ratios.append(steps(state.prune_temperature))
        state = search.step(state, ratios[-1])
    assert set(ratios) <= {5 / 12, 6 / 12}
    assert sum(ratios) / len(ratios) == pytest.approx(0.46, abs=0.02)


def test_spending_too_much_raises_the_temperature_and_too_little_lowers_it() -> None:
    search = TemperatureSearch(0.5)
    after = [search.step(SearchState(1.0), measured).prune_temperature for measured in (0.3, 0.5, 0.6, 0.9)]
    assert after == sorted(after)
    assert after[0] < 1.0 < after[2]
    assert after[1] == pytest.approx(1.0)


def test_one_outlier_moves_the_mean_only_a_little() -> None:
    state = TemperatureSearch(0.5, smoothing=0.8).step(SearchState(1.0, mean=0.5), 1.0)
    assert state.mean == pytest.approx(0.6)
    assert state.prune_temperature == pytest.approx(math.exp(0.5 * 0.1))


@pytest.mark.parametrize(("measured", "bound"), [(1.0, 4.0), (0.0, 0.5)])
def test_the_temperature_stays_within_its_bounds_and_comes_back_at_once(
    measured: float, bound: float
) -> None:
    search = TemperatureSearch(0.5, smoothing=0.0, minimum=0.5, maximum=4.0)
    state = settle(search, lambda _: measured, SearchState(1.0), 100)
    assert state.prune_temperature == bound
    back = search.step(state, 1.0 - measured)
    assert 0.5 < back.prune_temperature < 4.0


@pytest.mark.parametrize(
    "options",
    [
        {"target": 0.0},
        {"target": 1.1},
        {"target": 0.5, "gain": 0.0},
        {"target": 0.5, "smoothing": 1.0},
        {"target": 0.5, "minimum": 2.0, "maximum": 1.0},
        {"target": 0.5, "minimum": 0.0},
    ],
)
def test_a_search_that_cannot_settle_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        TemperatureSearch(**options)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.95])
def test_bisection_finds_the_temperature_of_a_target(target: float) -> None:
    temperature, ratio = nearest_temperature(smooth, target)
    assert ratio == smooth(temperature)
    assert ratio == pytest.approx(target, abs=0.005)


@pytest.mark.parametrize(("target", "end"), [(0.05, 100.0), (1.0, 0.01)])
def test_a_target_out_of_reach_gives_the_nearest_ratio(target: float, end: float) -> None:
    temperature, ratio = nearest_temperature(lambda t: min(smooth(t), 0.9), target, max_measurements=20)
    assert ratio == pytest.approx(min(smooth(end), 0.9), abs=0.01)
    assert 0.01 <= temperature <= 100.0


def test_between_two_steps_the_nearer_one_is_found() -> None:
    _, ratio = nearest_temperature(steps, 0.48)
    assert ratio == pytest.approx(6 / 12)
    _, ratio = nearest_temperature(steps, 0.43)
    assert ratio == pytest.approx(5 / 12)


def test_the_search_measures_no_more_than_it_may_and_stops_when_near_enough() -> None:
    measured: list[float] = []

    def plant(prune_temperature: float) -> float:
        measured.append(prune_temperature)
        return steps(prune_temperature)

    nearest_temperature(plant, 0.46, max_measurements=7)
    assert len(measured) == 7
    measured.clear()
    nearest_temperature(plant, 0.625, tolerance=0.05, max_measurements=7)  # the first try: T = 1
    assert measured == [pytest.approx(1.0)]


def test_interpolation_is_done_after_few_measurements() -> None:
    measured: list[float] = []

    def plant(prune_temperature: float) -> float:
        measured.append(prune_temperature)
        return 0.55 - 0.06 * math.log10(prune_temperature)

    nearest_temperature(plant, 0.63, tolerance=1e-3)
    assert len(measured) <= 4


def test_what_cannot_be_measured_is_kept_away_from() -> None:
    found = nearest_temperature(lambda t: smooth(t) if t < 3 else -math.inf, 0.45)
    assert found[1] == pytest.approx(0.45, abs=0.005)


@pytest.mark.parametrize(
    ("target", "bounds"), [(0.0, (0.1, 1.0)), (1.5, (0.1, 1.0)), (0.5, (1.0, 0.1)), (0.5, (0.0, 1.0))]
)
def test_the_search_refuses_bounds_and_targets_out_of_order(
    target: float, bounds: tuple[float, float]
) -> None:
    with pytest.raises(ConfigError):
        nearest_temperature(smooth, target, minimum=bounds[0], maximum=bounds[1])
