"""The batcher's decisions on a clock that stands still until a test moves it."""

import math
import random
from collections.abc import Callable

import pytest

from service.batcher import Batcher, Decision, Ticket
from service.cut import Order

WAIT_S = 0.005


def _batcher(max_batch_size: int = 4, max_queue: int = 100, order: Order = "fifo") -> Batcher:
    return Batcher(max_batch_size=max_batch_size, max_batch_wait_s=WAIT_S, max_queue=max_queue, order=order)


def _submit(batcher: Batcher, *keys: int, at_s: float = 0.0, deadline_s: float = 1000.0) -> None:
    for key in keys:
        assert batcher.submit(Ticket(key, submitted_s=at_s, deadline_s=deadline_s))


def _served(batcher: Batcher, now_s: float = 1.0) -> list[tuple[int, ...]]:
    """Every batch until nothing waits."""
    batches = []
    while batch := batcher.next_batch(now_s).batch:
        batches.append(batch)
    return batches


def test_nothing_waits() -> None:
    assert _batcher().next_batch(0.0) == Decision()


def test_an_idle_engine_gets_the_first_job_at_once() -> None:
    batcher = _batcher()
    batcher.next_batch(0.0)  # the engine asks and finds nothing
    _submit(batcher, 1, at_s=5.0)
    assert batcher.next_batch(5.0).batch == (1,)


def test_a_busy_engine_waits_for_batch_mates_but_not_for_long() -> None:
    batcher = _batcher()
    _submit(batcher, 1, at_s=1.0)
    _submit(batcher, 2, at_s=1.0 + WAIT_S / 2)
    assert batcher.next_batch(1.0) == Decision(wake_at_s=1.0 + WAIT_S)
    assert batcher.next_batch(1.0 + WAIT_S).batch == (1, 2)


def test_idleness_is_used_up_by_one_batch() -> None:
    batcher = _batcher()
    batcher.next_batch(0.0)
    _submit(batcher, 1)
    assert batcher.next_batch(0.0).batch == (1,)
    _submit(batcher, 2)
    assert batcher.next_batch(0.0).batch == ()


def test_a_full_batch_goes_at_once() -> None:
    batcher = _batcher(max_batch_size=3)
    _submit(batcher, 1, 2, 3)
    assert batcher.next_batch(0.0).batch == (1, 2, 3)


def test_first_in_first_out_in_cuts_of_the_limit() -> None:
    batcher = _batcher(max_batch_size=2)
    _submit(batcher, 5, 3, 4, 1, 2)
    assert [batcher.next_batch(1.0).batch for _ in range(4)] == [(5, 3), (4, 1), (2,), ()]


def test_the_queue_is_bounded() -> None:
    batcher = _batcher(max_queue=2)
    _submit(batcher, 1, 2)
    assert not batcher.submit(Ticket(3, 0.0, 1.0))
    assert len(batcher) == 2


def test_a_batch_makes_room() -> None:
    batcher = _batcher(max_batch_size=1, max_queue=1)
    _submit(batcher, 1)
    batcher.next_batch(0.0)
    assert batcher.submit(Ticket(2, 0.0, 1.0))


@pytest.mark.parametrize("tokens", [0.0, -1.0, float("nan"), float("inf")])
def test_a_prediction_must_be_a_positive_number(tokens: float) -> None:
    with pytest.raises(ValueError, match="positive, finite"):
        Ticket(1, 0.0, 1.0, tokens=tokens)


def test_an_expired_job_is_told_and_never_runs() -> None:
    batcher = _batcher()
    _submit(batcher, 1, deadline_s=2.0)
    _submit(batcher, 2)
    assert batcher.next_batch(2.0) == Decision(batch=(2,), expired=(1,))


def test_expiry_alone_leaves_the_engine_idle() -> None:
    batcher = _batcher()
    _submit(batcher, 1, deadline_s=2.0)
    assert batcher.next_batch(2.0) == Decision(expired=(1,))
    _submit(batcher, 2, at_s=3.0)
    assert batcher.next_batch(3.0).batch == (2,)


def test_an_engine_that_wakes_when_told_finds_every_job_at_its_deadline() -> None:
    rng = random.Random(0)
    batcher = Batcher(max_batch_size=1000, max_batch_wait_s=60.0, max_queue=1000)
    deadlines_s = {key: rng.uniform(0.0, 30.0) for key in range(500)}
    for key, deadline_s in deadlines_s.items():
        batcher.submit(Ticket(key, 0.0, deadline_s))
    for key in rng.sample(sorted(deadlines_s), 200):
        assert batcher.cancel(key)
        del deadlines_s[key]
    told_s, now_s = dict[int, float](), batcher.next_batch(0.0).wake_at_s
    while now_s is not None:
        decision = batcher.next_batch(now_s)
        told_s.update(dict.fromkeys(decision.expired, now_s))
        now_s = decision.wake_at_s
    assert told_s == deadlines_s
    assert len(batcher) == 0


