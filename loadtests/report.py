"""A raw result as Markdown: counts, latencies, and goodput together with accuracy and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loadtests.measure import pooled_summary
from loadtests.scenario import Scenario

_NONE = "–"


def pooled_by_rate(raw: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Give each configuration's summaries, one a rate, upwards; trials of several rounds are one."""
    scenario = Scenario.model_validate(raw["scenario"])
    pooled = {}
    for name, configuration in raw["configurations"].items():
        groups: dict[float, list[dict[str, Any]]] = {}
        for trial in configuration["trials"]:
            groups.setdefault(trial["rate_per_s"], []).append(trial)
        pooled[name] = [
            {"rate_per_s": rate, "trials": len(trials)} | pooled_summary(trials, scenario, raw["limit_s"])
            for rate, trials in sorted(groups.items())
        ]
    return pooled


def _number(digits: int, scale: float = 1.0) -> Callable[[Any], str]:
    return lambda value: _NONE if value is None else f"{scale * value:.{digits}f}"


def _at(*path: str) -> Callable[[dict[str, Any]], Any]:
    def read(summary: dict[str, Any]) -> Any:
        value: Any = summary
        for key in path:
            value = value.get(key) if value is not None else None
        return value

    return read


def _p50_and_p99(latency_s: dict[str, float] | None) -> str:
    return _NONE if latency_s is None else f"{1000 * latency_s['p50']:.0f}, {1000 * latency_s['p99']:.0f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


_Column = tuple[str, Callable[[dict[str, Any]], Any], Callable[[Any], str]]
_COUNTS: list[_Column] = [
    ("offered /s", _at("offered_per_s"), _number(1)),
    ("**good /s**", _at("goodput_per_s"), _number(1)),
    ("offered", _at("offered"), str),
    ("accepted", _at("accepted"), str),
    ("good", _at("good"), str),
    ("late", _at("late"), str),
    ("shed", _at("shed"), str),
    ("failed", _at("failed"), str),
    ("p50 ms", _at("latency_s", "p50"), _number(0, 1000)),
    ("p90", _at("latency_s", "p90"), _number(0, 1000)),
    ("p99", _at("latency_s", "p99"), _number(0, 1000)),
    ("p99.9", _at("latency_s", "p99.9"), _number(0, 1000)),
    ("SLO", _at("slo_met"), lambda met: "met" if met else "missed"),
]
_COST: list[_Column] = [
    ("offered /s", _at("offered_per_s"), _number(1)),
    ("**good /s**", _at("goodput_per_s"), _number(1)),
    ("accuracy %", _at("accuracy"), _number(1, 100)),
    ("±", _at("accuracy_margin"), _number(1, 100)),
    ("flops_ratio", _at("cost", "flops_ratio"), _number(3)),
    ("MFLOPs a request", _at("cost", "flops"), _number(1, 1e-6)),
    ("token density", _at("cost", "token_density"), _number(3)),
    ("batch", _at("cost", "batch_size"), _number(1)),
    ("needed / kept", _at("server", "needed_per_kept"), _number(3)),
    ("run / spent", _at("server", "padding"), _number(2)),
    ("server cores", _at("server", "cpu_cores"), _number(2)),
    ("server ms a request", _at("server", "cpu_s_per_request"), _number(1, 1000)),
    ("client cores", _at("client_cpu_cores"), _number(2)),
    ("send lag p99 ms", _at("send_lag_s", "p99"), _number(1, 1000)),
]


