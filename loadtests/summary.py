"""Counts, latencies, accuracy and cost of what was sent after the warm-up."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadtests.outcome import OK, SHED, Outcome
from loadtests.scenario import Slo

QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
MAX_LAG_SHARE = 0.1  # of the SLO's limit: beyond it the client was part of what was measured


def quantile(ordered: Sequence[float], share: float) -> float:
    """Give the smallest of the values, sorted upwards, that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def is_good(outcome: Outcome, limit_s: float) -> bool:
    """Say whether a request was answered within the limit."""
    return outcome.status == OK and outcome.latency_s <= limit_s


def summarise(outcomes: Sequence[Outcome], *, window_s: float, slo: Slo, limit_s: float) -> dict[str, Any]:
    """Measure requests sent in a window of `window_s` seconds, warm-up already left out.

    offered = good + late + shed + failed: answered within `limit_s`, answered after it, 429 or 503, all else.
    The SLO is met when the good are at least `slo.quantile` of the offered, so what was shed counts as never
    answered, and nothing failed. Latencies are of answers.
    """
    answered = [outcome for outcome in outcomes if outcome.status == OK]
    good = [outcome for outcome in answered if is_good(outcome, limit_s)]
    by_task = _groups(answered, lambda outcome: outcome.task)
    shed = sum(outcome.status in SHED for outcome in outcomes)
    failed = len(outcomes) - len(answered) - shed
    lags_s = sorted(outcome.send_lag_s for outcome in outcomes)
    lag_s = quantile(lags_s, 0.99) if lags_s else 0.0
    return {
        "window_s": window_s,
        "offered": len(outcomes),
        "accepted": len(outcomes) - shed,
        "good": len(good),
        "late": len(answered) - len(good),
        "shed": shed,
        "failed": failed,
        "offered_per_s": len(outcomes) / window_s,
        "goodput_per_s": len(good) / window_s,
        "good_share": len(good) / len(outcomes) if outcomes else None,
        "slo_met": bool(outcomes) and len(good) >= slo.quantile * len(outcomes) and not failed,
        "statuses": _statuses(outcomes),
        "latency_s": latencies(answered),
        "latency_s_by_task": {task: latencies(group) for task, group in by_task.items()},
        "accuracy": accuracy(answered),
        "accuracy_margin": accuracy_margin(answered),
        "accuracy_by_task": _accuracies(by_task),
        "accuracy_by_band": _accuracies(_groups(answered, lambda outcome: outcome.band)),
        "cost": cost(answered),
        "send_lag_s": {"p99": lag_s, "max": lags_s[-1] if lags_s else 0.0},
        "client_was_bottleneck": lag_s > MAX_LAG_SHARE * limit_s,
    }


def latencies(answered: Sequence[Outcome]) -> dict[str, float] | None:
    """Give quantiles and the largest of the latencies, in seconds; None without answers."""
    ordered = sorted(outcome.latency_s for outcome in answered)
    if not ordered:
        return None
    return {name: quantile(ordered, share) for name, share in QUANTILES.items()} | {"max": ordered[-1]}


def accuracy(outcomes: Sequence[Outcome]) -> float | None:
    """Give the share of right answers among those that could be graded; None where none could."""
    graded = [outcome.is_right for outcome in outcomes if outcome.is_right is not None]
    return sum(graded) / len(graded) if graded else None


def accuracy_margin(outcomes: Sequence[Outcome]) -> float | None:
    """Give half of the width of the accuracy's 95 % interval; None where nothing could be graded.

    Agresti and Coull's, which is not empty where all are right. Distinct requests count: one that was sent
    again says nothing new.
    """
    share = accuracy(outcomes)
    if share is None:
        return None
    count = len({outcome.request for outcome in outcomes if outcome.is_right is not None})
    padded = (share * count + 2) / (count + 4)
    return 1.96 * math.sqrt(padded * (1 - padded) / (count + 4))


def cost(answered: Sequence[Outcome]) -> dict[str, float] | None:
    """Give what the answers said they cost, in the mean of a request; None where they sent no reports.

    `flops_ratio` is all operations spent / all that dense would have taken, not a mean of ratios.
    """
    reports = [outcome for outcome in answered if outcome.flops is not None]
    if not reports:
        return None
    flops = sum(outcome.flops or 0 for outcome in reports)
    dense_flops = sum(outcome.dense_flops or 0 for outcome in reports)
    means: dict[str, list[float | None]] = {
        "batch_size": [outcome.batch_size for outcome in reports],
        "token_density": [outcome.token_density for outcome in reports],
        "difficulty": [outcome.difficulty for outcome in reports],
    }
    known = {name: [value for value in values if value is not None] for name, values in means.items()}
    return {
        "flops": flops / len(reports),
        "flops_ratio": flops / dense_flops if dense_flops else 1.0,
        **{name: statistics.fmean(values) for name, values in known.items() if values},
    }


def _groups(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(key(outcome), []).append(outcome)
    return dict(sorted(groups.items()))


def _accuracies(groups: Mapping[str, Sequence[Outcome]]) -> dict[str, float]:
    graded = {name: accuracy(group) for name, group in groups.items()}
    return {name: share for name, share in graded.items() if share is not None}


def _statuses(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Count replies by status, and requests without one by what went wrong."""
    counts = Counter(outcome.problem or str(outcome.status) for outcome in outcomes)
    return dict(sorted(counts.items()))
