"""The prune temperature's controller on a synthetic plant that drifts, jumps, is noisy and has steps."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from service.control import Choice, ClassState, ControlRules, choose, corrected
from service.controller import EXACT, Controller, KeepMode, TargetClass, shape_class, target_class

HALF = TargetClass("balanced", 0.5, may_degrade=True)
SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Plant:
    """A model whose cost falls with T from `most` to `least`, both rising with the batch under max-keep.

    As a calibration it speaks of gain 1 and no steps.
    """

    most_alone: float = 0.75
    temperature_step: float = 0.0  # of log T: the cost is a staircase
    dense_ratio: float = 1.0

    def reachable(self, batch_size: int, keep_mode: str) -> tuple[float, float]:
        share = math.log2(batch_size) / 5 if keep_mode == "max_keep" else 0.0
        return 0.2 + 0.2 * share, self.most_alone + 0.2 * share

    def temperature_for(self, flops_ratio: float, batch_size: int, keep_mode: str) -> float:
        if flops_ratio >= self.dense_ratio:
            return 0.0
        least, most = self.reachable(batch_size, keep_mode)
        ratio = min(max(flops_ratio, least + 1e-6), most - 1e-6)
        return (most - least) / (ratio - least) - 1

    def flops_ratio(self, prune_temperature: float, batch_size: int, keep_mode: str, gain: float) -> float:
        if prune_temperature == 0:
            return self.dense_ratio
        if self.temperature_step:
            steps = round(math.log(prune_temperature) / self.temperature_step)
            prune_temperature = math.exp(steps * self.temperature_step)
        least, most = self.reachable(batch_size, keep_mode)
        return min(1.0, gain * (least + (most - least) / (1 + prune_temperature)))


Gain = Callable[[int, random.Random], float]  # of the number of requests so far: spent / calibrated


def _controller(
    plant: Plant | None = None, keep_mode: KeepMode = "max_keep", **options: object
) -> Controller:
    return Controller(plant or Plant(), keep_mode, **({"floor": 0.3} | options))  # type: ignore[arg-type]


def _spend(
    controller: Controller,
    plant: Plant,
    gain: Gain,
    *,
    keep_mode: KeepMode = "max_keep",
    sizes: Sequence[int] = SIZES,
    requests: int = 8192,
    one: TargetClass = HALF,
) -> list[float]:
    """What each request spent, in batches whose size jumps."""
    rng, spent = random.Random(0), list[float]()
    while len(spent) < requests:
        size = rng.choice(sizes)
        settings = controller.settings([one] * size)
        shared = gain(len(spent), rng)
        ratios = [
            plant.flops_ratio(
                setting.prune_temperature,
                size,
                keep_mode,
                shared if keep_mode == "max_keep" else gain(len(spent), rng),
            )
            for setting in settings
        ]
        controller.observe([one] * size, settings, ratios)
        spent += ratios
    return spent


def _off_target(spent: Sequence[float], target: float = 0.5, window: int = 512) -> list[float]:
    """How far the mean of each window is from the target, the first two left out for settling."""
    means = [sum(spent[at : at + window]) / window for at in range(2 * window, len(spent) - window, window)]
    return [abs(mean / target - 1) for mean in means]


def _steady(requests: int, rng: random.Random) -> float:
    return 1.25


def _drifting(requests: int, rng: random.Random) -> float:
    return math.exp(0.2 * math.sin(requests / 1500))


def _noisy(requests: int, rng: random.Random) -> float:
    return rng.lognormvariate(-(0.06**2) / 2, 0.06)


@pytest.mark.parametrize("gain", [_steady, _drifting, _noisy])
@pytest.mark.parametrize("sizes", [SIZES, (1,), (32,)], ids=["jumping", "alone", "full"])
@pytest.mark.parametrize("keep_mode", ["max_keep", "per_instance"])
def test_spending_holds_to_three_percent(gain: Gain, sizes: Sequence[int], keep_mode: KeepMode) -> None:
    plant = Plant()
    spent = _spend(_controller(plant, keep_mode), plant, gain, keep_mode=keep_mode, sizes=sizes)
    assert max(_off_target(spent)) < 0.03


def test_without_control_the_same_plant_is_far_off() -> None:
    spent = _spend(_controller(is_on=False), Plant(), _steady)
    assert min(_off_target(spent)) > 0.1


def test_a_step_of_the_plant_is_forgotten_within_1024_requests() -> None:
    spent = _spend(_controller(), Plant(), lambda requests, rng: 0.8 if requests < 4096 else 1.2)
    assert max(_off_target(spent[4096:])) < 0.03
    assert max(_off_target(spent[:4096])) < 0.03


def test_a_staircase_is_held_in_the_mean() -> None:
    """Only five costs exist, none of them the target: the temperature goes back and forth between two."""
    plant = Plant(temperature_step=1.5)
    spent = _spend(_controller(plant), plant, _steady, sizes=(4,))
    assert len(set(spent)) <= 5
    assert min(abs(ratio / 0.5 - 1) for ratio in spent) > 0.03
    assert max(_off_target(spent)) < 0.03


def test_between_the_mildest_pruning_and_dense_batches_take_turns() -> None:
    plant = Plant(most_alone=0.4)
    spent = _spend(_controller(plant), plant, lambda requests, rng: 1.0, sizes=(1,))
    assert {round(ratio, 3) for ratio in spent} == {0.4, 1.0}
    assert max(_off_target(spent)) < 0.01
    assert sum(spent[:60]) / 60 == pytest.approx(0.5, rel=0.03)  # from the beginning


def test_where_parameters_were_pruned_dense_spends_less_than_one_and_the_turns_know_it() -> None:
    plant = Plant(most_alone=0.4, dense_ratio=0.8)
    spent = _spend(_controller(plant), plant, lambda requests, rng: 1.0, sizes=(1,))
    assert {round(ratio, 3) for ratio in spent} == {0.4, 0.8}
    assert max(_off_target(spent)) < 0.01
    assert sum(spent[:60]) / 60 == pytest.approx(0.5, rel=0.03)  # from the beginning


def test_a_target_above_what_dense_spends_runs_dense_and_winds_nothing_up() -> None:
    plant = Plant(most_alone=0.4, dense_ratio=0.8)
    controller = _controller(plant)
    most = TargetClass("0.90", 0.9, may_degrade=False)
    assert set(_spend(controller, plant, lambda requests, rng: 1.0, one=most)) == {0.8}
    (setting,) = controller.settings([TargetClass("0.30", 0.3, may_degrade=False)])
    assert (setting.asked_ratio, setting.reason) == (pytest.approx(0.3), None)


def test_a_plant_that_saturates_far_below_its_calibration_is_held_in_the_mean() -> None:
    """Requests easier than the calibration's: dense turns reach what pruning should have reached."""
    plant = Plant()
    spent = _spend(_controller(plant), plant, lambda requests, rng: 0.42, sizes=(32,), requests=16384)
    assert sum(spent[2048:]) / len(spent[2048:]) == pytest.approx(0.5, rel=0.01)


