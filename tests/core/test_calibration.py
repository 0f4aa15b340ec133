"""The calibration table: looked up between measured points, told where it ends, read back as written."""

import json

import pytest

from madtp_core.calibration import NATURAL, Calibration, CalibrationRow, Setting
from madtp_core.errors import CheckpointError, ConfigError


def row(batch_size, temperature, ratio, keep_mode="max_keep", *, mix=NATURAL, accuracy=0.9):
    return CalibrationRow(keep_mode, batch_size, temperature, ratio, accuracy, 100, mix)


TABLE = Calibration(
    (
        row(1, 0.1, 0.8),
        row(1, 0.4, 0.4, accuracy=0.8),
        row(16, 0.4, 0.8),
        row(16, 1.6, 0.4, accuracy=0.7),
        row(1, 0.2, 0.6, "per_instance"),
        row(1, 0.3, 0.6, mix="hard", accuracy=None),
    ),
    {NATURAL: 0.95},
)


@pytest.mark.parametrize(
    ("ratio", "batch_size", "temperature"),
    [
        (0.8, 1, 0.1),  # a measured point
        (0.6, 1, 0.2),  # half-way in ratio: the geometric mean of 0.1 and 0.4
        (0.6, 4, 0.4),  # half-way in log batch size as well: the mean of 0.2 and 0.8
        (0.9, 1, 0.1),  # clamped
        (0.1, 1, 0.4),
        (0.4, 64, 1.6),
        (1.0, 16, 0.0),  # dense
    ],
)
def test_temperatures_between_measured_points(ratio, batch_size, temperature):
    assert TABLE.temperature_for(ratio, batch_size, "max_keep") == pytest.approx(temperature)


def test_a_lower_ratio_never_asks_for_a_lower_temperature():
    wanted = [TABLE.temperature_for(ratio / 100, 5, "max_keep") for ratio in range(100, 10, -1)]
    assert wanted == sorted(wanted)


def test_per_instance_rows_of_one_size_serve_all_sizes():
    assert TABLE.temperature_for(0.6, 23, "per_instance") == pytest.approx(0.2)


def test_a_keep_mode_that_was_not_measured_is_refused():
    with pytest.raises(ConfigError, match="per_instance"):
        Calibration((row(1, 0.1, 0.8),)).temperature_for(0.5, 1, "per_instance")


def test_a_ratio_out_of_reach_is_answered_by_the_nearest_and_says_so():
    assert TABLE.setting_for(0.1, 1, "max_keep") == Setting(pytest.approx(0.4), 0.4, 0.8)
    assert TABLE.setting_for(0.9, 1, "max_keep") == Setting(pytest.approx(0.1), 0.8, 0.9)
    assert TABLE.setting_for(0.7, 1, "max_keep").flops_ratio == pytest.approx(0.7)


def test_what_can_be_reached_depends_on_keep_mode_batch_size_and_mix():
    table = Calibration((row(1, 1.0, 0.2), row(1, 0.1, 0.4), row(4, 1.0, 0.4), row(4, 0.1, 0.8)))
    assert table.reachable(1, "max_keep") == (0.2, 0.4)
    assert table.reachable(2, "max_keep") == pytest.approx((0.3, 0.6))
    assert table.reachable(99, "max_keep") == (0.4, 0.8)
    with pytest.raises(ConfigError, match="hard"):
        table.reachable(1, "max_keep", "hard")


def test_the_accuracy_of_a_ratio_lies_between_measured_ones():
    assert TABLE.accuracy_at(0.6, 1, "max_keep") == pytest.approx(0.85)
    assert TABLE.accuracy_at(0.4, 4, "max_keep") == pytest.approx(0.75)  # half-way in log batch size
    assert TABLE.accuracy_at(1.0, 4, "max_keep") == 0.95  # dense
    assert TABLE.accuracy_at(0.6, 1, "max_keep", "hard") is None


def test_each_mix_has_its_own_temperature():
    assert TABLE.temperature_for(0.6, 1, "max_keep", "hard") == pytest.approx(0.3)


def test_where_chance_makes_more_pruning_cost_more_temperatures_still_follow_ratios():
    table = Calibration((row(1, 0.1, 0.5), row(1, 0.2, 0.52), row(1, 0.4, 0.51), row(1, 0.8, 0.3)))
    wanted = [table.temperature_for(ratio / 1000, 1, "max_keep") for ratio in range(520, 300, -1)]
    assert wanted == sorted(wanted)
    assert table.setting_for(0.6, 1, "max_keep").flops_ratio == 0.52 == table.reachable(1, "max_keep")[1]


def test_difficulty_is_defined_mid_way_of_what_a_lone_request_reaches():
    table = Calibration((row(1, 1.0, 0.2), row(1, 0.01, 0.4), row(8, 1.0, 0.9)))
    assert table.reference_temperature() == pytest.approx(0.1)
    assert TABLE.reference_temperature() == pytest.approx(0.2)  # per_instance where it was measured


def test_a_file_without_mixes_is_of_the_natural_one(tmp_path):
    path = tmp_path / "calibration.json"
    TABLE.save(path)
    data = json.loads(path.read_text())
    rows = [{name: value for name, value in each.items() if name != "mix"} for each in data["rows"][:5]]
    path.write_text(json.dumps({"schema_version": 1, "rows": rows}))
    assert Calibration.load(path) == Calibration(TABLE.rows[:5])


def test_what_is_saved_is_loaded(tmp_path):
    TABLE.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == TABLE


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.update(schema_version=4),
        lambda data: data["rows"][0].pop("flops_ratio"),
        lambda data: data["rows"][0].update(extra=1),
        lambda data: data.pop("rows"),
        lambda data: data.pop("dense_accuracy"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = tmp_path / "calibration.json"
    TABLE.save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"calibration\.json"):
        Calibration.load(path)


def test_the_summary_names_what_was_measured():
    assert TABLE.summary() == {
        "keep_modes": ["max_keep", "per_instance"],
        "batch_sizes": [1, 16],
        "mixes": ["hard", "natural"],
        "flops_ratio": {"min": 0.4, "max": 0.8},
    }
