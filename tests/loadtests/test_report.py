"""Reports and figures of raw results: pooled over rounds, complete, and redrawn from the file alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests.cli import main
from loadtests.compare import rotated
from loadtests.errors import LoadTestError
from loadtests.measure import Target, result, run_trial
from loadtests.outcome import Outcome, as_columns
from loadtests.report import pooled_by_rate, render
from loadtests.scenario import Scenario

GOOD = Outcome(0, "vqa", "easy", 6.0, 0.001, 0.05, 200, None, True, 4, 1_000_000, 2_000_000, 0.5, 0.3)
LATE = replace(GOOD, latency_s=2.0, is_right=False, band="hard")
SHED = Outcome(0, "vqa", "easy", 7.0, 0.001, 0.002, 429)


def _trial(rate_per_s: float, outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "rate_per_s": rate_per_s,
        "seed": 0,
        "window_s": 10.0,
        "client_cpu_s": 1.0,
        "client_wall_s": 10.0,
        "counted": {"process_cpu_seconds_total": 8.0, "seconds": 10.0},
        "outcomes": as_columns(outcomes),
    }


@pytest.fixture
def raw() -> dict[str, Any]:
    arrivals = {"kind": "gamma", "rate": 5.0, "duration_s": 15.0, "cv": 4}
    scenario = Scenario.model_validate({"name": "some", "description": "A test.", "arrivals": arrivals})
    dense = Target("", 0.05, {"MADTP_FLOPS_TARGET": "1"}, [_trial(2.0, [GOOD]), _trial(4.0, [GOOD, LATE])])
    pruned = Target("", 0.04, {}, [_trial(2.0, [GOOD, SHED]), _trial(2.0, [GOOD, GOOD])])
    pruned.highest = {"met_per_s": 3.5, "missed_per_s": None}
    made = result("compare", scenario, 0.5, {"dense": dense, "pruned": pruned})
    return dict(json.loads(json.dumps(made)))


def test_rounds_of_one_rate_are_one_row(raw: dict[str, Any]) -> None:
    pooled = pooled_by_rate(raw)
    assert [one["rate_per_s"] for one in pooled["dense"]] == [2.0, 4.0]
    (pruned,) = pooled["pruned"]
    assert (pruned["trials"], pruned["offered"], pruned["good"], pruned["shed"]) == (2, 4, 3, 1)
    assert pruned["goodput_per_s"] == pytest.approx(0.15)
    assert pruned["server"]["cpu_cores"] == pytest.approx(0.8)


def test_the_report_says_what_the_contract_asks_for(raw: dict[str, Any]) -> None:
    text = render(raw)
    for word in ("offered", "accepted", "good", "shed", "late", "failed", "p50", "p99.9", "accuracy", "±",
                 "flops_ratio", "density", "needed / kept", "server cores", "client cores"):  # fmt: skip
        assert word in text
    assert "| pruned | 3.5 | – |" in text
    assert "`MADTP_FLOPS_TARGET=1`" in text
    assert "gamma with gaps of coefficient of variation 4" in text


def test_every_table_row_has_as_many_cells_as_its_head(raw: dict[str, Any]) -> None:
    tables: list[list[str]] = [[]]
    for line in render(raw).splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    assert all(len({line.count("|") for line in table}) <= 1 for table in tables)


@pytest.mark.parametrize("is_lone", [True, False])
def test_figures_are_redrawn_from_the_file(tmp_path: Path, raw: dict[str, Any], is_lone: bool) -> None:
    if is_lone:
        del raw["configurations"]["pruned"]
        del raw["configurations"]["dense"]["trials"][0]
    (tmp_path / "result.json").write_text(json.dumps(raw))
    assert main(["plot", str(tmp_path / "result.json"), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "again" / "report.md").read_text() == render(raw)


@pytest.mark.parametrize("content", ["{}", "nonsense", '{"schema": 99}'])
def test_a_file_that_is_no_result_is_told(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text(content)
    assert main(["plot", str(tmp_path / "result.json")]) == 2
    assert "result.json" in capsys.readouterr().err


def test_a_trial_in_which_nothing_would_be_measured_is_refused() -> None:
    arrivals = {"kind": "gamma", "rate": 5.0, "duration_s": 15.0, "cv": 0}
    scenario = Scenario.model_validate({"name": "some", "description": "A test.", "arrivals": arrivals})
    with pytest.raises(LoadTestError, match="after the warm-up"):
        run_trial(Target("", 0.05), scenario, [], factor=0.01, limit_s=0.5, seed=0)


def test_each_configuration_comes_first_in_turn() -> None:
    assert [rotated(["a", "b", "c"], turn) for turn in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
