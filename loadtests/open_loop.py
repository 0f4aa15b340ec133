"""An open-loop load test of POST /v1/vqa: Poisson arrivals, latency from the scheduled send time, JSON out.

Open loop: a request goes out when its time has come, whether or not earlier ones were answered, so a slow
server cannot slow the load down and hide its own queue. See README.md beside this file.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.png"))
QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class Question:
    """One request to send: an image file's name, its bytes and its media type, and a question about it."""

    image: tuple[str, bytes, str]
    text: str


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    `scheduled_s` counts from the start of the load, `latency_s` from the scheduled send time to the last byte
    of the reply; `send_lag_s` is how late the client itself was. `status` is 0 where there was no reply.
    """

    scheduled_s: float
    send_lag_s: float
    latency_s: float
    status: int
    report: dict[str, Any] | None


def poisson_schedule(rate_per_s: float, duration_s: float, seed: int) -> list[float]:
    """Draw the send times of a Poisson process in [0, `duration_s`), in seconds."""

    def arrivals() -> Iterator[float]:
        generator = random.Random(seed)
        now_s = generator.expovariate(rate_per_s)
        while now_s < duration_s:
            yield now_s
            now_s += generator.expovariate(rate_per_s)

    return list(arrivals())


def quantile(ordered: Sequence[float], share: float) -> float:
    """Give the smallest of the values, sorted upwards, that at least `share` of them do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


async def ask(client: httpx.AsyncClient, url: str, question: Question) -> tuple[int, dict[str, Any] | None]:
    """Send one question and give the status (0 where there was no reply) and the report of a good answer."""
    fields, files = {"question": question.text}, {"image": question.image}
    try:
        reply = await client.post(f"{url}/v1/vqa", data=fields, files=files)
    except httpx.HTTPError:
        return 0, None
    return reply.status_code, reply.json().get("report") if reply.status_code == httpx.codes.OK else None


async def unloaded_median_s(
    client: httpx.AsyncClient, url: str, questions: Sequence[Question], count: int
) -> float:
    """Ask `count` questions one after the other and give the median latency; SystemExit if one fails."""
    latencies_s = []
    for index in range(count):
        start_s = time.perf_counter()
        status, _ = await ask(client, url, questions[index % len(questions)])
        latencies_s.append(time.perf_counter() - start_s)
        if status != httpx.codes.OK:
            reason = f"answered {status}" if status else "did not answer"
            raise SystemExit(f"{url} {reason} before any load; is it up, and is it the right address?")
    return statistics.median(latencies_s)


async def run_schedule(
    client: httpx.AsyncClient, url: str, questions: Sequence[Question], schedule_s: Sequence[float]
) -> list[Outcome]:
    """Send every question of the schedule at its time and wait for all replies; outcomes in that order."""
    start_s = time.perf_counter()

    async def send(index: int, scheduled_s: float) -> Outcome:
        await asyncio.sleep(start_s + scheduled_s - time.perf_counter())
        sent_s = time.perf_counter() - start_s
        status, report = await ask(client, url, questions[index % len(questions)])
        latency_s = time.perf_counter() - start_s - scheduled_s
        return Outcome(scheduled_s, sent_s - scheduled_s, latency_s, status, report)

    return await asyncio.gather(*(send(index, at_s) for index, at_s in enumerate(schedule_s)))


def summarise(
    outcomes: Sequence[Outcome], warm_up_s: float, duration_s: float, slo_s: float
) -> dict[str, Any]:
    """Count and measure what was sent after the warm-up.

    Every request is good (answered within `slo_s`), late (answered after it), shed (429 or 503) or failed.
    Latencies are those of answers, in seconds; `report` holds means over answers.
    """
    counted = [outcome for outcome in outcomes if outcome.scheduled_s >= warm_up_s]
    answered = [outcome for outcome in counted if outcome.status == httpx.codes.OK]
    latencies_s = sorted(outcome.latency_s for outcome in answered)
    good = sum(latency_s <= slo_s for latency_s in latencies_s)
    shed = sum(outcome.status in (429, 503) for outcome in counted)
    failed = len(counted) - len(answered) - shed
    window_s = duration_s - warm_up_s
    summary: dict[str, Any] = {
        "offered": len(counted),
        "answered": len(answered),
        "good": good,
        "late": len(answered) - good,
        "shed": shed,
        "failed": failed,
        "statuses": dict(sorted(Counter(str(outcome.status) for outcome in counted).items())),
        "offered_per_s": len(counted) / window_s,
        "goodput_per_s": good / window_s,
        "max_send_lag_s": max((outcome.send_lag_s for outcome in counted), default=None),
        "slo_met": bool(answered) and quantile(latencies_s, 0.99) <= slo_s and not failed,
    }
    if answered:
        summary["latency_s"] = {name: quantile(latencies_s, share) for name, share in QUANTILES.items()} | {
            "max": latencies_s[-1]
        }
        reports = [outcome.report for outcome in answered if outcome.report]
        summary["report"] = {
            name: statistics.fmean(report[name] for report in reports)
            for name in ("batch_size", "flops", "flops_ratio", "token_density")
            if reports
        }
    return summary