def test_an_engine_that_waits_for_mates_wakes_for_an_earlier_deadline() -> None:
    batcher = _batcher()
    _submit(batcher, 1, deadline_s=WAIT_S / 2)
    assert batcher.next_batch(0.0).wake_at_s == WAIT_S / 2


def test_a_cancelled_job_never_runs() -> None:
    batcher = _batcher()
    _submit(batcher, 1, 2)
    assert batcher.cancel(1)
    assert batcher.next_batch(1.0).batch == (2,)


def test_what_does_not_wait_cannot_be_cancelled() -> None:
    batcher = _batcher()
    _submit(batcher, 1)
    batcher.next_batch(1.0)
    assert not batcher.cancel(1)


def test_the_wait_counts_from_the_oldest_that_is_left() -> None:
    batcher = _batcher()
    _submit(batcher, 1, at_s=0.0)
    _submit(batcher, 2, at_s=0.004)
    batcher.cancel(1)
    assert batcher.next_batch(0.005).wake_at_s == pytest.approx(0.004 + WAIT_S)


def test_drain_takes_everything_out() -> None:
    batcher = _batcher()
    _submit(batcher, 1, 2)
    assert batcher.drain() == (1, 2)
    assert (len(batcher), batcher.queued_tokens, batcher.next_batch(0.0)) == (0, 0.0, Decision())


def test_a_key_waits_only_once() -> None:
    batcher = _batcher()
    _submit(batcher, 1)
    with pytest.raises(ValueError, match="already waits"):
        _submit(batcher, 1)


@pytest.mark.parametrize("order", ["fifo", "sorted"])
def test_ten_thousand_jobs_half_of_them_cancelled_leave_nothing_behind(order: Order) -> None:
    rng = random.Random(0)
    batcher = _batcher(max_batch_size=32, max_queue=10_000, order=order)
    alive, served = set(range(10_000)), list[int]()
    doomed = rng.sample(range(10_000), 5_000)
    for key in range(10_000):
        batcher.submit(Ticket(key, 0.0, 1e6 + rng.random(), tokens=rng.uniform(1.0, 500.0)))
        if key % 3 == 0 and (gone := doomed.pop()) <= key and batcher.cancel(gone):
            alive.discard(gone)
        if key % 100 == 0:
            served += batcher.next_batch(0.0).batch
    for gone in doomed:
        if batcher.cancel(gone):
            alive.discard(gone)
    served += [key for batch in _served(batcher) for key in batch]
    assert sorted(served) == sorted(alive)
    assert (len(batcher), batcher.queued_tokens, batcher.next_batch(0.0)) == (0, 0.0, Decision())


def test_cancelled_jobs_do_not_pile_up_behind_one_that_stays() -> None:
    batcher = _batcher()
    _submit(batcher, 0, deadline_s=1.0)
    for key in range(1, 10_000):
        _submit(batcher, key)
        batcher.cancel(key)
    assert len(batcher._room._deadlines) < 50


# Who runs with whom.


def _sorted(*tokens: float, size: int = 4, max_batch_tokens: float = math.inf) -> Batcher:
    """A sorting batcher whose jobs 0, 1, ... are predicted to need these tokens."""
    batcher = Batcher(
        max_batch_size=size,
        max_batch_wait_s=WAIT_S,
        max_queue=100_000,
        order="sorted",
        max_batch_tokens=max_batch_tokens,
    )
    for key, needed in enumerate(tokens):
        batcher.submit(Ticket(key, 0.0, 1000.0, tokens=needed))
    return batcher


def test_the_oldest_runs_with_those_most_like_it() -> None:
    batcher = _sorted(50.0, 10.0, 51.0, 90.0, 49.0, 11.0, 12.0, size=3)
    assert [set(batch) for batch in _served(batcher)] == [{0, 2, 4}, {1, 5, 6}, {3}]


def test_equal_jobs_run_in_the_order_of_their_arrival() -> None:
    assert _served(_sorted(*[7.0] * 6, size=4)) == [(0, 1, 2, 3), (4, 5)]


def test_a_batch_costs_its_size_times_its_largest_member() -> None:
    """Of 30, 30, 20, 20 only three fit into 90 when each pays 30, and with a 30 no fourth to three of 20."""
    assert _served(_sorted(30.0, 30.0, 20.0, 20.0, max_batch_tokens=90.0)) == [(0, 1, 2), (3,)]
    assert _served(_sorted(20.0, 20.0, 20.0, 30.0, max_batch_tokens=90.0)) == [(0, 1, 2), (3,)]
    packed = Batcher(
        max_batch_size=4, max_batch_wait_s=0.0, max_queue=9, is_padded=False, max_batch_tokens=100
    )
    for key, tokens in enumerate((30.0, 30.0, 20.0, 20.0)):
        packed.submit(Ticket(key, 0.0, 9.0, tokens=tokens))
    assert packed.next_batch(0.0).batch == (0, 1, 2, 3)


