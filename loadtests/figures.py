"""Figures of a raw result: curves over rates, or one trial over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtests.outcome import OK, SHED, from_columns
from loadtests.report import pooled_by_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_BINS = 40
_DPI = 110


def draw(raw: dict[str, Any], path: Path) -> None:
    """Write the figure of a result as PNG: a lone trial over time, anything else as curves over the rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trials = [trial for configuration in raw["configurations"].values() for trial in configuration["trials"]]
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{raw['scenario']['name']}: good within {1000 * raw['limit_s']:.0f} ms")
    if len(trials) == 1:
        _over_time(raw, trials[0], axes.flat)
    else:
        _over_rates(raw, axes.flat)
    figure.savefig(path, dpi=_DPI, format="png")


def _over_rates(raw: dict[str, Any], axes: Any) -> None:
    goodput, latency, accuracy, flops = axes
    pooled = pooled_by_rate(raw)
    for name, summaries in pooled.items():
        offered = [one["offered_per_s"] for one in summaries]
        answered = [one for one in summaries if one["latency_s"]]
        at = [one["offered_per_s"] for one in answered]
        goodput.plot(offered, [one["goodput_per_s"] for one in summaries], "o-", label=name, markersize=3)
        latency.plot(at, [1000 * one["latency_s"]["p99"] for one in answered], "o-", markersize=3)
        graded = [one for one in answered if one["accuracy"] is not None]
        accuracy.plot(
            [one["goodput_per_s"] for one in graded],
            [100 * one["accuracy"] for one in graded],
            "o-",
            markersize=3,
        )
        costed = [one for one in answered if one["cost"]]
        flops.plot(
            [one["offered_per_s"] for one in costed],
            [one["cost"]["flops_ratio"] for one in costed],
            "o-",
            markersize=3,
        )
    top = max((one["offered_per_s"] for summaries in pooled.values() for one in summaries), default=1)
    goodput.plot([0, top], [0, top], ":", color="grey", label="all offered")
    goodput.legend(fontsize="small")
    latency.axhline(1000 * raw["limit_s"], linestyle=":", color="grey")
    latency.set_yscale("log")
    _plain_ticks(latency.yaxis)
    _label(goodput, "Goodput", "offered, requests a second", "good, requests a second")
    _label(latency, "Latency of answers", "offered, requests a second", "p99, ms")
    _label(accuracy, "Accuracy at that goodput", "good, requests a second", "right answers, %")
    _label(flops, "Cost of an answer", "offered, requests a second", "operations spent / dense")


def _over_time(raw: dict[str, Any], trial: dict[str, Any], axes: Any) -> None:
    rates, scatter, distribution, batches = axes
    outcomes = from_columns(trial["outcomes"])
    limit_s = raw["limit_s"]
    answered = [one for one in outcomes if one.status == OK]
    kinds = {
        "good": [one.scheduled_s for one in answered if one.latency_s <= limit_s],
        "late": [one.scheduled_s for one in answered if one.latency_s > limit_s],
        "shed": [one.scheduled_s for one in outcomes if one.status in SHED],
        "failed": [one.scheduled_s for one in outcomes if one.status != OK and one.status not in SHED],
    }
    start_s = min((one.scheduled_s for one in outcomes), default=0.0)
    end_s = start_s + trial["window_s"]
    weights = [[_BINS / trial["window_s"]] * len(times_s) for times_s in kinds.values()]
    rates.hist(
        list(kinds.values()),
        bins=_BINS,
        range=(start_s, end_s),
        weights=weights,
        stacked=True,
        label=list(kinds),
        color=["tab:green", "tab:orange", "tab:grey", "tab:red"],
    )
    rates.legend(fontsize="small")
    times_s = [one.scheduled_s for one in answered]
    latencies_ms = [1000 * one.latency_s for one in answered]
    scatter.plot(times_s, latencies_ms, ".", markersize=2)
    scatter.axhline(1000 * limit_s, linestyle=":", color="grey")
    scatter.set_yscale("log")
    _plain_ticks(scatter.yaxis)
    ordered = sorted(latencies_ms)
    distribution.plot(ordered, [100 * (place + 1) / len(ordered) for place in range(len(ordered))])
    distribution.axvline(1000 * limit_s, linestyle=":", color="grey")
    distribution.set_xscale("log")
    _plain_ticks(distribution.xaxis)
    sized = [one for one in answered if one.batch_size is not None]
    batches.plot([one.scheduled_s for one in sized], [one.batch_size for one in sized], ".", markersize=2)
    _label(rates, "Requests by what became of them", "scheduled, s", "requests a second")
    _label(scatter, "Latency of answers", "scheduled, s", "ms")
    _label(distribution, "Distribution of latency", "ms", "answers within it, %")
    _label(batches, "Batch that a request ran in", "scheduled, s", "requests")


def _plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _label(axes: Axes, title: str, below: str, left: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(below, fontsize="small")
    axes.set_ylabel(left, fontsize="small")
    axes.grid(alpha=0.3)
