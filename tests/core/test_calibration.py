"""The calibration table: looked up between measured points, clamped at the ends, read back as written."""

import json
import math

import pytest

from madtp_core.calibration import Calibration, CalibrationRow
from madtp_core.errors import CheckpointError, ConfigError


def row(batch_size: int, temperature: float, ratio: float, keep_mode: str = "max_keep") -> CalibrationRow:
    return CalibrationRow(keep_mode, batch_size, temperature, ratio, 0.9, 100)


TABLE = Calibration(
    (
        row(1, 0.1, 0.8),
        row(1, 0.4, 0.4),
        row(16, 0.4, 0.8),
        row(16, 1.6, 0.4),
        row(1, 0.2, 0.6, "per_instance"),
    )
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


def test_what_is_saved_is_loaded(tmp_path):
    TABLE.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == TABLE


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.update(schema_version=2),
        lambda data: data["rows"][0].pop("flops_ratio"),
        lambda data: data["rows"][0].update(extra=1),
        lambda data: data.pop("rows"),
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
        "flops_ratio": {"min": 0.4, "max": 0.8},
    }
    assert math.isclose(TABLE.floor("max_keep") or 0, 0.4)
