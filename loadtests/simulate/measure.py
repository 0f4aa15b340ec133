"""How long a real model takes over batches of several sizes and prune temperatures: what `--costs` reads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from loadtests.simulate.costs import Costs, Measured, fit_costs
from madtp_core.evaluate import ShapesSamples
from madtp_core.evaluate.run import predict
from madtp_core.tasks.base import PrunedModel

SIZES = (1, 2, 4, 8, 16, 32)
TEMPERATURES = (0.0, 0.1, 1.0, 4.0, 30.0)


def measure_costs(
    model: PrunedModel,
    *,
    sizes: Sequence[int] = SIZES,
    temperatures: Sequence[float] = TEMPERATURES,
    rounds: int = 3,
) -> Costs:
    """Run drawn scenes under max-keep: medians of rounds in which all settings take turns, after one more.

    Texts count as tokens, too; what a batch computed is its dense tokens x the flops_ratio it had.
    """
    samples = ShapesSamples(model.task, "validation", max(sizes), image_size=model.image_geometry.width)[:]
    seconds: dict[tuple[int, float], list[float]] = {}
    tokens: dict[tuple[int, float], float] = {}
    dense = 0.0
    for number in range(rounds + 1):
        for size in sizes:
            for temperature in temperatures:
                began_s = time.perf_counter()
                answers = predict(model, samples[:size], prune_temperature=temperature)
                taken_s = time.perf_counter() - began_s
                if number:
                    seconds.setdefault((size, temperature), []).append(taken_s)
                spent = [answer.spent for answer in answers]
                entering = [sum(t.dense for kind in one.traces.values() for t in kind) for one in spent]
                dense = statistics.mean(entering)
                tokens[size, temperature] = sum(
                    count * one.cost.flops_ratio for count, one in zip(entering, spent, strict=True)
                )
    batches = [Measured(key[0], tokens[key], statistics.median(each)) for key, each in seconds.items()]
    return Costs(fit_costs(batches), dense, tuple(batches))
