"""Who is let in, and what those turned away are told."""

from service.admission import MAX_RETRY_AFTER_S, Admission


def test_as_many_as_the_limit_enter() -> None:
    admission = Admission(2)
    assert [admission.try_enter() for _ in range(3)] == [True, True, False]


def test_leaving_makes_room() -> None:
    admission = Admission(1)
    admission.try_enter()
    admission.leave(0.0, was_answered=False)
    assert admission.try_enter()


def test_retry_after_is_one_second_while_nothing_is_measured() -> None:
    assert Admission(1).retry_after_s(0.0) == 1


def _busy(inside: int, answered_per_s: int, seconds: int) -> Admission:
    admission = Admission(10_000)
    for tick in range(answered_per_s * seconds):
        admission.try_enter()
        admission.leave(tick / answered_per_s, was_answered=True)
    for _ in range(inside):
        admission.try_enter()
    return admission


def test_retry_after_is_what_the_measured_rate_takes_for_those_inside() -> None:
    assert _busy(inside=50, answered_per_s=10, seconds=10).retry_after_s(10.0) == 5


def test_retry_after_is_bounded() -> None:
    assert _busy(inside=9_000, answered_per_s=2, seconds=10).retry_after_s(10.0) == MAX_RETRY_AFTER_S


def test_refusals_and_failures_do_not_count_for_the_rate() -> None:
    admission = _busy(inside=50, answered_per_s=10, seconds=10)
    for _ in range(500):
        admission.try_enter()
        admission.leave(10.0, was_answered=False)
    assert admission.retry_after_s(10.0) == 5


def test_an_old_rate_is_forgotten() -> None:
    assert _busy(inside=50, answered_per_s=10, seconds=10).retry_after_s(1000.0) == 1
