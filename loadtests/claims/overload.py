"""A step to several times the capacity: latency, quality before shedding, shedding, and the way back."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from loadtests.claims.bench import Bench, Plan, columns
from loadtests.claims.claim import Claim, Found, Step
from loadtests.claims.over_http import saturate
from loadtests.claims.verdict import Verdict, steady_rate_per_s
from loadtests.client import send_planned
from loadtests.errors import LoadTestError
from loadtests.load import plan_requests
from loadtests.measure import unloaded_median_s
from loadtests.outcome import OK, SHED, Reply
from loadtests.report import markdown_table
from loadtests.scenario import Scenario, Steps, read_scenario
from loadtests.scrape import between, take_snapshot
from loadtests.summary import quantile

SCENARIO = Path(__file__).parents[1] / "scenarios" / "overload.yaml"
MOST_SHED_S = 0.020
MOST_RECOVERY_S = 5.0
# Of the SLO's time that a full queue takes at capacity: the rest is for the batch that runs.
QUEUE_SHARE = 0.6
_STEADY = 16  # answers in a row at full quality: it is back
_DISTINCT = 400
_NEAR, _OUT_OF_REACH = 1.01, 1.1  # how far from a target counts as at it

TEXT = """Scenario `overload`: half of the saturated capacity, five times it for {step_s:g} s, half again.
The queue is bounded so that at capacity it is worked off in 60 % of the SLO's time: that is the
operator's part of holding an SLO. Latencies are from the scheduled send time; of what is shed, from its
sending to the last byte of its reply, as the client sees it on the same processors. Quality is the target
in force in each answer's report, at the time its batch began."""


@dataclass(frozen=True)
class Seen:
    """One reply, times in seconds from the start of the load.

    began_s: of its batch. target: in force. is_full, is_floor: whether it is all that was asked for, or as
    low as it may go. Without an answer they are None and False.
    """

    scheduled_s: float
    sent_s: float
    finished_s: float
    status: int
    has_retry_after: bool = False
    began_s: float | None = None
    target: float | None = None
    is_full: bool = False
    is_floor: bool = False


def read_seen(reply: Reply, floor: float) -> Seen:
    """What a reply tells; floor: the least target."""
    times = reply.scheduled_s, reply.sent_s, reply.finished_s, reply.status
    if reply.status != OK:
        return Seen(*times, has_retry_after=reply.retry_after is not None)
    report = json.loads(reply.body)["report"]
    target, seconds = report["flops_target"], report["seconds"]
    served = target["served"]
    # Where the floor itself is out of reach, the service says so and serves the nearest that is not.
    is_floor = served <= floor * (_OUT_OF_REACH if target["reason"] == "floor" else _NEAR)
    return Seen(
        *times,
        began_s=reply.finished_s - seconds["inference"] - seconds["postprocess"],
        target=served,
        is_full=served * _NEAR >= target["asked"],
        is_floor=is_floor,
    )


def digest(seen: Sequence[Seen], step_s: tuple[float, float], limit_s: float) -> dict[str, Any]:
    """The claim's figures; step_s: when the overload began and ended. None where nothing of the kind came.

    floor_first_s: from the first batch at the floor to the first reply that shed, negative where that was
    later. above_floor_after_shed: the share of answers whose batch began above the floor, of those that began
    while requests were shed. recovery_s: from the end of the overload to the first of 16 answers in a row at
    full quality.
    """
    began_s, ended_s = step_s
    answered = [one for one in seen if one.status == OK]
    shed = sorted(one.finished_s - one.sent_s for one in seen if one.status in SHED)
    latencies_s = sorted(one.finished_s - one.scheduled_s for one in answered)
    during = [one for one in answered if began_s <= one.scheduled_s < ended_s]
    floors_s = [one.began_s for one in during if one.is_floor and one.began_s is not None]
    sheds_s = [one.finished_s for one in seen if one.status in SHED]
    first_s = min(sheds_s) - min(floors_s) if floors_s and sheds_s else None
    pressed = [one for one in during if sheds_s and one.began_s and min(sheds_s) < one.began_s < max(sheds_s)]
    above = sum(not one.is_floor for one in pressed) / len(pressed) if pressed else None
    return {
        "sent": len(seen),
        "answered": len(answered),
        "shed": len(shed),
        "failed": len(seen) - len(answered) - len(shed),
        "limit_s": limit_s,
        "latency_s": _quantiles(latencies_s),
        "latency_during_s": _quantiles(sorted(one.finished_s - one.scheduled_s for one in during)),
        "least_target": min((one.target for one in during if one.target is not None), default=None),
        "floor_first_s": first_s,
        "above_floor_after_shed": above,
        "shed_s": _quantiles(shed),
        "shed_without_retry_after": sum(not one.has_retry_after for one in seen if one.status in SHED),
        "recovery_s": _recovery_s(answered, ended_s),
    }