def test_first_in_first_out_keeps_the_budget_too() -> None:
    batcher = Batcher(max_batch_size=9, max_batch_wait_s=0.0, max_queue=9, max_batch_tokens=60.0)
    for key, tokens in enumerate((10.0, 20.0, 10.0, 20.0)):
        batcher.submit(Ticket(key, 0.0, 9.0, tokens=tokens))
    assert _served(batcher) == [(0, 1, 2), (3,)]


def test_a_batch_that_the_budget_fills_goes_at_once() -> None:
    batcher = _sorted(30.0, 30.0, 30.0, size=10, max_batch_tokens=60.0)
    assert batcher.next_batch(0.0).batch == (0, 1)


def test_a_job_larger_than_the_budget_runs_alone() -> None:
    assert _served(_sorted(500.0, 20.0, max_batch_tokens=90.0)) == [(0,), (1,)]


def test_only_jobs_of_one_lane_run_together() -> None:
    batcher = _batcher()
    for key, lane in enumerate(("exact", "balanced", "exact", "balanced")):
        batcher.submit(Ticket(key, 0.0, 1000.0, lane=lane))
    assert _served(batcher) == [(0, 2), (1, 3)]


def test_a_full_lane_goes_before_an_older_job_that_is_not_due_but_never_after_it_is() -> None:
    batcher = _batcher(max_batch_size=2)
    batcher.submit(Ticket(0, 0.0, 1000.0, lane="rare"))
    for key in range(1, 9):
        batcher.submit(Ticket(key, 0.001, 1000.0, lane="busy"))
    assert batcher.next_batch(0.002).batch == (1, 2)
    assert batcher.next_batch(WAIT_S).batch == (0,)


def test_priority_is_a_head_start_in_time() -> None:
    batcher = Batcher(max_batch_size=1, max_batch_wait_s=0.0, max_queue=99)
    batcher.submit(Ticket(0, 0.0, 1000.0))
    batcher.submit(Ticket(1, 0.5, 1000.0))
    batcher.submit(Ticket(2, 0.9, 1000.0, priority=1))  # as if it had come at -0.1
    batcher.submit(Ticket(3, 1.2, 1000.0, priority=1))  # at 0.2: behind 0, before 1
    batcher.submit(Ticket(4, 0.0, 1000.0, priority=-1))  # at 1
    assert [batch[0] for batch in _served(batcher, 2.0)] == [2, 0, 3, 1, 4]


@pytest.mark.parametrize("seed", range(6))
def test_nobody_is_overtaken_by_more_than_the_window(seed: int) -> None:
    """Streams that would starve a greedy sorter: outliers among equals, new equals at every decision."""
    rng, size, window = random.Random(seed), 4, 8 * 4
    streams: list[Callable[[], float]] = [
        lambda: 1000.0 if rng.random() < 0.05 else 10.0,  # rare hard ones
        lambda: rng.choice([1.0, 1e6]),  # two clusters
        lambda: rng.lognormvariate(5.0, 2.0),
    ]
    draw = streams[seed % 3]
    batcher = _sorted(size=size)
    waiting: dict[int, int] = {}  # key -> how many younger ones ran before it
    worst, key = 0, 0
    for _ in range(600):
        for _ in range(rng.choice((0, 4, 4, 8, 16)) if len(waiting) < 80 else 0):
            batcher.submit(Ticket(key, 0.0, 1e9, tokens=draw()))
            waiting[key] = 0
            key += 1
        if waiting and rng.random() < 0.2:
            gone = rng.choice(list(waiting))
            assert batcher.cancel(gone)
            del waiting[gone]
        oldest = next(iter(waiting), None)
        batch = batcher.next_batch(1.0).batch
        assert oldest is None or oldest in batch
        for ran in batch:
            del waiting[ran]
        for still in waiting:
            waiting[still] += sum(ran > still for ran in batch)
        worst = max(worst, *waiting.values(), 0)
    assert 0 < worst < window  # it does sort, and the window holds


def test_an_out_of_memory_halves_the_budget_and_successes_heal_it() -> None:
    batcher = _sorted(*[10.0] * 400, size=8, max_batch_tokens=80.0)
    assert len(batcher.next_batch(1.0).batch) == 8
    batcher.note_out_of_memory(batcher.cost([10.0] * 8))
    sizes = []
    for _ in range(20):
        sizes.append(len(batcher.next_batch(1.0).batch))
        batcher.note_success()
    assert sizes == [4] * 16 + [8] * 4
