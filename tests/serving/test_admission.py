"""Who is let in, and what those turned away are told."""

from service.admission import MAX_RETRY_AFTER_S, Admission, Place


def _enter(admission: Admission) -> Place:
    place = admission.try_enter()
    assert place is not None
    return place


def test_as_many_as_the_limit_enter() -> None:
    admission = Admission(2)
    assert [admission.try_enter() is not None for _ in range(3)] == [True, True, False]


def test_it_is_full_when_nobody_enters() -> None:
    by_places, by_tokens = Admission(1), Admission(10, max_tokens=100)
    assert not by_places.is_full and not by_tokens.is_full
    for admission in (by_places, by_tokens):
        _enter(admission)
    assert by_places.is_full and not by_tokens.is_full
    assert by_tokens.try_resize(_enter(by_tokens), 98.5)
    assert by_tokens.is_full and by_tokens.try_enter() is None


def test_leaving_makes_room() -> None:
    admission = Admission(1)
    admission.leave(_enter(admission), 0.0, was_answered=False)
    assert admission.try_enter()
    assert admission.inside == 1


def test_who_asks_for_more_than_there_is_room_for_is_told_so_and_takes_nothing() -> None:
    admission = Admission(10, max_tokens=100)
    first, second = _enter(admission), _enter(admission)
    assert admission.try_resize(first, 80)
    assert not admission.try_resize(second, 30)
    assert (second.tokens, admission.tokens) == (1.0, 81.0)
    assert admission.try_resize(second, 20)
    admission.leave(first, 0.0, was_answered=True)
    assert admission.tokens == 20


def test_a_typical_request_is_turned_away_when_its_tokens_are_taken() -> None:
    admission = Admission(10, max_tokens=100)
    for _ in range(300):  # so many that 60 is typical
        place = _enter(admission)
        admission.try_resize(place, 60)
        admission.leave(place, 0.0, was_answered=True)
    _enter(admission)
    assert admission.try_enter() is None
    assert admission.inside == 1


def test_one_that_is_larger_than_the_bound_is_served_alone() -> None:
    admission = Admission(10, max_tokens=100)
    assert admission.try_resize(_enter(admission), 500)
    assert admission.try_enter() is None


def test_pressure_is_the_fuller_of_places_and_tokens() -> None:
    admission = Admission(4, max_tokens=100)
    place = _enter(admission)
    assert admission.pressure == 0.25
    admission.try_resize(place, 50)
    assert admission.pressure == 0.5
    admission.try_resize(place, 500)
    assert admission.pressure == 1.0


def test_retry_after_is_one_second_while_nothing_is_measured() -> None:
    assert Admission(1).retry_after_s(0.0) == 1


def _busy(inside: int, answered_per_s: int, seconds: int) -> Admission:
    admission = Admission(10_000)
    for tick in range(answered_per_s * seconds):
        admission.leave(_enter(admission), tick / answered_per_s, was_answered=True)
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
        admission.leave(_enter(admission), 10.0, was_answered=False)
    assert admission.retry_after_s(10.0) == 5


def test_an_old_rate_is_forgotten() -> None:
    assert _busy(inside=50, answered_per_s=10, seconds=10).retry_after_s(1000.0) == 1
