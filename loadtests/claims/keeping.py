"""How much of what a batch keeps was needed: first in first out, sorted, packed, and as simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from loadtests.claims.bench import Bench, Plan
from loadtests.claims.claim import Claim, Found, Step
from loadtests.claims.in_process import Answered, prepared_samples, running_engine
from loadtests.claims.verdict import Verdict
from loadtests.report import markdown_table
from loadtests.simulate.costs import CostModel
from loadtests.simulate.result import summarise
from loadtests.simulate.scenarios import FIFO, SORTED
from loadtests.simulate.setup import simulate
from loadtests.simulate.workload import Array, predict
from madtp_core.rank_correlation import spearman
from service.batcher import Batcher, Ticket
from service.cut import Order
from service.difficulty import LEAST_NEED

MIX = "mostly_easy"  # nine easy requests for a hard one
MOST_BELOW = 0.03
WAYS = {"fifo": ("max_keep", "fifo"), "sorted": ("max_keep", "sorted"), "packed": ("per_instance", "fifo")}

TEXT = """Needed over kept tokens, all branches, the class token and merged ones left out, in full batches
of {size} on the 90:10 mix with the controller on; in one process, without HTTP. The simulated value is
that of `loadtests.simulate` (its own stand-in for a model) at the rank correlation that the service
measured of its predictor. The replayed one puts the needs that this model really had, packed, through the
same batcher with predictions of that correlation: what sorting can bring on these very requests."""


def _steps(bench: Bench) -> Mapping[str, Step]:
    return {
        **{name: partial(_served, bench, *way) for name, way in WAYS.items()},
        "simulated": partial(_simulated, bench.plan),
        "replayed": partial(_replayed, bench.plan),
    }


def _served(bench: Bench, keep_mode: str, batching: str, _: Found) -> dict[str, Any]:
    size = max(bench.plan.batch_sizes)
    settings = bench.settings(
        keep_mode=keep_mode, batching=batching, max_batch_size=size, max_queue=16 * size
    )
    with running_engine(bench.name, bench.model, settings) as serving:
        samples = bench.samples(MIX)
        answers = serving.serve_saturated(bench.route, prepared_samples(serving, bench.route, samples))
        correlation = serving.engine.needs.rank_correlation
    settled = answers[bench.plan.window :] or answers
    told: dict[str, Any] = {
        "needed_per_kept": needed_per_kept(settled),
        "flops_ratio": float(np.mean([answer.flops_ratio for answer in settled])),
        "batch_size": float(np.mean([answer.served.batch_size for answer in settled])),
        "rank_correlation": correlation,
        "predicted": [answer.predicted for answer in settled],
    }
    if keep_mode == "per_instance":
        told["needed"] = [_needed(answer) for answer in settled]
    return told


def needed_per_kept(answers: list[Answered]) -> float:
    """Summed over requests, blocks and branches."""
    outlays = [answer.outlay for answer in answers]
    return sum(one.needed_tokens for one in outlays) / sum(one.kept_tokens for one in outlays)


def _needed(answer: Answered) -> list[int]:
    """Tokens needed block by block, all sequences of a request one after the other."""
    traces = answer.served.spent.traces
    return [count for kind in sorted(traces) for trace in traces[kind] for count in trace.needed]


def _simulated(plan: Plan, found: Found) -> dict[str, Any]:
    r = found["sorted"]["rank_correlation"]
    setups = {"fifo": FIFO, "sorted": SORTED, "perfect": SORTED}
    told: dict[str, Any] = {}
    for name, setup in setups.items():
        correlation = {"sorted": r or 0.0, "perfect": 1.0}.get(name, 0.0)
        one = replace(
            setup,
            rank_correlation=max(0.0, correlation),
            duration_s=plan.simulated_s,
            max_batch_size=max(plan.batch_sizes),
            target=plan.flops_target,
            floor=plan.flops_target,
        )
        workload = one.workload(CostModel())
        told[name] = summarise(one, workload, simulate(one, workload, CostModel())).needed_per_kept
    return told


def _replayed(plan: Plan, found: Found) -> dict[str, Any]:
    rows = found["packed"]["needed"]
    width = max(map(len, rows))
    needed = np.array([row + [0] * (width - len(row)) for row in rows], float)
    own, size = needed.mean(1) / needed.max(), max(plan.batch_sizes)
    r = max(0.0, found["sorted"]["rank_correlation"] or 0.0)
    rng = np.random.default_rng(0)
    predicted = [value for value in found["packed"]["predicted"] if value is not None]
    alone = None
    if len(predicted) == len(rows):  # of what the predictor said with what was needed without batch mates
        alone = spearman(np.array(predicted), needed.sum(1))
    return {
        "fifo": replay(needed, own, size, "fifo"),
        "sorted": replay(needed, predict(own, r, rng), size, "sorted"),
        "perfect": replay(needed, own, size, "sorted"),
        "rank_correlation_alone": alone,
    }


def replay(needed: Array, predicted: Array, size: int, order: Order) -> float:
    """Needed / kept where every request waits already; needed: tokens [N, blocks], predicted: [N].

    A batch keeps in each block what its neediest request needs.
    """
    batcher = Batcher(max_batch_size=size, max_batch_wait_s=0.0, max_queue=len(needed), order=order)
    for key, value in enumerate(predicted):
        batcher.submit(Ticket(key, float(key), float("inf"), max(LEAST_NEED, float(value))))
    kept = 0.0
    while batch := batcher.next_batch(float(len(needed))).batch:
        kept += len(batch) * float(needed[list(batch)].max(0).sum())
    return float(needed.sum()) / kept


def _judge(found: Found, plan: Plan) -> list[Verdict]:
    measured = {name: found[name]["needed_per_kept"] for name in WAYS}
    r = found["sorted"]["rank_correlation"]
    verdicts = [Verdict("needed / kept, fifo", f"{measured['fifo']:.3f}", "for contrast", None)]
    for source in ("simulated", "replayed"):
        allowed = found[source]["sorted"]
        verdicts.append(
            Verdict(
                f"needed / kept, sorted, against the {source} curve",
                f"{measured['sorted']:.3f} at rank correlation {_or_none(r)}; {allowed:.3f} {source}",
                f"at most {MOST_BELOW} below",
                measured["sorted"] >= allowed - MOST_BELOW,
            )
        )
    packed = measured["packed"]
    return [*verdicts, Verdict("needed / kept, packed", f"{packed:.3f}", "1.000", packed >= 0.9995)]


def _tables(found: Found, plan: Plan) -> list[str]:
    titles = ["", "needed / kept", "flops_ratio", "batch", "rank correlation"]
    rows = [
        [
            name,
            f"{one['needed_per_kept']:.3f}",
            f"{one['flops_ratio']:.3f}",
            f"{one['batch_size']:.1f}",
            _or_none(one["rank_correlation"]),
        ]
        for name, one in ((name, found[name]) for name in WAYS)
    ]
    curves = [
        [source, *(f"{found[source][name]:.3f}" for name in ("fifo", "sorted", "perfect"))]
        for source in ("simulated", "replayed")
    ]
    alone = _or_none(found["replayed"]["rank_correlation_alone"])
    return [
        *markdown_table(titles, rows),
        "",
        *markdown_table(["curve", "fifo", "sorted, at that correlation", "sorted, perfectly"], curves),
        "",
        f"Rank correlation with needs measured packed, without batch mates: {alone}.",
    ]


def _or_none(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


KEEPING = Claim("keeping", "Needed over kept tokens", TEXT, _steps, _judge, _tables)
