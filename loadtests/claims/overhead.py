"""What the service costs on top of its engine: saturated throughput, latency of one request at a time."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import Claim, Found, Step
from loadtests.claims.full_size import write_full_size
from loadtests.claims.in_process import prepared_requests, running_engine
from loadtests.claims.over_http import engine_s, one_by_one, saturate
from loadtests.claims.verdict import Verdict, steady_rate_per_s
from loadtests.report import markdown_table
from loadtests.scrape import between, server_side, take_snapshot
from loadtests.summary import quantile
from madtp_core.tasks.plain import plain_task
from service.model import Model

LEAST_SHARE = 0.95
MOST_ADDED_S = 0.005
PICTURES = {
    "96x96 png": ("96x96", "png"),
    "640x480 png": ("640x480", "png"),
    "640x480 jpeg": ("640x480", "jpeg"),
}
_DISTINCT = 400

TEXT = """Saturated: as many requests as fill two batches are always under way over HTTP, one forward
thread; service and comparison take turns in {rounds} rounds on the same requests, and the medians of the
rounds are compared. The full-size model is a BLIP-base VQA with random weights, run dense in batches of
{full_size_batch}, against its `predict` on queries made beforehand. The demo model is compared with the
service's own engine and preprocessing in this process, which has both processors to itself: over HTTP the
client shares them."""


def _steps(bench: Bench) -> Mapping[str, Step]:
    return {
        "full size": partial(_full_size, bench),
        "demo": partial(_demo, bench),
        "latency": partial(_latencies, bench),
    }


def _full_size(bench: Bench, _: Found) -> dict[str, Any]:
    plan = bench.plan
    count, size = plan.full_size_requests, plan.full_size_batch
    requests = bench.requests(min(count, _DISTINCT), tasks={"vqa": 1.0}, encoding="json")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = str(Path(folder, "full-size"))
        write_full_size(Path(checkpoint), plan.full_size)
        model = bench.load(checkpoint)
        settings = bench.settings(max_batch_size=size)
        with running_engine("full-size", model, settings) as serving:
            queries = [one.query for one in prepared_requests(serving, requests)]
        environment = bench.environment(
            checkpoint,
            max_batch_size=size,
            warm_up_s=0,
            request_deadline_s=600,
            engine_stall_s=600,
        )
        with bench.start(environment) as url:
            rounds = []
            for _turn in range(plan.rounds):
                rounds.append(
                    _service_round(url, requests, count, 2 * size)
                    | {"alone_per_s": bare_rate_per_s(model, queries, count, size)}
                )
    return {"rounds": rounds}


def bare_rate_per_s(model: Model, queries: list[Any], count: int, size: int) -> float:
    """Requests a second that a model answers in full batches with nothing else done, after one to warm up."""
    task = plain_task("vqa")
    batches = [
        [queries[(start + place) % len(queries)] for place in range(min(size, count - start))]
        for start in range(0, count, size)
    ]
    for number, batch in enumerate([batches[0], *batches]):
        if number == 1:
            began_s = time.monotonic()
        task.predict(model, batch, prune_temperature=0.0, keep_mode="max_keep")
    return count / (time.monotonic() - began_s)


def _demo(bench: Bench, _: Found) -> dict[str, Any]:
    plan = bench.plan
    requests = bench.requests(min(plan.requests, _DISTINCT), encoding="json")
    every = [requests[number % len(requests)] for number in range(plan.requests)]
    rounds = []
    with bench.start(bench.environment()) as url:
        for _turn in range(plan.rounds):
            served = _service_round(url, requests, plan.requests, plan.in_flight)
            with running_engine(bench.name, bench.model, bench.settings()) as serving:
                answers = serving.serve(
                    bench.route, prepared_requests(serving, every), in_flight=plan.in_flight
                )
            finished_s = [answer.finished_s for answer in answers]
            rounds.append(served | {"alone_per_s": steady_rate_per_s(finished_s, plan.in_flight)})
    return {"rounds": rounds}


def _service_round(url: str, requests: Any, count: int, in_flight: int) -> dict[str, Any]:
    before = take_snapshot(url)
    run = saturate(url, requests, count, in_flight)
    counted = server_side(between(before, take_snapshot(url)))
    return {
        "service_per_s": steady_rate_per_s([reply.finished_s for reply in run.replies], in_flight),
        "client_cores": run.client_cores,
        "server_cores": counted.get("cpu_cores"),
        "batch_size": counted.get("batch_size"),
    }


def _latencies(bench: Bench, _: Found) -> dict[str, Any]:
    with bench.start(bench.environment()) as url:
        return {name: _latency(bench, url, *kind) for name, kind in PICTURES.items()}


def _latency(bench: Bench, url: str, size: str, picture_format: str) -> dict[str, Any]:
    count = bench.plan.latency_requests
    images = {"sizes": {size: 1.0}, "formats": {picture_format: 1.0}}
    requests = bench.requests(min(count, 50), images=images)
    one_by_one(url, requests, min(count, 20))  # connections, caches
    replies = one_by_one(url, requests, count)
    latencies_s = [reply.finished_s - reply.sent_s for reply in replies]
    engines_s = [engine_s(reply) for reply in replies]
    added_s = sorted(whole - engine for whole, engine in zip(latencies_s, engines_s, strict=True))
    return {
        "latency_s": statistics.median(latencies_s),
        "engine_s": statistics.median(engines_s),
        "added_s": {"p50": quantile(added_s, 0.5), "p95": quantile(added_s, 0.95)},
        "body_bytes": statistics.mean(len(request.body) for request in requests),
    }


def share(found: Found, name: str) -> float:
    """The service's saturated throughput over that of what it is compared with, by medians of the rounds."""
    return _median(found[name], "service_per_s") / _median(found[name], "alone_per_s")


