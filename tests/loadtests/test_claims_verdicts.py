"""The arithmetic of the claims and their verdicts, on figures made by hand."""

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from loadtests.claims import control, keep_modes, keeping, overhead, overload
from loadtests.claims.bench import Plan
from loadtests.claims.verdict import Verdict, largest_miss, steady_rate_per_s, window_means
from loadtests.outcome import Reply
from madtp_core.calibration import Calibration, CalibrationRow
from madtp_core.evaluate import compare

PLAN = Plan("nowhere", batch_sizes=(4,), mixes=("90:10",))


def _said(verdicts: list[Verdict]) -> dict[str, bool | None]:
    return {verdict.what.partition(",")[0]: verdict.is_met for verdict in verdicts}


def test_windows_do_not_overlap_and_few_values_are_one() -> None:
    assert window_means([1, 3, 5, 7, 100], 2) == [2, 6]
    assert window_means([1, 3], 5) == [2]


def test_the_largest_miss_keeps_its_sign() -> None:
    assert largest_miss([0.51, 0.48], 0.5) == pytest.approx(-0.04)


def test_a_steady_rate_leaves_out_start_and_end() -> None:
    slow_ends = [0.0, 10.0, *(10 + 0.1 * number for number in range(1, 40)), 50.0]
    assert steady_rate_per_s(slow_ends, 4) == pytest.approx(10)
    assert steady_rate_per_s([0.0, 1.0, 2.0], 64) == pytest.approx(1)


# Control.


def _cells(off: float = 0.0, lost: int = 0) -> dict[str, Any]:
    right = [1.0] * 1000
    run = {"windows": [0.5, 0.5 * (1 + off)], "flops_ratio": 0.5, "accuracy": 1.0}
    paired = asdict(compare(right, [0.0] * lost + right[lost:]))
    cell = {"on": run, "off": run, "calibrated": run}
    cell |= {f"{way}_against_calibrated": paired for way in ("on", "off")}
    return {f"{mode}, 90:10, 4": cell for mode in ("max_keep", "per_instance")}


@pytest.mark.parametrize(
    ("off", "lost", "met"),
    [
        (0.03, 5, (True, True)),
        (0.031, 5, (False, True)),
        (-0.031, 0, (False, True)),
        (0.0, 6, (True, False)),
    ],
)
def test_control_is_met_within_3_percent_and_half_a_point(
    off: float, lost: int, met: tuple[bool, bool]
) -> None:
    spent, contrast, accuracy, *_ = control.CONTROL.judge(_cells(off - 1e-9 * np.sign(off), lost), PLAN)
    assert (spent.is_met, accuracy.is_met) == met
    assert contrast.is_met is None


def test_a_mix_that_was_not_calibrated_takes_the_natural_setting() -> None:
    rows = [
        CalibrationRow("max_keep", 4, 2.0, 0.5, 0.9, 10),
        CalibrationRow("max_keep", 4, 3.0, 0.5, 0.8, 10, "hard"),
    ]
    calibration = Calibration(tuple(rows))
    for mix, temperature, measured_on in (("hard", 3.0, "hard"), ("easy", 2.0, "natural")):
        setting, found_on = control.setting_for(calibration, 0.5, 4, "max_keep", mix)
        assert (setting.prune_temperature, found_on) == (pytest.approx(temperature), measured_on)


# Keeping.


def test_a_batch_keeps_what_its_neediest_request_needs_in_each_block() -> None:
    needed = np.array([[4.0, 1.0], [1.0, 2.0], [4.0, 1.0], [1.0, 2.0]])
    assert keeping.replay(needed, needed.sum(1), 2, "fifo") == pytest.approx(16 / 24)
    assert keeping.replay(needed, needed.sum(1), 2, "sorted") == 1.0


@pytest.mark.parametrize(("value", "is_met"), [(0.72, True), (0.71, False)])
def test_sorting_is_met_within_3_hundredths_of_both_curves(value: float, is_met: bool) -> None:
    found: dict[str, Any] = {
        "fifo": {"needed_per_kept": 0.5},
        "sorted": {"needed_per_kept": value, "rank_correlation": 0.6},
        "packed": {"needed_per_kept": 1.0},
        "simulated": {"sorted": 0.745},
        "replayed": {"sorted": 0.70},
    }
    fifo, simulated, replayed, packed = keeping.KEEPING.judge(found, PLAN)
    assert [one.is_met for one in (fifo, simulated, replayed, packed)] == [None, is_met, True, True]


# Overhead.


@pytest.mark.parametrize(("service", "added_s", "is_met"), [(95.0, 0.005, True), (94.0, 0.0051, False)])
def test_overhead_is_met_by_its_share_and_its_median(service: float, added_s: float, is_met: bool) -> None:
    one = {"service_per_s": service, "alone_per_s": 100.0, "client_cores": 0.2}
    rounds = [one, one | {"service_per_s": 1.0}, one | {"service_per_s": 200.0}]  # the median counts
    found = {
        "full size": {"rounds": rounds},
        "demo": {"rounds": rounds},
        "latency": {name: {"added_s": {"p50": added_s, "p95": 1.0}} for name in overhead.PICTURES},
    }
    assert [verdict.is_met for verdict in overhead.OVERHEAD.judge(found, PLAN)] == [is_met] * 5