def render(raw: dict[str, Any]) -> str:
    """Write the report of a raw result."""
    scenario, machine, slo = raw["scenario"], raw["machine"], raw["scenario"]["slo"]
    pooled = pooled_by_rate(raw)
    medians = ", ".join(
        f"{name} {1000 * configuration['unloaded_median_s']:.1f} ms"
        for name, configuration in raw["configurations"].items()
    )
    lines = [
        f"# Load test `{scenario['name']}`",
        "",
        scenario["description"].strip(),
        "",
        f"- Good: answered within {1000 * raw['limit_s']:.0f} ms of the *scheduled* send time. SLO: at least "
        f"{100 * slo['quantile']:g} % of all offered requests are good (what is shed is not), none failed.",
        f"- Unloaded medians: {medians}.",
        f"- {machine['processors']} processors ({machine['architecture']}) shared by server and client, load "
        f"average {machine['load_average'][0]:.1f} at the end, {raw['ended_at']}.",
        f"- Warm-up of {scenario['warm_up_s']:g} s left out; arrivals {_arrivals(scenario)}; tasks "
        f"{_mix(scenario['tasks'])}; difficulty {_mix(scenario['difficulty'])}; sizes "
        f"{_mix(scenario['images']['sizes'])}; formats {_mix(scenario['images']['formats'])}.",
        f"- {scenario['distinct_requests']} distinct requests, sent in turn by {scenario['processes']} "
        "process(es). Quantiles are of all answers of a row; p99.9 of fewer than 1,000 is the slowest.",
        "",
        "## Requests",
        "",
        *_table(pooled, _COUNTS),
        "",
        "## Accuracy and cost at these points",
        "",
        "Accuracy is of graded answers, ± half of its 95 % interval; `run / spent` is padding; cores are "
        "processor seconds each second, `server ms a request` processor time of an answer.",
        "",
        *_table(pooled, _COST),
        *_breakdowns(pooled),
        *_highest(raw),
        *_warnings(pooled),
        *_settings(raw),
    ]
    return "\n".join(lines) + "\n"


def _table(pooled: dict[str, list[dict[str, Any]]], columns: Sequence[_Column]) -> list[str]:
    rows = [
        [name, *(show(read(summary)) for _, read, show in columns)]
        for name, summaries in pooled.items()
        for summary in summaries
    ]
    return markdown_table(["configuration", *(title for title, _, _ in columns)], rows)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Give the lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


_Shown = Callable[[Any], str]
_BREAKDOWNS: list[tuple[str, str, _Shown]] = [
    ("Latency in ms by task, p50 and p99:", "latency_s_by_task", _p50_and_p99),
    ("Accuracy in percent by task:", "accuracy_by_task", _number(1, 100)),
    ("Accuracy in percent by difficulty:", "accuracy_by_band", _number(1, 100)),
]


def _breakdowns(pooled: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for title, key, show in _BREAKDOWNS:
        groups = sorted({group for summaries in pooled.values() for one in summaries for group in one[key]})
        if len(groups) < 2:
            continue
        rows = [
            [name, f"{one['offered_per_s']:.1f}", *(show(one[key].get(group)) for group in groups)]
            for name, summaries in pooled.items()
            for one in summaries
        ]
        lines += ["", title, "", *markdown_table(["configuration", "offered /s", *groups], rows)]
    return lines


def _highest(raw: dict[str, Any]) -> list[str]:
    rows = [
        [name, _number(1)(found["met_per_s"]), _number(1)(found["missed_per_s"])]
        for name, configuration in raw["configurations"].items()
        if (found := configuration["highest"])
    ]
    if not rows:
        return []
    titles = ["configuration", "highest rate that met the SLO, /s", "lowest that missed it, /s"]
    return ["", "## Highest rate within the SLO", "", *markdown_table(titles, rows)]


def _warnings(pooled: dict[str, list[dict[str, Any]]]) -> list[str]:
    late = [
        f"- {name} at {one['offered_per_s']:.1f}/s: the client itself was "
        f"{_milliseconds(one['send_lag_s']['p99'])} late (p99), so it was part of what was measured."
        for name, summaries in pooled.items()
        for one in summaries
        if one["client_was_bottleneck"]
    ]
    return ["", "## Doubtful", "", *late] if late else []


def _settings(raw: dict[str, Any]) -> list[str]:
    rows = [
        f"- {name}: {', '.join(f'`{key}={value}`' for key, value in configuration['settings'].items())}"
        for name, configuration in raw["configurations"].items()
        if configuration["settings"]
    ]
    return ["", "## Settings", "", *rows] if rows else []


def _mix(weights: dict[str, float]) -> str:
    total = sum(weights.values())
    if len(weights) == 1:
        return next(iter(weights))
    return ", ".join(f"{name} {100 * weight / total:.0f} %" for name, weight in weights.items())


def _arrivals(scenario: dict[str, Any]) -> str:
    arrivals = scenario["arrivals"]
    cv = arrivals.get("cv", 1)
    return str(arrivals["kind"]) + ("" if cv == 1 else f" with gaps of coefficient of variation {cv:g}")
