"""The limit of tokens after memory ran out."""

import math
from itertools import pairwise

from service.budget import TokenLimit


def _after(limit: TokenLimit, successes: int) -> TokenLimit:
    for _ in range(successes):
        limit = limit.after_success()
    return limit


def test_half_of_what_did_not_fit() -> None:
    assert TokenLimit(1000.0, 1000.0).after_out_of_memory(600.0).current == 300.0


def test_a_limit_never_grows_by_a_failure() -> None:
    low = TokenLimit(1000.0, 1000.0).after_out_of_memory(100.0)
    assert low.after_out_of_memory(900.0).current == 25.0


def test_it_doubles_after_patience_and_ends_where_it_began() -> None:
    low = TokenLimit(100.0, 100.0).after_out_of_memory(100.0)
    patience = low.patience
    assert _after(low, patience - 1).current == 50.0
    assert _after(low, patience).current == 100.0
    assert _after(low, 2 * patience) == TokenLimit(100.0, 100.0)  # and so is its patience


def test_patience_doubles_while_memory_stays_short() -> None:
    """A lasting shortage at 60 of 100: the tries that fail become rare."""
    limit, failures = TokenLimit(100.0, 100.0), []
    for batch in range(2000):
        if limit.current > 60.0:
            failures.append(batch)
            limit = limit.after_out_of_memory(limit.current)
        else:
            limit = limit.after_success()
    gaps = [later - earlier for earlier, later in pairwise(failures)]
    assert gaps == sorted(gaps)
    assert gaps[-1] > 16 * gaps[0]


def test_without_an_operators_limit_it_heals_to_none() -> None:
    limit = TokenLimit().after_out_of_memory(512.0)
    assert limit.current == 256.0
    assert _after(limit, 40 * limit.patience).current > 1e9
    assert _after(limit, 2000 * limit.patience) == TokenLimit(math.inf, math.inf)