def test_a_constant_plant_is_met_exactly() -> None:
    spent = _spend(_controller(), Plant(), _steady)
    assert spent[-32:] == pytest.approx([0.5] * 32, rel=1e-3)


def test_targets_are_held_side_by_side() -> None:
    plant, controller = Plant(), _controller()
    spent: dict[float, list[float]] = {0.45: [], 0.7: []}
    for target in itertools.islice(itertools.cycle(spent), 800):
        one = TargetClass(str(target), target, may_degrade=False)
        spent[target] += _spend(controller, plant, _steady, requests=1, sizes=(8,), one=one)
    for target, ratios in spent.items():
        assert max(_off_target(ratios, target)) < 0.03


def test_a_new_class_begins_with_what_was_learned() -> None:
    controller = _controller()
    _spend(controller, Plant(), _steady)
    other = TargetClass("0.60", 0.6, may_degrade=False)
    (setting,) = controller.settings([other])
    assert setting.asked_ratio == pytest.approx(0.6 / 1.25, rel=0.01)


def test_every_shape_of_requests_has_its_own_calibration_and_learns_for_itself() -> None:
    plants = {1: Plant(most_alone=0.55), 8: Plant(most_alone=0.75)}
    controller = _controller(plants[8], of_shape=lambda shape, keep_mode: plants[shape["text"]])
    few, many = (replace(HALF, shape=(("text", texts),)) for texts in plants)
    for one, plant in zip((few, many), plants.values(), strict=True):
        spent = _spend(controller, plant, lambda requests, rng: 1.0, requests=8, one=one)
        assert spent == pytest.approx([0.5] * len(spent))
    _spend(controller, plants[1], _steady, one=few)
    (of_few,), (of_many,) = controller.settings([few]), controller.settings([many])
    assert of_few.asked_ratio == pytest.approx(0.4, rel=0.02) and of_many.asked_ratio == pytest.approx(0.5)


