"""Scenarios: what is committed is valid, what is wrong is named, rates mean what they say."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtests.compare import read_comparison
from loadtests.errors import LoadTestError
from loadtests.scenario import Scenario, Trace, parse_size, read_scenario
from service.settings import Settings

FOLDER = Path(__file__).parents[2] / "loadtests"
VALID: dict[str, Any] = {
    "name": "some",
    "description": "A test.",
    "arrivals": {"kind": "poisson", "rate": 10.0, "duration_s": 20.0},
}


def _write(folder: Path, **changes: Any) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump(VALID | changes))
    return path


@pytest.mark.parametrize("path", sorted((FOLDER / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_scenario_is_valid_and_sends_something(path: Path) -> None:
    scenario = read_scenario(path)
    assert scenario.name.replace("-", "_") == path.stem
    factor = 1.0 if isinstance(scenario.arrivals, Trace) else 20 / scenario.mean_rate()
    assert scenario.schedule_s(factor=factor)


@pytest.mark.parametrize("path", sorted((FOLDER / "comparisons").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_committed_comparison_is_valid_and_uses_known_settings(path: Path) -> None:
    comparison, _ = read_comparison(path)
    known = {f"MADTP_{name.upper()}" for name in Settings.model_fields}
    assert {
        *comparison.settings,
        *(key for one in comparison.configurations.values() for key in one),
    } <= known


def test_two_minutes_are_two_minutes() -> None:
    assert read_scenario(FOLDER / "scenarios" / "two_minutes.yaml").planned_s() == 120


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"surprise": 1}, "surprise: there is no such field"),
        ({"description": None}, "description: .* string, got None"),
        ({"arrivals": {"rate": 1.0}}, "arrivals: `kind` is missing"),
        ({"arrivals": {"kind": "poisson", "rate": 0, "duration_s": 1}}, "arrivals.poisson.rate"),
        ({"arrivals": {"kind": "storm"}}, "arrivals"),
        ({"arrivals": {"kind": "steps", "steps": [{"rate": 0.0, "duration_s": 9.0}]}}, "above 0"),
        ({"tasks": {"poetry": 1}}, "tasks.poetry"),
        ({"tasks": {"vqa": 0}}, "tasks"),
        ({"difficulty": {}}, "difficulty"),
        ({"images": {"sizes": {"big": 1}}}, "images.sizes"),
        ({"images": {"formats": {"gif": 1}}}, "images.formats"),
        ({"quality": {"fast": 1}, "flops_target": 0.5}, "exclude"),
        ({"warm_up_s": 20.0}, "warm_up_s"),
        ({"slo": {"quantile": 1.0}}, "slo.quantile"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(LoadTestError, match=field):
        read_scenario(_write(tmp_path, **changes))


@pytest.mark.parametrize("content", [b"[1, 2]", b"a: [", b"just words", b"a: \xff"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_bytes(content)
    with pytest.raises(LoadTestError, match=r"scenario\.yaml"):
        read_scenario(path)


def test_the_mean_rate_is_what_is_sent() -> None:
    steps = [{"rate": 10.0, "duration_s": 30.0}, {"rate": 40.0, "duration_s": 10.0}]
    scenario = Scenario.model_validate(VALID | {"arrivals": {"kind": "steps", "steps": steps, "cv": 0}})
    assert scenario.mean_rate() == pytest.approx(17.5)
    assert len(scenario.schedule_s(factor=2.0)) == pytest.approx(1400, abs=1)


def test_a_trace_is_found_beside_its_scenario_and_played_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "times.txt").write_text("3\n4\n7\n")
    scenario = read_scenario(_write(tmp_path, arrivals={"kind": "trace", "path": "times.txt"}, warm_up_s=0))
    assert scenario.schedule_s() == [0.0, 1.0, 4.0]
    assert scenario.planned_s() == 4.0
    assert scenario.mean_rate() == 0.75
    with pytest.raises(LoadTestError, match="no rate to change"):
        scenario.schedule_s(factor=5.0)


def test_a_load_may_last_another_time_but_not_one_of_steps() -> None:
    longer = Scenario.model_validate(VALID).lasting(50.0)
    assert (longer.planned_s(), longer.warm_up_s, longer.mean_rate()) == (50.0, 10.0, 10.0)
    steps = {"kind": "steps", "steps": [{"rate": 1.0, "duration_s": 9.0}]}
    with pytest.raises(LoadTestError, match="its own duration"):
        Scenario.model_validate(VALID | {"arrivals": steps}).lasting(50.0)


def test_the_limit_is_a_multiple_of_the_median_or_as_given() -> None:
    assert Scenario.model_validate(VALID).slo.limit_s(0.02) == pytest.approx(0.2)
    assert Scenario.model_validate(VALID | {"slo": {"latency_s": 0.5}}).slo.limit_s(0.02) == 0.5


@pytest.mark.parametrize("text", ["640", "640x", "0x480", "640 x 480", "-1x2"])
def test_a_size_is_two_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="640x480"):
        parse_size(text)
    assert parse_size("640x480") == (640, 480)
