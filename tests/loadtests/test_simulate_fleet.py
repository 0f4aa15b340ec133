"""Simulated runs are counted whole: every request leaves, and no replica is busier than the clock."""

from dataclasses import replace

import numpy as np
import pytest

from loadtests.errors import LoadTestError
from loadtests.simulate.costs import CostModel
from loadtests.simulate.result import summarise
from loadtests.simulate.scenarios import SORTED
from loadtests.simulate.setup import simulate

OVERLOADED = replace(SORTED, load=3.0, duration_s=4.0)


def test_what_waits_at_the_last_arrival_is_answered_and_its_latency_counts() -> None:
    workload = OVERLOADED.workload(CostModel())
    run = simulate(OVERLOADED, workload, CostModel())
    assert np.isfinite(run.latency_s).sum() + len(run.shed) == len(workload)
    last = max(key for key in range(len(workload)) if key not in set(run.shed))
    assert workload.arrival_s[last] + run.latency_s[last] > OVERLOADED.duration_s


def test_work_after_the_end_makes_nobody_busier_than_always() -> None:
    workload = OVERLOADED.workload(CostModel())
    result = summarise(OVERLOADED, workload, simulate(OVERLOADED, workload, CostModel()))
    assert 0.95 < result.busy <= 1
    assert result.answered_per_s < result.offered_per_s


def test_a_run_in_which_nothing_was_answered_is_told() -> None:
    short = replace(SORTED, duration_s=0.001)
    workload = short.workload(CostModel())
    with pytest.raises(LoadTestError, match="make it longer"):
        summarise(short, workload, simulate(short, workload, CostModel()))