def test_no_shape_runs_hotter_than_calibrated_requests_at_the_same_target() -> None:
    dear = Plant(most_alone=0.95)  # spends more at every temperature
    controller = _controller(of_shape=lambda shape, keep_mode: dear)
    many = replace(HALF, shape=(("text", 64),))
    spent = _spend(controller, dear, lambda requests, rng: 1.0, requests=512, sizes=(4,), one=many)
    assert set(spent) == {dear.flops_ratio(Plant().temperature_for(0.5, 4, "max_keep"), 4, "max_keep", 1.0)}
    assert spent[0] > 0.55
    (setting,) = controller.settings([many])
    assert (setting.reason, setting.asked_ratio) == ("floor", pytest.approx(0.5))  # and nothing wound up
    (other,) = controller.settings([HALF])
    assert (other.reason, other.asked_ratio) == (None, pytest.approx(0.5))


def test_shapes_are_counted_in_powers_of_two() -> None:
    assert shape_class({"vision": 1, "text": 0}) == (("text", 0), ("vision", 1))
    assert [shape_class({"text": n})[0][1] for n in (1, 2, 3, 5, 6, 8, 11, 12, 50)] == [
        1, 2, 4, 4, 8, 8, 8, 16, 64,
    ]  # fmt: skip


def test_each_request_of_a_packed_batch_has_its_own_temperature() -> None:
    other = TargetClass("0.60", 0.6, may_degrade=False)
    settings = _controller(keep_mode="per_instance").settings([HALF, EXACT, other, HALF])
    temperatures = [setting.prune_temperature for setting in settings]
    assert temperatures[0] == temperatures[3] > temperatures[2] > temperatures[1] == 0.0


def test_a_max_keep_batch_holds_one_class() -> None:
    with pytest.raises(ValueError, match="one target class, got balanced, exact"):
        _controller().settings([HALF, EXACT])


def test_exact_runs_dense() -> None:
    assert [setting.prune_temperature for setting in _controller().settings([EXACT] * 2)] == [0.0, 0.0]


def test_switched_off_the_temperature_is_the_same_for_every_batch_and_learns_nothing() -> None:
    controller = _controller(is_on=False)
    temperatures = {controller.settings([HALF] * size)[0].prune_temperature for size in SIZES}
    assert temperatures == {Plant().temperature_for(0.5, 32, "max_keep")}
    controller.set_pressure(1.0, 0.0)
    settings = controller.settings([HALF])
    controller.observe([HALF], settings, [0.9])
    assert controller.settings([HALF]) == settings


# Under load.


def test_under_pressure_the_target_slides_to_the_floor_and_comes_back() -> None:
    controller, targets = _controller(), []
    for pressure, now_s in ((0.0, 0.0), (0.5, 1.0), (1.0, 2.0), (1.0, 60.0), (0.0, 65.0)):
        controller.set_pressure(pressure, now_s)
        targets.append(controller.settings([HALF])[0].flops_ratio)
    assert targets == pytest.approx([0.5, math.sqrt(0.5 * 0.3), 0.3, 0.3, 0.5])