def read_questions(images: Sequence[Path], texts: Sequence[str], seed: int) -> list[Question]:
    """Read every image once and pair it with every question, in an order drawn from the seed."""
    questions = []
    for path in images:
        media_type = MEDIA_TYPES.get(path.suffix.lower(), "application/octet-stream")
        image = (path.name, path.read_bytes(), media_type)
        questions += [Question(image, text) for text in texts]
    random.Random(seed).shuffle(questions)
    return questions


async def load_test(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the unloaded median, run the load, and give the whole result as plain data."""
    questions = read_questions(arguments.image, arguments.question, arguments.seed)
    schedule_s = poisson_schedule(arguments.rate, arguments.duration, arguments.seed)
    # No cap on connections: waiting for a free one would make the loop a closed one.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=arguments.timeout) as client:
        median_s = await unloaded_median_s(client, arguments.url, questions, count=arguments.unloaded)
        slo_s = arguments.slo or 10 * median_s
        outcomes = await run_schedule(client, arguments.url, questions, schedule_s)
    return {
        "settings": {
            "rate_per_s": arguments.rate,
            "duration_s": arguments.duration,
            "warm_up_s": arguments.warm_up,
            "seed": arguments.seed,
            "questions": len(questions),
        },
        "unloaded_median_s": median_s,
        "slo_s": slo_s,
        "summary": summarise(outcomes, arguments.warm_up, arguments.duration, slo_s),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; every error names its option."""
    parser = argparse.ArgumentParser(description="Open-loop Poisson load on POST /v1/vqa.")
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="the server (%(default)s)")
    add("--rate", type=float, default=10.0, help="requests per second, in the mean (%(default)s)")
    add("--duration", type=float, default=30.0, help="seconds of load, warm-up included (%(default)s)")
    add("--warm-up", type=float, default=5.0, help="first seconds, sent but not counted (%(default)s)")
    add("--image", type=Path, nargs="+", default=EXAMPLES, help="image files (examples/*.png)")
    add("--question", nargs="+", default=["how many objects are there?"], help="asked of every image")
    add(
        "--unloaded", type=int, default=20, help="requests, one by one, for the unloaded median (%(default)s)"
    )
    add("--slo", type=float, help="seconds in which an answer is good (10 times the unloaded median)")
    add("--timeout", type=float, default=60.0, help="seconds after which a request has failed (%(default)s)")
    add("--seed", type=int, default=0, help="of the arrivals and the order of the questions (%(default)s)")
    add("--out", type=Path, help="write every outcome here as JSON; the summary goes to stdout anyway")
    parsed = parser.parse_args(arguments)
    if not parsed.image:
        parser.error("--image: examples/ holds no PNG, so name an image")
    if parsed.rate <= 0:
        parser.error(f"--rate is {parsed.rate}, but must be above 0")
    if not 0 <= parsed.warm_up < parsed.duration:
        parser.error(
            f"--warm-up is {parsed.warm_up}, but must be from 0 to below the {parsed.duration} of --duration"
        )
    if parsed.unloaded < 1:
        parser.error(f"--unloaded is {parsed.unloaded}, but must be at least 1")
    return parsed


def main() -> int:
    """Run the load test; exit status 1 if a request failed."""
    arguments = parse()
    result = asyncio.run(load_test(arguments))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    shown = {key: value for key, value in result.items() if key != "outcomes"}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    return 1 if result["summary"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
