"""The questions the simulator answers, each a list of runs that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from loadtests.simulate.routing import ROUTINGS
from loadtests.simulate.setup import Setup
from loadtests.simulate.workload import MIXES

FIXED = Setup("fifo, fixed T", order="fifo", is_controlled=False)
FIFO = Setup("fifo, controlled", order="fifo")
SORTED = Setup("sorted, controlled")
SORTED_FIXED = Setup("sorted, fixed T", is_controlled=False)
PACKED = Setup("packed, controlled", order="fifo", keep_mode="per_instance")


def batching() -> list[Setup]:
    """What sorting, control and packing bring one saturated replica, by mix."""
    ways = (FIXED, FIFO, SORTED_FIXED, SORTED, PACKED)
    return [replace(way, label=f"{mix}: {way.label}", mix=mix) for mix in MIXES for way in ways]


def correlation() -> list[Setup]:
    """needed/kept by the predictor's rank correlation: one block, then six that differ from each other."""
    return [
        replace(way, label=f"{blocks} blocks, r {r}: {way.order}", rank_correlation=r, blocks=blocks)
        for blocks in (1, 6)
        for way, correlations in ((FIFO, (0.0,)), (SORTED, (0.0, 0.3, 0.51, 0.6, 0.71, 0.9, 1.0)))
        for r in correlations
    ]


def window() -> list[Setup]:
    """needed/kept and latency by the length of the sorted window, in batches."""
    return [
        replace(SORTED, label=f"r {r}, window {length}", window_batches=length, rank_correlation=r)
        for r in (0.6, 0.9)
        for length in (1, 2, 4, 8, 16)
    ]


def control() -> list[Setup]:
    """How far spending departs from the target, by load (and so by batch size) and mix."""
    return [
        replace(way, label=f"{mix}, load {load}: {way.label}", mix=mix, load=load, duration_s=120.0)
        for mix in MIXES
        for load in (0.05, 0.5, 0.9, 1.5)
        for way in (FIXED, FIFO, SORTED, PACKED)
    ]


def fleet(replicas: int) -> list[Setup]:
    """What routing brings a fleet, sorted or not, just below and above what it can answer.

    Every replica controls itself, and so spends the target on easy requests too where it gets only those:
    what routing by difficulty saves shows at a fixed temperature. A large fleet is run with that only.
    """
    ways = (FIXED, SORTED_FIXED, SORTED) if replicas <= 8 else (FIXED, SORTED_FIXED)
    return [
        replace(
            way,
            label=f"{replicas} replicas, load {load}: {routing}, {way.label}",
            replicas=replicas,
            routing=routing,
            load=load,
            duration_s=30.0 if replicas <= 8 else 3.0,
        )
        for load in (0.9, 1.2)
        for routing in ROUTINGS[:: 1 if replicas > 1 else 4]
        for way in ways
    ]


def overload() -> list[Setup]:
    """A step to five times the capacity for a minute and back, with and without degrading to a floor."""
    profile = ((0.25, 0.5), (0.5, 5.0), (0.25, 0.5))
    step = replace(SORTED, profile=profile, duration_s=120.0)
    return [
        replace(step, label="sorted, target kept"),
        replace(step, label="sorted, degrading to 0.3", floor=0.3),
    ]


@dataclass(frozen=True)
class Scenario:
    """A question and the runs that answer it."""

    question: str
    setups: Callable[[], list[Setup]]


SCENARIOS = {
    "batching": Scenario("what sorting, control and packing bring one saturated replica, by mix", batching),
    "correlation": Scenario("needed/kept by the predictor's rank correlation", correlation),
    "window": Scenario("needed/kept and latency by the length of the sorted window", window),
    "control": Scenario("how far spending departs from its target, by load and mix", control),
    "fleet-1": Scenario("what sorting brings one replica below and above its capacity", partial(fleet, 1)),
    "fleet-8": Scenario("what routing and sorting bring 8 replicas", partial(fleet, 8)),
    "fleet-1000": Scenario("what routing and sorting bring 1,000 replicas", partial(fleet, 1000)),
    "overload": Scenario("a step to five times the capacity, with and without degrading", overload),
}
