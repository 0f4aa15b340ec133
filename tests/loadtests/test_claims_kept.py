"""How claims are kept, gone on with and shown: on a claim that measures nothing."""

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import Claim, Step, measure, read
from loadtests.claims.cli import CLAIMS, measure_claims
from loadtests.claims.options import NAMES, add_options
from loadtests.claims.section import plan_of, render
from loadtests.claims.verdict import Verdict
from loadtests.errors import LoadTestError


def _judge(found: Mapping[str, Any], plan: Plan) -> list[Verdict]:
    return [Verdict(name, str(value), "1", value == 1) for name, value in found.items()]


class Steps:
    """Steps `first` and `second`, which tells what it was told; `second` may be broken."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.is_broken = False

    def __call__(self, bench: Bench) -> Mapping[str, Step]:
        return {"first": self._first, "second": self._second}

    def _first(self, found: Mapping[str, Any]) -> int:
        self.calls.append("first")
        return 1

    def _second(self, found: Mapping[str, Any]) -> int:
        self.calls.append("second")
        if self.is_broken:
            raise ZeroDivisionError
        return int(found["first"]) + 1


@pytest.fixture
def steps() -> Steps:
    return Steps()


@pytest.fixture
def toy(steps: Steps) -> Claim:
    return Claim("toy", "A toy", "On {samples}\nsamples.", steps, _judge, lambda found, plan: ["| a table |"])


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def bench(said: list[str]) -> Bench:
    return Bench(Plan("nowhere", samples=7), said.append)


def test_a_step_is_told_what_those_before_it_gave(toy: Claim, bench: Bench, tmp_path: Path) -> None:
    assert measure(toy, bench, tmp_path) == {"first": 1, "second": 2}


def test_what_was_kept_is_not_measured_again(
    toy: Claim, steps: Steps, bench: Bench, tmp_path: Path, said: list[str]
) -> None:
    steps.is_broken = True
    with pytest.raises(ZeroDivisionError):
        measure(toy, bench, tmp_path)
    steps.is_broken = False
    assert measure(toy, bench, tmp_path) == {"first": 1, "second": 2}
    assert steps.calls == ["first", "second", "second"]
    assert "toy, first: kept" in said


def test_a_claim_that_was_broken_off_is_no_part_of_the_section(
    toy: Claim, steps: Steps, bench: Bench, tmp_path: Path
) -> None:
    steps.is_broken = True
    with pytest.raises(ZeroDivisionError):
        measure(toy, bench, tmp_path)
    assert "toy" not in render([toy], tmp_path, "command")


def test_results_of_another_plan_are_not_gone_on_with(toy: Claim, bench: Bench, tmp_path: Path) -> None:
    measure(toy, bench, tmp_path)
    other = Bench(Plan("nowhere", samples=8), print)
    with pytest.raises(LoadTestError, match="other options"):
        measure(toy, other, tmp_path)


@pytest.mark.parametrize("content", ["[]", "{", '{"schema": 0}'])
def test_a_file_that_is_no_result_is_refused(toy: Claim, tmp_path: Path, content: str) -> None:
    (tmp_path / "toy.json").write_text(content)
    with pytest.raises(LoadTestError, match="not a claim's result"):
        read(toy, tmp_path)


def test_a_plan_is_what_its_result_says_of_it(toy: Claim, bench: Bench, tmp_path: Path) -> None:
    measure(toy, bench, tmp_path)
    raw = read(toy, tmp_path)
    assert raw is not None
    assert plan_of(raw) == bench.plan


def test_each_figure_stands_against_its_bar(
    toy: Claim, bench: Bench, tmp_path: Path, said: list[str]
) -> None:
    measure_claims([toy], bench, tmp_path)
    assert said[-2:] == ["first: 1 (bar: 1): met", "second: 2 (bar: 1): not met"]
    text = render([toy, *CLAIMS.values()], tmp_path, "a command")
    assert text.startswith("## The service against its bars\n    a command\n")
    assert "| toy | first | 1 | 1 | met |\n| toy | second | 2 | 1 | **not met** |" in text
    assert "### A toy\nOn 7\nsamples.\n" in text
    assert text.endswith("\n| a table |\n")


def test_the_command_knows_every_claim_by_its_name() -> None:
    assert tuple(CLAIMS) == NAMES
    parser = ArgumentParser()
    add_options(parser)
    assert parser.parse_args(["--only", "keeping"]).only == ["keeping"]


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
def test_every_text_knows_its_figures(claim: Claim) -> None:
    plan = Plan("nowhere")
    assert "{" not in claim.text.format(**plan.about(), size=32)
