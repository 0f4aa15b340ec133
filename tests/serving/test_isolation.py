"""Who spoils a batch is found alone, at a bounded number of passes, and everyone else is answered."""

import math
import random

import pytest

from service.batcher import Batcher, Ticket
from service.isolation import Isolation


def _run(batch: list[int], culprits: set[int]) -> tuple[set[int], set[int], int]:
    """Answered, blamed, and passes."""
    plan, answered, blamed, passes = Isolation(batch), set[int](), set[int](), 0
    while part := plan.next():
        passes += 1
        if culprits & set(part):
            blamed |= set(plan.failed())
        else:
            plan.passed()
            answered |= set(part)
    return answered, blamed, passes


def test_a_good_batch_is_one_pass() -> None:
    assert _run([1, 2, 3], set()) == ({1, 2, 3}, set(), 1)


def test_an_empty_batch_is_none() -> None:
    assert _run([], set()) == (set(), set(), 0)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32, 33, 1000])
def test_one_culprit_costs_at_most_two_log_b_more_passes(size: int) -> None:
    for culprit in range(size):
        answered, blamed, passes = _run(list(range(size)), {culprit})
        assert (answered, blamed) == (set(range(size)) - {culprit}, {culprit})
        assert passes <= 1 + 2 * math.ceil(math.log2(size))


def test_several_culprits_are_all_found_and_nobody_else() -> None:
    culprits = set(random.Random(0).sample(range(64), 9))
    answered, blamed, _ = _run(list(range(64)), culprits)
    assert (answered, blamed) == (set(range(64)) - culprits, culprits)


def test_where_every_job_fails_each_is_blamed_once() -> None:
    assert _run(list(range(8)), set(range(8))) == (set(), set(range(8)), 15)


def test_one_poison_among_a_thousand_costs_one_batch_its_halving_and_nobody_else_anything() -> None:
    batcher = Batcher(max_batch_size=32, max_batch_wait_s=0.0, max_queue=1000, order="sorted")
    rng, poison = random.Random(0), 617
    for key in range(1000):
        batcher.submit(Ticket(key, 0.0, 9.0, tokens=rng.uniform(1.0, 100.0)))
    answered, blamed, extra = set[int](), set[int](), 0
    while batch := batcher.next_batch(1.0).batch:
        good, bad, passes = _run(list(batch), {poison})
        answered, blamed, extra = answered | good, blamed | bad, extra + passes - 1
    assert (answered, blamed) == (set(range(1000)) - {poison}, {poison})
    assert extra <= 2 * math.log2(32)