def _recovery_s(answered: Sequence[Seen], ended_s: float) -> float | None:
    """The first of some answers in a row at full quality, after the overload; None where it never came."""
    after = sorted((one.began_s, one.is_full) for one in answered if one.began_s and one.began_s >= ended_s)
    for place in range(len(after)):
        run = after[place : place + _STEADY]
        if all(is_full for _, is_full in run):
            return run[0][0] - ended_s
    return None


def _quantiles(ordered: Sequence[float]) -> dict[str, float] | None:
    if not ordered:
        return None
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: quantile(ordered, part) for name, part in shares.items()}


def _steps(bench: Bench) -> Mapping[str, Step]:
    return {"overload": partial(_overload, bench)}


def _overload(bench: Bench, _: Found) -> dict[str, Any]:
    plan, scenario = bench.plan, _scenario(bench.plan)
    requests = bench.requests(min(plan.requests, _DISTINCT))
    with bench.start(bench.environment()) as url:
        median_s = unloaded_median_s(url, requests, scenario.timeout_s)
        run = saturate(url, requests, plan.requests, plan.in_flight)
    capacity_per_s = steady_rate_per_s([reply.finished_s for reply in run.replies], plan.in_flight)
    limit_s = scenario.slo.limit_s(median_s)
    max_queue = max(2, round(QUEUE_SHARE * limit_s * capacity_per_s))
    floor = min(bench.settings().flops_floor, plan.flops_target)
    schedule_s = scenario.schedule_s(factor=capacity_per_s)
    with bench.start(bench.environment(max_queue=max_queue)) as url:
        saturate(url, requests, plan.in_flight, min(plan.in_flight, max(1, max_queue // 8)))  # warm
        before = take_snapshot(url)
        start_s = time.monotonic() + 0.2
        sending = send_planned(
            url,
            requests,
            plan_requests(schedule_s, len(requests)),
            start_s=start_s,
            timeout_s=scenario.timeout_s,
        )
        cpu_s = time.process_time()
        replies = uvloop.run(sending)
        cpu_s = time.process_time() - cpu_s
        counted = between(before, take_snapshot(url))
    seen = [read_seen(reply, floor) for reply in replies]
    steps = (plan.calm_s, plan.calm_s + plan.step_s)
    found = digest(seen, steps, limit_s)
    lags_s = sorted(reply.sent_s - reply.scheduled_s for reply in replies)
    return found | {
        "scenario": scenario.model_dump(mode="json"),
        "capacity_per_s": capacity_per_s,
        "unloaded_median_s": median_s,
        "max_queue": max_queue,
        "floor": floor,
        "images_decoded": counted.get("madtp_images_decoded_total"),
        "client_cores": cpu_s / scenario.planned_s(),
        "send_lag_s": _quantiles(lags_s),
        "seconds": _by_second(seen),
    }


def _scenario(plan: Plan) -> Scenario:
    """The file's, with the plan's durations."""
    scenario = read_scenario(SCENARIO)
    if not isinstance(scenario.arrivals, Steps) or len(scenario.arrivals.steps) != 3:
        raise LoadTestError(f"{SCENARIO.name} needs three steps: before, overload, after")
    durations_s = (plan.calm_s, plan.step_s, plan.calm_s)
    steps = [
        step.model_copy(update={"duration_s": duration_s})
        for step, duration_s in zip(scenario.arrivals.steps, durations_s, strict=True)
    ]
    return scenario.model_copy(update={"arrivals": scenario.arrivals.model_copy(update={"steps": steps})})


def _by_second(seen: Sequence[Seen]) -> dict[str, list[Any]]:
    """Second by second of sending: answered, shed, the worst latency, the least target; to draw from."""
    seconds: dict[int, list[Seen]] = {}
    for one in seen:
        seconds.setdefault(int(one.scheduled_s), []).append(one)
    return columns(
        [
            {
                "second": second,
                "answered": sum(one.status == OK for one in group),
                "shed": sum(one.status in SHED for one in group),
                "worst_s": round(max(one.finished_s - one.scheduled_s for one in group), 4),
                "least_target": min((one.target for one in group if one.target is not None), default=None),
            }
            for second, group in sorted(seconds.items())
        ]
    )


def _judge(found: Found, plan: Plan) -> list[Verdict]:
    one = found["overload"]
    latency_s, shed_s = one["latency_s"], one["shed_s"]
    first_s, recovery_s = one["floor_first_s"], one["recovery_s"]
    above = one["above_floor_after_shed"]
    decoded, without = one["images_decoded"], one["shed_without_retry_after"]
    return [
        Verdict(
            "latency of accepted requests, p99",
            "none accepted" if latency_s is None else f"{_ms(latency_s['p99'])}, {one['failed']} failed",
            f"{_ms(one['limit_s'])}, the scenario's SLO",
            latency_s is not None and latency_s["p99"] <= one["limit_s"] and not one["failed"],
        ),
        Verdict(
            "the floor before the first shed",
            _said_first(one),
            f"target at {one['floor']:g} first",
            first_s is not None and first_s > 0,
        ),
        Verdict(
            "answers above the floor while requests are shed",
            "none came" if above is None else f"{100 * above:.1f} %",
            "a step may fill the queue within one batch",
            None,
        ),
        Verdict(
            "latency of what is shed",
            "nothing was shed" if shed_s is None else f"p99 {_ms(shed_s['p99'])}, most {_ms(shed_s['max'])}",
            f"p99 below {_ms(MOST_SHED_S)}",
            shed_s is not None and shed_s["p99"] < MOST_SHED_S,
        ),
        Verdict("Retry-After", f"missing in {without} of {one['shed']} shed", "in every one", without == 0),
        Verdict(
            "images decoded beyond those answered",
            "not told" if decoded is None else f"{decoded - one['answered']:.0f}",
            "none",
            decoded is not None and decoded <= one["answered"],
        ),
        Verdict(
            "full quality after the overload",
            "never" if recovery_s is None else f"after {recovery_s:.1f} s",
            f"within {MOST_RECOVERY_S:g} s",
            recovery_s is not None and recovery_s <= MOST_RECOVERY_S,
        ),
    ]


def _said_first(one: Mapping[str, Any]) -> str:
    if one["floor_first_s"] is None:
        least = one["least_target"]
        return f"least target {'–' if least is None else f'{least:.3f}'}, {one['shed']} shed"
    before = "before" if one["floor_first_s"] > 0 else "after"
    return f"{_ms(abs(one['floor_first_s']))} {before} it"


def _tables(found: Found, plan: Plan) -> list[str]:
    one = found["overload"]
    values = {
        "capacity, requests /s": f"{one['capacity_per_s']:.1f}",
        "unloaded median": _ms(one["unloaded_median_s"]),
        "max_queue": str(one["max_queue"]),
        "sent, answered, shed, failed": ", ".join(
            str(one[k]) for k in ("sent", "answered", "shed", "failed")
        ),
        "latency p50, p99, most": _all(one["latency_s"]),
        "during the overload": _all(one["latency_during_s"]),
        "shed p50, p99, most": _all(one["shed_s"]),
        "client: processors": f"{one['client_cores']:.2f}",
        "client: late p50, p99, most": _all(one["send_lag_s"]),
    }
    return markdown_table(["", "measured"], [[name, value] for name, value in values.items()])


def _all(quantiles: Mapping[str, float] | None) -> str:
    return "–" if quantiles is None else ", ".join(_ms(quantiles[name]) for name in ("p50", "p99", "max"))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


OVERLOAD = Claim("overload", "Five times the capacity for a minute", TEXT, _steps, _judge, _tables)
