"""The batcher's decisions on a clock that stands still until a test moves it."""

import pytest

from service.batcher import Batcher, Decision, Ticket

WAIT_S = 0.005


def _batcher(max_batch_size: int = 4, max_queue: int = 100) -> Batcher:
    return Batcher(max_batch_size=max_batch_size, max_batch_wait_s=WAIT_S, max_queue=max_queue)


def _submit(batcher: Batcher, *keys: int, at_s: float = 0.0, deadline_s: float = 1000.0) -> None:
    for key in keys:
        assert batcher.submit(Ticket(key, submitted_s=at_s, deadline_s=deadline_s))


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
    assert len(batcher) == 0


def test_a_key_waits_only_once() -> None:
    batcher = _batcher()
    _submit(batcher, 1)
    with pytest.raises(ValueError, match="already waits"):
        _submit(batcher, 1)


def test_ten_thousand_jobs_with_every_second_cancelled_leave_nothing_behind() -> None:
    batcher = _batcher(max_batch_size=32, max_queue=10_000)
    _submit(batcher, *range(10_000))
    for key in range(0, 10_000, 2):
        batcher.cancel(key)
    served: list[int] = []
    while batch := batcher.next_batch(1.0).batch:
        served += batch
    assert served == list(range(1, 10_000, 2))
    assert len(batcher) == 0