# Overload.

LIMIT_S = 1.0
STEP_S = (10.0, 20.0)
GOOD = overload.Seen(12.0, 12.0, 12.5, 200, began_s=12.3, target=0.4, is_floor=True)
SHED = overload.Seen(13.0, 13.0, 13.01, 429, has_retry_after=True)
BACK = [
    overload.Seen(21.0 + n, 21.0 + n, 21.2 + n, 200, began_s=21.1 + n, target=0.5, is_full=True)
    for n in range(3)
]


DURING = replace(BACK[0], scheduled_s=19.0, sent_s=19.0, finished_s=19.2, began_s=19.1)


def _judged(*seen: overload.Seen, decoded: int | None = None) -> dict[str, bool | None]:
    found = overload.digest(seen, STEP_S, LIMIT_S)
    answered = found["answered"]
    found |= {"floor": 0.4, "images_decoded": answered if decoded is None else decoded}
    said = _said(overload.OVERLOAD.judge({"overload": found}, PLAN))
    assert said.pop("answers above the floor while requests are shed") is None  # told, without a bar
    return said


def test_the_share_above_the_floor_is_of_batches_that_began_between_sheds() -> None:
    later = replace(SHED, sent_s=18.0, finished_s=18.01)
    above, at = (replace(GOOD, began_s=14.0, is_floor=is_floor) for is_floor in (False, True))
    found = overload.digest([GOOD, SHED, above, at, at, at, later], STEP_S, LIMIT_S)
    assert found["above_floor_after_shed"] == 0.25
    assert overload.digest([GOOD, SHED], STEP_S, LIMIT_S)["above_floor_after_shed"] is None


def test_an_overload_as_it_should_be() -> None:
    assert set(_judged(GOOD, SHED, *BACK).values()) == {True}


@pytest.mark.parametrize(
    ("what", "seen"),
    [
        ("latency of accepted requests", [replace(GOOD, finished_s=13.1), SHED, *BACK]),
        ("latency of accepted requests", [GOOD, SHED, replace(SHED, status=0), *BACK]),
        ("the floor before the first shed", [GOOD, replace(SHED, sent_s=12.1, finished_s=12.11), *BACK]),
        ("the floor before the first shed", [replace(GOOD, is_floor=False), SHED, *BACK]),
        ("latency of what is shed", [GOOD, replace(SHED, finished_s=13.021), *BACK]),
        ("Retry-After", [GOOD, SHED, replace(SHED, has_retry_after=False), *BACK]),
        ("full quality after the overload", [GOOD, SHED]),
        ("full quality after the overload", [GOOD, SHED, DURING]),
        (
            "full quality after the overload",
            [GOOD, SHED, *BACK, replace(GOOD, scheduled_s=25.5, finished_s=25.7, began_s=25.6)],
        ),
    ],
)
def test_an_overload_that_misses_one_bar_misses_only_that(what: str, seen: list[overload.Seen]) -> None:
    assert [name for name, is_met in _judged(*seen).items() if not is_met] == [what]


def test_what_is_decoded_and_not_answered_is_seen() -> None:
    assert not _judged(GOOD, SHED, *BACK, decoded=5)["images decoded beyond those answered"]


@pytest.mark.parametrize(
    ("served", "reason", "is_full", "is_floor"),
    [
        (0.5, None, True, False),
        (0.45, "load", False, False),
        (0.4, "load", False, True),
        (0.43, "floor", False, True),
    ],
)
def test_a_report_tells_the_quality(served: float, reason: str | None, is_full: bool, is_floor: bool) -> None:
    said = "null" if reason is None else f'"{reason}"'
    body = (
        f'{{"report": {{"flops_target": {{"asked": 0.5, "served": {served}, "reason": {said}}}, '
        '"seconds": {"inference": 0.2, "postprocess": 0.1}}}'
    ).encode()
    seen = overload.read_seen(Reply(0, 1.0, 1.1, 2.0, 200, body), floor=0.4)
    assert (seen.is_full, seen.is_floor, seen.began_s) == (is_full, is_floor, pytest.approx(1.7))


# Keep modes.


def _mode(met_per_s: float | None, goodput_per_s: float, accuracy: float) -> dict[str, Any]:
    return {
        "highest": None if met_per_s is None else {"met_per_s": met_per_s},
        "by_rate": [{"goodput_per_s": goodput_per_s, "accuracy": accuracy}],
    }


@pytest.mark.parametrize(
    ("padded", "packed", "best"),
    [
        (_mode(100, 1, 0.9), _mode(110, 0, 0.8), "per_instance"),
        (_mode(None, 100, 0.9), _mode(None, 110, 0.8), "per_instance"),
        (_mode(100, 1, 0.9), _mode(101, 1, 0.8), "max_keep"),  # alike: accuracy decides
    ],
)
def test_the_better_keep_mode_answers_more_in_time(
    padded: dict[str, Any], packed: dict[str, Any], best: str
) -> None:
    assert keep_modes.better({"max_keep": padded, "per_instance": packed}) == best
