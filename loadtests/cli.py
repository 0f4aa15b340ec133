"""`python -m loadtests`: run, search, compare, claims, plot, ceiling."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from loadtests.arguments import count, positive
from loadtests.ceiling import client_ceiling
from loadtests.claims.options import add_options as add_claims_options
from loadtests.compare import brief, compare, find_highest, read_comparison
from loadtests.errors import LoadTestError
from loadtests.figures import draw
from loadtests.measure import SCHEMA, Target, result, run_trial, unloaded_median_s
from loadtests.report import render
from loadtests.requests import PreparedRequest, prepare_requests
from loadtests.scenario import Scenario, read_scenario
from loadtests.server import is_ready, serving

DEFAULT_URL = "http://127.0.0.1:8000"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives 1 if a request failed, 2 if the user can repair something."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.command(options)
    except LoadTestError as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 2
    return status


def _unloaded(url: str, scenario: Scenario, requests: list[PreparedRequest]) -> tuple[Target, float]:
    """The service as it answers one request at a time, and the seconds within which an answer is good."""
    target = Target(url, unloaded_median_s(url, requests, scenario.timeout_s))
    limit_s = scenario.slo.limit_s(target.unloaded_median_s)
    _say(f"unloaded median {1000 * target.unloaded_median_s:.1f} ms; good within {1000 * limit_s:.0f} ms")
    return target, limit_s


def _run(options: argparse.Namespace) -> int:
    scenario = read_scenario(options.scenario)
    requests = prepare_requests(scenario)
    with _service(options.url) as url:
        target, limit_s = _unloaded(url, scenario, requests)
        factor = _factor(scenario, options.rate, target.unloaded_median_s)
        trial = run_trial(target, scenario, requests, factor=factor, limit_s=limit_s, seed=scenario.seed)
    _say(brief(trial["summary"]))
    _write(result("run", scenario, limit_s, {"service": target}), _folder(scenario.name, options.out))
    return 1 if trial["summary"]["failed"] else 0


def _search(options: argparse.Namespace) -> int:
    scenario = read_scenario(options.scenario)
    requests = prepare_requests(scenario)
    with _service(options.url) as url:
        target, limit_s = _unloaded(url, scenario, requests)
        find_highest(target, scenario, requests, limit_s=limit_s, say=_say)
    assert target.highest is not None, "the search notes what it found"
    _say(f"highest rate that met the SLO: {target.highest['met_per_s']:.1f}/s")
    _write(result("search", scenario, limit_s, {"service": target}), _folder(scenario.name, options.out))
    return 0


def _compare(options: argparse.Namespace) -> int:
    comparison, scenario = read_comparison(options.comparison)
    wanted = {"loads": options.loads, "rounds": options.rounds, "search": options.search}
    comparison = comparison.model_copy(update={name: it for name, it in wanted.items() if it is not None})
    if options.seconds is not None:
        scenario = scenario.lasting(options.seconds)
    folder = _folder(comparison.name, options.out)
    _write_views(compare(comparison, scenario, _say, keep=lambda raw: _write_raw(raw, folder)), folder)
    return 0


def _claims(options: argparse.Namespace) -> int:
    from loadtests.claims.cli import run_claims  # loads torch, which sending processes do without

    return run_claims(options)


def _plot(options: argparse.Namespace) -> int:
    try:
        raw = json.loads(options.result.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadTestError(f"{options.result} is not a result of ours: {error}") from error
    if raw.get("schema") != SCHEMA:
        raise LoadTestError(f"{options.result} has schema {raw.get('schema')!r}, wanted {SCHEMA}")
    folder = options.out or options.result.parent
    folder.mkdir(parents=True, exist_ok=True)
    _write_views(raw, folder)
    return 0


def _ceiling(options: argparse.Namespace) -> int:
    found = client_ceiling(options.processes, _say)
    _say(f"this client holds {found.met:.0f} requests a second with {options.processes} process(es)")
    return 0


@contextmanager
def _service(url: str | None) -> Iterator[str]:
    """Give the address asked for; without one, that of `make serve` if it runs, else of one of our own."""
    if url is not None:
        yield url.rstrip("/")
    elif is_ready(DEFAULT_URL):
        _say(f"using the service on {DEFAULT_URL}")
        yield DEFAULT_URL
    else:
        _say(f"nothing is ready on {DEFAULT_URL}: starting a service of our own")
        with serving({}) as started:
            yield started


def _factor(scenario: Scenario, rate_per_s: float | None, median_s: float) -> float:
    if rate_per_s is not None:
        return rate_per_s / scenario.mean_rate()
    return 1 / median_s if scenario.rate_unit == "unloaded" else 1.0


def _folder(name: str, out: Path | None) -> Path:
    folder = out or Path("runs", "loadtests", f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(raw: dict[str, Any], folder: Path) -> None:
    _write_raw(raw, folder)
    _write_views(raw, folder)


def _write_raw(raw: dict[str, Any], folder: Path) -> None:
    (folder / "result.json").write_text(json.dumps(raw, separators=(",", ":")) + "\n", "utf-8")


def _write_views(raw: dict[str, Any], folder: Path) -> None:
    (folder / "report.md").write_text(render(raw), "utf-8")
    draw(raw, folder / "report.png")
    _say(f"report: {folder / 'report.md'}")


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests", description="Open-loop load tests.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    run = add("run", _run, "Put a scenario on a service and report.")
    search = add("search", _search, "Find the highest rate at which a scenario meets its SLO.")
    for sub in (run, search):
        sub.add_argument("scenario", type=Path, help="a YAML file, see loadtests/scenarios")
        sub.add_argument("--url", help=f"the service ({DEFAULT_URL} if it is ready, else one is started)")
    run.add_argument(
        "--rate", type=positive, help="mean rate in requests a second, instead of the scenario's"
    )
    sub = add("compare", _compare, "Start several configurations and load them in turn.")
    sub.add_argument("comparison", type=Path, help="a YAML file, see loadtests/comparisons")
    sub.add_argument("--loads", type=positive, nargs="+", help="instead of the file's")
    sub.add_argument("--rounds", type=count, help="instead of the file's")
    sub.add_argument("--search", action=argparse.BooleanOptionalAction, help="instead of the file's")
    sub.add_argument("--seconds", type=positive, help="of a trial, instead of the scenario's")
    for sub in commands.choices.values():
        sub.add_argument(
            "--out", type=Path, help="folder of result.json, report.md, report.png (runs/loadtests/...)"
        )
    sub = add("claims", _claims, "Measure what the service must show, side by side, and say what is met.")
    add_claims_options(sub)
    sub = add("plot", _plot, "Write report and figure again from a result.json.")
    sub.add_argument("result", type=Path, help="a result.json")
    sub.add_argument("--out", type=Path, help="folder to write to (that of the result)")
    sub = add("ceiling", _ceiling, "Measure how many requests a second this client can send here.")
    sub.add_argument("--processes", type=count, default=1, help="sending processes (%(default)s)")
    return parser