def _median(step: Mapping[str, Any], name: str) -> float:
    return float(statistics.median(one[name] for one in step["rounds"]))


def _judge(found: Found, plan: Plan) -> list[Verdict]:
    verdicts = []
    for name, against in (
        ("full size", "the bare engine"),
        ("demo", "engine and preprocessing in one process"),
    ):
        cores = _median(found[name], "client_cores")
        verdicts.append(
            Verdict(
                f"saturated throughput, {name}, against {against}",
                f"{100 * share(found, name):.1f} %, the client taking {cores:.2f} processors",
                f"at least {100 * LEAST_SHARE:.0f} %",
                share(found, name) >= LEAST_SHARE,
            )
        )
    for name in PICTURES:
        added_s = found["latency"][name]["added_s"]
        verdicts.append(
            Verdict(
                f"latency of one at a time above engine time, {name}",
                f"{1000 * added_s['p50']:.1f} ms in the median, {1000 * added_s['p95']:.1f} ms at p95",
                f"median at most {1000 * MOST_ADDED_S:.0f} ms",
                added_s["p50"] <= MOST_ADDED_S,
            )
        )
    return verdicts


def _tables(found: Found, plan: Plan) -> list[str]:
    titles = ["model", "round", "service /s", "compared /s", "share", "batch", "server cores", "client cores"]
    rows = [
        [
            name,
            str(number),
            f"{one['service_per_s']:.2f}",
            f"{one['alone_per_s']:.2f}",
            f"{one['service_per_s'] / one['alone_per_s']:.3f}",
            _shown(one["batch_size"]),
            _shown(one["server_cores"]),
            f"{one['client_cores']:.2f}",
        ]
        for name in ("full size", "demo")
        for number, one in enumerate(found[name]["rounds"], start=1)
    ]
    latencies = [
        [
            name,
            f"{one['body_bytes'] / 1000:.0f}",
            *(f"{1000 * one[part]:.1f}" for part in ("latency_s", "engine_s")),
            *(f"{1000 * one['added_s'][part]:.1f}" for part in ("p50", "p95")),
        ]
        for name, one in found["latency"].items()
    ]
    heads = ["one at a time", "body kB", "latency ms", "engine ms", "difference p50 ms", "p95"]
    return [*markdown_table(titles, rows), "", *markdown_table(heads, latencies)]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


OVERHEAD = Claim("overhead", "What the service costs on top of its engine", TEXT, _steps, _judge, _tables)
