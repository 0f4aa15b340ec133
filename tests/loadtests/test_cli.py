"""The command line: what is asked for reaches the comparison, and what is wrong is told."""

from pathlib import Path
from typing import Any

import pytest

import loadtests.cli as cli
from loadtests.compare import Comparison
from loadtests.measure import Target, result
from loadtests.scenario import Scenario

SIDE_BY_SIDE = Path(__file__).parents[2] / "loadtests" / "comparisons" / "side_by_side.yaml"


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Comparison, Scenario]]:
    """What `compare` was called with; it measures nothing."""
    calls: list[tuple[Comparison, Scenario]] = []

    def compare(comparison: Comparison, scenario: Scenario, say: Any, *, keep: Any) -> dict[str, Any]:
        calls.append((comparison, scenario))
        raw = result("compare", scenario, 1.0, {"dense": Target("", 0.1)})
        keep(raw)
        return raw

    monkeypatch.setattr(cli, "compare", compare)
    return calls


def test_a_comparison_is_run_as_its_file_says(
    compared: list[tuple[Comparison, Scenario]], tmp_path: Path
) -> None:
    assert cli.main(["compare", str(SIDE_BY_SIDE), "--out", str(tmp_path)]) == 0
    ((comparison, scenario),) = compared
    assert (comparison.loads, comparison.rounds, comparison.search) == ([0.5, 1, 1.5, 2, 3, 5], 2, True)
    assert scenario.planned_s() == 25
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "report.md", "report.png"}


def test_a_comparison_can_be_made_shorter(
    compared: list[tuple[Comparison, Scenario]], tmp_path: Path
) -> None:
    short = ["--loads", "1", "3", "--rounds", "1", "--seconds", "15", "--no-search"]
    assert cli.main(["compare", str(SIDE_BY_SIDE), *short, "--out", str(tmp_path)]) == 0
    ((comparison, scenario),) = compared
    assert (comparison.loads, comparison.rounds, comparison.search) == ([1.0, 3.0], 1, False)
    assert (scenario.planned_s(), scenario.warm_up_s) == (15.0, 3.0)


@pytest.mark.parametrize("wrong", [["--loads", "0"], ["--rounds", "0"], ["--seconds", "inf"]])
def test_numbers_that_make_no_sense_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", str(SIDE_BY_SIDE), *wrong])
    assert "must be" in capsys.readouterr().err


def test_what_the_user_can_repair_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no-such-file.yaml"]) == 2
    assert capsys.readouterr().err == "loadtests: cannot read no-such-file.yaml: No such file or directory\n"
