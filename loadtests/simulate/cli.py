"""`python -m loadtests.simulate`: one scenario as a table, and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from loadtests.arguments import positive
from loadtests.errors import LoadTestError
from loadtests.simulate.costs import Costs, read_costs
from loadtests.simulate.result import Result, summarise
from loadtests.simulate.scenarios import SCENARIOS
from loadtests.simulate.setup import Setup, simulate
from madtp_core.errors import MadtpError

_COLUMNS = [field.name for field in fields(Result) if field.name != "label"]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    about = "\n".join(f"  {name:<12}{scenario.question}" for name, scenario in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.simulate",
        description="The service's own batcher and controller on a virtual clock.",
        epilog=f"scenarios:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scenario", choices=SCENARIOS, metavar="NAME", help="see below")
    what.add_argument(
        "--measure", metavar="CHECKPOINT", help="how long a model's batches take here, written to --out"
    )
    parser.add_argument("--threads", type=int, default=1, help="of --measure")
    parser.add_argument("--costs", type=Path, help="what --measure wrote; default: made up")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals, needs and predictions")
    parser.add_argument("--target", type=positive, help="flops_ratio to hold, if not the scenario's")
    parser.add_argument(
        "--duration", type=positive, metavar="S", help="virtual seconds, if not the scenario's"
    )
    parser.add_argument("--out", type=Path, help="where to write results as JSON")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a scenario; 0, or 2 for what the user can repair."""
    options = parse(arguments)
    try:
        if options.measure:
            _measure(options)
        else:
            _run(options)
    except (LoadTestError, MadtpError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _measure(options: argparse.Namespace) -> None:
    import torch

    from loadtests.simulate.measure import measure_costs
    from madtp_core.tasks import load_model

    if not options.out:
        raise LoadTestError("--measure needs --out")
    torch.set_num_threads(options.threads)
    costs = measure_costs(load_model(options.measure))
    costs.save(options.out)
    fit = costs.model
    print(
        f"seconds = {fit.fixed_s:.2g} + {fit.per_request_s:.2g} x requests + {fit.per_token_s:.2g} x tokens; "
        f"{costs.tokens:.0f} tokens a request"
    )


def _run(options: argparse.Namespace) -> None:
    read = read_costs(options.costs) if options.costs else Costs()
    costs, rows = read.model, []
    scenario = SCENARIOS[options.scenario]
    setups = [replace(_changed(setup, options), tokens=read.tokens) for setup in scenario.setups()]
    width = max(len(setup.label) for setup in setups)
    print(f"{options.scenario:<{width}}", *(f"{name:>{_width(name)}}" for name in _COLUMNS))
    for setup in setups:
        workload = setup.workload(costs)
        result = summarise(setup, workload, simulate(setup, workload, costs))
        rows.append({"setup": asdict(setup), "result": asdict(result)})
        cells = (f"{_text(getattr(result, name)):>{_width(name)}}" for name in _COLUMNS)
        print(f"{result.label:<{width}}", *cells, flush=True)
    if options.out:
        report = {"scenario": options.scenario, "costs": asdict(costs), "runs": rows}
        options.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def _changed(setup: Setup, options: argparse.Namespace) -> Setup:
    target = setup.target if options.target is None else options.target
    return replace(
        setup,
        seed=options.seed,
        target=target,
        floor=min(setup.floor, target),
        duration_s=options.duration or setup.duration_s,
    )


def _width(name: str) -> int:
    return max(len(name), 7)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