def test_spending_follows_a_degraded_target() -> None:
    controller = _controller()
    controller.set_pressure(1.0, 0.0)
    spent = _spend(controller, Plant(), _steady, sizes=(1, 2))
    assert max(_off_target(spent, target=0.3)) < 0.03


def test_what_a_request_asked_for_itself_does_not_degrade() -> None:
    controller = _controller()
    controller.set_pressure(1.0, 0.0)
    own = target_class(None, 0.5, balanced=0.6, fast=0.4)
    assert controller.settings([own])[0].flops_ratio == 0.5
    assert controller.settings([EXACT])[0].prune_temperature == 0.0


@pytest.mark.parametrize(
    ("quality", "flops_target", "wanted"),
    [
        (None, None, ("balanced", 0.6, True)),
        ("balanced", None, ("balanced", 0.6, True)),
        ("fast", None, ("fast", 0.4, True)),
        ("exact", None, ("exact", 1.0, False)),
        (None, 0.437, ("0.44", 0.44, False)),
        (None, 0.001, ("0.01", 0.01, False)),
        (None, 0.999, ("exact", 1.0, False)),
    ],
)
def test_target_class(quality: None, flops_target: float | None, wanted: tuple[str, float, bool]) -> None:
    assert target_class(quality, flops_target, balanced=0.6, fast=0.4) == TargetClass(*wanted)


# The law itself.


def test_more_is_asked_for_a_higher_target_and_a_higher_correction() -> None:
    def asked(target: float, correction: float) -> float:
        return choose(ClassState(correction), target, 8, (0.3, 0.8))[1].flops_ratio

    by_target = [asked(target / 100, 0.1) for target in range(20, 101)]
    by_correction = [asked(0.5, correction / 20) for correction in range(-20, 20)]
    assert by_target == sorted(by_target)
    assert by_correction == sorted(by_correction)
    assert min(by_target) == 0.3


def test_spending_too_much_lowers_what_is_asked_and_too_little_raises_it() -> None:
    choice, rules = Choice(0.5, is_floor=False), ControlRules()
    corrections = [
        corrected(ClassState(), choice, 0.5, measured, 8, rules).correction for measured in (0.6, 0.5, 0.4)
    ]
    assert corrections[0] < corrections[1] == 0.0 < corrections[2]


def test_a_correction_is_bounded_whatever_is_measured() -> None:
    rules, choice = ControlRules(), Choice(0.5, is_floor=False)
    for measured, bound in ((0.0, rules.largest), (50.0, -rules.largest)):
        state = ClassState()
        for _ in range(1000):
            state = corrected(state, choice, 0.5, measured, 32, rules)
        assert state.correction == bound


@pytest.mark.parametrize("measured", [math.nan, math.inf])
def test_what_is_not_a_number_teaches_nothing(measured: float) -> None:
    state = ClassState(0.1, 0.2)
    assert corrected(state, Choice(0.5, is_floor=False), 0.5, measured, 8, ControlRules()) == state


def test_turns_with_dense_are_no_errors() -> None:
    """A plant that spends exactly what is asked needs no correction, whichever of the two it is."""
    state, asked = ClassState(), []
    for _ in range(40):
        state, choice = choose(state, 0.55, 32, (0.2, 0.4))
        state = corrected(state, choice, 0.55, choice.flops_ratio, 32, ControlRules())
        asked.append(choice.flops_ratio)
        assert state.correction == pytest.approx(0.0, abs=1e-9)
    assert sum(asked) / 40 == pytest.approx(0.55)


def test_nothing_winds_up_at_the_floor() -> None:
    """A target out of reach for hours, then one within reach: it is met from the first batch on."""
    plant, controller = Plant(), _controller()
    low = TargetClass("balanced", 0.1, may_degrade=False)
    spent = _spend(controller, plant, lambda requests, rng: 1.0, sizes=(32,), one=low)
    assert spent[-1] == pytest.approx(0.4, abs=1e-3)
    assert controller.settings([low])[0].reason == "floor"
    assert _spend(controller, plant, lambda requests, rng: 1.0, requests=1)[0] == pytest.approx(0.5)
