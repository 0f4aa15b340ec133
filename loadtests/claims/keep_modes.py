"""Both keep modes under the same open-loop load."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import Claim, Found, Step
from loadtests.claims.verdict import Verdict
from loadtests.compare import compare, read_comparison
from loadtests.report import markdown_table, pooled_by_rate
from service.settings import Settings

COMPARISON = Path(__file__).parents[1] / "comparisons" / "keep_modes.yaml"
_LIKE = 0.02  # goodputs that differ by less are equal, and accuracy decides

TEXT = """`python -m loadtests compare loadtests/comparisons/keep_modes.yaml`: two services with nothing
but their keep mode changed, loaded in turn with the same open-loop requests. A load of 1 is what max-keep
answers one at a time."""


def _steps(bench: Bench) -> Mapping[str, Step]:
    return {"compare": partial(_compare, bench)}


def _compare(bench: Bench, _: Found) -> dict[str, Any]:
    plan = bench.plan
    comparison, scenario = read_comparison(COMPARISON)
    comparison = comparison.model_copy(
        update={
            "loads": list(plan.loads),
            "settings": comparison.settings | bench.environment(),
            "search": plan.load_s >= scenario.planned_s(),  # shorter trials find no rate
            "rounds": min(plan.rounds, comparison.rounds),
        }
    )
    scenario = scenario.lasting(plan.load_s).model_copy(
        update={
            "tasks": {bench.route: 1.0},
            "distinct_requests": min(plan.requests, scenario.distinct_requests),
        }
    )
    return compact(compare(comparison, scenario, bench.say, bench.start))


def compact(raw: dict[str, Any]) -> dict[str, Any]:
    """What tables and verdicts are made of: pooled summaries by rate, single requests left out."""
    pooled = pooled_by_rate(raw)
    return {
        "limit_s": raw["limit_s"],
        "scenario": raw["scenario"],
        "configurations": {
            name: {
                "settings": one["settings"],
                "unloaded_median_s": one["unloaded_median_s"],
                "highest": one["highest"],
                "by_rate": pooled[name],
            }
            for name, one in raw["configurations"].items()
        },
    }


def better(configurations: Mapping[str, Any]) -> str:
    """The one that answers more within the SLO: by the search for the highest rate, else at the last load.

    Where they are alike, the one with the better accuracy there.
    """
    rates = {name: _held_per_s(one) for name, one in configurations.items()}
    most = max(rates.values())
    alike = [name for name, rate in rates.items() if rate >= (1 - _LIKE) * most]
    return max(alike, key=lambda name: configurations[name]["by_rate"][-1]["accuracy"] or 0.0)


def _held_per_s(one: Mapping[str, Any]) -> float:
    if one["highest"] is not None:
        return float(one["highest"]["met_per_s"])
    return float(one["by_rate"][-1]["goodput_per_s"])


def _judge(found: Found, plan: Plan) -> list[Verdict]:
    configurations = found["compare"]["configurations"]
    best, default = better(configurations), Settings.model_fields["keep_mode"].default
    rates = ", ".join(f"{name} {_held_per_s(one):.1f} /s" for name, one in configurations.items())
    return [
        Verdict("the default keep mode", f"{best} is better ({rates})", f"it is {default}", best == default)
    ]


def _tables(found: Found, plan: Plan) -> list[str]:
    titles = [
        "keep mode", "offered /s", "good /s", "late", "shed", "failed", "p50 ms", "p99 ms", "accuracy %",
        "flops_ratio", "batch", "run / spent", "server cores", "client cores",
    ]  # fmt: skip
    rows = []
    for name, configuration in found["compare"]["configurations"].items():
        for one in configuration["by_rate"]:
            latency_s, cost, server = one["latency_s"] or {}, one["cost"] or {}, one["server"]
            rows.append(
                [
                    name,
                    f"{one['offered_per_s']:.1f}",
                    f"{one['goodput_per_s']:.1f}",
                    *(str(one[count]) for count in ("late", "shed", "failed")),
                    *(_shown(latency_s.get(quantile), 0, 1000) for quantile in ("p50", "p99")),
                    _shown(one["accuracy"], 1, 100),
                    _shown(cost.get("flops_ratio"), 3),
                    _shown(cost.get("batch_size"), 1),
                    _shown(server.get("padding"), 2),
                    _shown(server.get("cpu_cores"), 2),
                    _shown(one["client_cpu_cores"], 2),
                ]
            )
    return markdown_table(titles, rows)


def _shown(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{scale * value:.{digits}f}"


KEEP_MODES = Claim("keep-modes", "Both keep modes under the same load", TEXT, _steps, _judge, _tables)
