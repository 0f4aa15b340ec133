"""The three ways to part with tokens by hand, MADTP's decision, and the registry."""

from typing import Any

import pytest
import torch
from torch import Tensor

from madtp_core.attention import Signals
from madtp_core.errors import ConfigError, UnknownNameError
from madtp_core.pruning import (
    KEEP_MODES,
    MAX_KEEP,
    PER_INSTANCE,
    VISION,
    PruneStep,
    build_pruner,
    check_keep_mode,
    keep_and_merge,
)
from madtp_core.pruning.base import keep_and_absorb, keep_and_drop
from madtp_core.tokens import MERGED, Tokens
from tests.core import reference

# --- keep_and_merge, rules 7 to 9 of the method


def sequence(*lengths: int) -> Tokens:
    """Rows of so many tokens behind the class token, of width 2."""
    width = 1 + max(lengths)
    mask = torch.arange(width) <= torch.tensor(lengths).unsqueeze(1)
    return Tokens.from_hidden(torch.randn(len(lengths), width, 2), mask)


def scored(tokens: Tokens) -> Tensor:
    """Distinct positive importances, padding the most important of all."""
    importance = torch.rand(tokens.batch_size, tokens.width - 1) + 0.1
    return importance if tokens.mask is None else importance.masked_fill(~tokens.mask[:, 1:], 9.0)


def test_the_most_important_stay_in_their_order_before_the_merged_one() -> None:
    tokens = sequence(5)
    importance = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.05]])
    pruned = keep_and_merge(tokens, importance, torch.tensor([2]), MAX_KEEP)
    assert pruned.tokens.position.tolist() == [[0, 2, 4, MERGED]]
    assert torch.equal(pruned.tokens.hidden[0, :3], tokens.hidden[0, [0, 2, 4]])
    merged = (0.1 * tokens.hidden[0, 1] + 0.2 * tokens.hidden[0, 3] + 0.05 * tokens.hidden[0, 5]) / 0.35
    torch.testing.assert_close(pruned.tokens.hidden[0, 3], merged)
    assert pruned.tokens.size.tolist() == [[1, 1, 1, 3]]


def test_a_merged_token_is_an_ordinary_one_the_next_time() -> None:
    once = keep_and_merge(sequence(5), torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([2]), MAX_KEEP).tokens
    kept = keep_and_merge(once, torch.tensor([[1.0, 2, 3]]), torch.tensor([1]), MAX_KEEP).tokens
    dropped = keep_and_merge(once, torch.tensor([[3.0, 2, 1]]), torch.tensor([1]), MAX_KEEP).tokens
    assert (kept.position.tolist(), kept.size.tolist()) == ([[0, MERGED, MERGED]], [[1, 3, 2]])
    assert (dropped.position.tolist(), dropped.size.tolist()) == ([[0, 1, MERGED]], [[1, 1, 4]])


@pytest.mark.parametrize("needed", range(1, 7))
def test_a_row_equals_the_loop(needed: int) -> None:
    tokens = sequence(8)
    importance = scored(tokens)
    pruned = keep_and_merge(tokens, importance, torch.tensor([needed]), PER_INSTANCE).tokens
    row = reference.Instance(tokens.hidden[0].double(), list(range(9)))
    expected = reference.prune_in_place(row, importance[0].tolist(), needed)
    assert pruned.position[0].tolist() == expected.position
    torch.testing.assert_close(pruned.hidden[0].double(), expected.hidden, atol=1e-6, rtol=0)


def test_max_keep_gives_every_row_the_neediest_rows_number() -> None:
    tokens = sequence(8, 8, 8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([2, 5, 0]), MAX_KEEP)
    assert pruned.kept.tolist() == [5, 5, 5]
    assert pruned.needed.tolist() == [2, 5, 0]
    assert pruned.tokens.mask is None and pruned.tokens.width == 1 + 5 + 1


def test_per_instance_gives_every_row_its_own() -> None:
    tokens = sequence(8, 8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([2, 5]), PER_INSTANCE)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [2, 5]
    assert pruned.tokens.lengths().tolist() == [4, 7]


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
@pytest.mark.parametrize(("needed", "kept"), [(0, 8), (1, 1), (6, 6), (7, 8), (8, 8)])
def test_a_row_that_would_keep_none_or_drop_fewer_than_two_is_left_alone(
    needed: int, kept: int, keep_mode: str
) -> None:
    tokens = sequence(8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([needed]), keep_mode)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [kept]
    if kept == 8:
        assert pruned.tokens is tokens


def test_per_instance_leaves_single_rows_alone() -> None:
    tokens = sequence(8, 8, 8)
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([0, 3, 7]), PER_INSTANCE)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [8, 3, 8]
    assert pruned.tokens.lengths().tolist() == [9, 5, 9]
    for row in (0, 2):
        assert torch.equal(pruned.tokens.hidden[row], tokens.hidden[row])


def test_a_padded_max_keep_row_keeps_at_most_what_it_has() -> None:
    tokens = sequence(8, 3, 5, 4)  # k = 3: the row of 3 has no more, that of 4 would drop one only
    pruned = keep_and_merge(tokens, scored(tokens), torch.tensor([3, 1, 2, 0]), MAX_KEEP)
    assert pruned.kept.tolist() == [3, 3, 3, 4]
    assert pruned.needed.tolist() == [3, 3, 2, 4]
    assert pruned.tokens.lengths().tolist() == [5, 4, 5, 5]
    assert (pruned.tokens.position == MERGED).sum(1).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_padding_is_neither_kept_nor_merged_however_important(keep_mode: str) -> None:
    tokens = sequence(8, 5)
    importance = scored(tokens)
    together = keep_and_merge(tokens, importance, torch.tensor([3, 3]), keep_mode).tokens
    short = Tokens.from_hidden(tokens.hidden[1:, :6])
    alone = keep_and_merge(short, importance[1:, :5], torch.tensor([3]), keep_mode).tokens
    assert torch.equal(together.position[1, :5], alone.position[0])
    assert torch.equal(together.size[1, :5], alone.size[0])
    torch.testing.assert_close(together.hidden[1, :5], alone.hidden[0])


def test_of_equal_scores_the_earlier_token_stays() -> None:
    pruned = keep_and_merge(sequence(6), torch.ones(1, 6), torch.tensor([3]), MAX_KEEP)
    assert pruned.tokens.position.tolist() == [[0, 1, 2, 3, MERGED]]


def test_a_negative_score_weighs_nothing_in_the_merge() -> None:
    # Differs from the reference, where such a token is subtracted.
    tokens = sequence(4)
    pruned = keep_and_merge(tokens, torch.tensor([[0.9, 0.2, -0.5, 0.1]]), torch.tensor([1]), MAX_KEEP)
    expected = (0.2 * tokens.hidden[0, 2] + 0.1 * tokens.hidden[0, 4]) / 0.3
    torch.testing.assert_close(pruned.tokens.hidden[0, 2], expected)
    assert pruned.tokens.size.tolist() == [[1, 1, 3]]


def test_if_all_dropped_scores_are_negative_they_merge_into_their_mean() -> None:
    tokens = sequence(4)
    pruned = keep_and_merge(tokens, torch.tensor([[0.9, -0.2, -0.5, -0.1]]), torch.tensor([1]), MAX_KEEP)
    torch.testing.assert_close(pruned.tokens.hidden[0, 2], tokens.hidden[0, 2:].mean(0))


@pytest.mark.parametrize("keep_mode", KEEP_MODES)
def test_the_layout_stays(keep_mode: str) -> None:
    tokens = sequence(8, 5)
    importance, needed = scored(tokens), torch.tensor([4, 2])
    padded = keep_and_merge(tokens, importance, needed, keep_mode).tokens
    packed = keep_and_merge(tokens.pack(), importance, needed, keep_mode).tokens
    assert packed.is_packed and not padded.is_packed
    torch.testing.assert_close(packed.hidden, padded.pack().hidden)
    assert torch.equal(packed.position, padded.position)


def test_a_fused_token_is_a_weighted_sum_where_no_mean_is_wanted() -> None:
    tokens = sequence(4)
    importance = torch.tensor([[0.4, 0.2, 0.3, 0.1]])
    fused = keep_and_merge(tokens, importance, torch.tensor([1]), MAX_KEEP, as_mean=False).tokens
    expected = 0.2 * tokens.hidden[0, 2] + 0.3 * tokens.hidden[0, 3] + 0.1 * tokens.hidden[0, 4]
    torch.testing.assert_close(fused.hidden[0, 2], expected)


# --- keep_and_drop


def test_dropped_tokens_leave_nothing_behind() -> None:
    tokens = sequence(5, 3)
    importance = torch.tensor([[0.1, 0.4, 0.2, 0.3, 0.5], [0.3, 0.1, 0.2, 9.0, 9.0]])
    pruned = keep_and_drop(tokens, importance, torch.tensor([2, 1]), PER_INSTANCE)
    assert [row[:n] for row, n in zip(pruned.tokens.position.tolist(), (3, 2), strict=True)] == [
        [0, 2, 5],
        [0, 1],
    ]
    assert torch.equal(pruned.tokens.hidden[0], tokens.hidden[0, [0, 2, 5]])
    assert pruned.tokens.lengths().tolist() == [3, 2]


@pytest.mark.parametrize(("needed", "kept"), [(0, 8), (7, 7), (8, 8)])
def test_a_row_may_drop_a_single_token_but_not_all(needed: int, kept: int) -> None:
    tokens = sequence(8)
    pruned = keep_and_drop(tokens, scored(tokens), torch.tensor([needed]), MAX_KEEP)
    assert pruned.kept.tolist() == pruned.needed.tolist() == [kept]
    assert pruned.tokens.width == 1 + kept


# --- keep_and_absorb


def test_a_token_that_goes_joins_its_destination_by_size() -> None:
    tokens = sequence(4)
    tokens = Tokens(tokens.hidden, None, tokens.position, torch.tensor([[1.0, 2, 1, 3, 1]]))
    destination = torch.tensor([[0, 1, 1, 3, 3]])
    pruned = keep_and_absorb(
        tokens, torch.tensor([[0.9, 0.1, 0.9, 0.2]]), torch.tensor([2]), MAX_KEEP, destination
    ).tokens
    assert pruned.position.tolist() == [[0, 1, 3]]
    assert pruned.size.tolist() == [[1, 3, 4]]
    hidden = tokens.hidden[0]
    torch.testing.assert_close(pruned.hidden[0, 1], (2 * hidden[1] + hidden[2]) / 3)
    torch.testing.assert_close(pruned.hidden[0, 2], (3 * hidden[3] + hidden[4]) / 4)


def test_a_token_that_stays_does_not_join_its_destination() -> None:
    tokens = sequence(4)
    destination = torch.tensor([[0, 1, 1, 1, 1]])
    pruned = keep_and_absorb(
        tokens, torch.tensor([[0.9, 0.1, 0.8, 0.7]]), torch.tensor([3]), MAX_KEEP, destination
    ).tokens
    assert (pruned.position.tolist(), pruned.size.tolist()) == ([[0, 1, 3, 4]], [[1, 2, 1, 1]])
    assert torch.equal(pruned.hidden[0, 2:], tokens.hidden[0, 3:])


@pytest.mark.parametrize("reduce", [keep_and_drop, keep_and_absorb])
def test_every_way_keeps_the_layout_and_leaves_padding_alone(reduce: Any) -> None:
    tokens = sequence(8, 5)
    importance, needed = scored(tokens), torch.tensor([4, 2])
    destination = [torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1, 1]] * 2)] if reduce is keep_and_absorb else []
    importance[:, 0] = 5.0
    padded = reduce(tokens, importance, needed, PER_INSTANCE, *destination).tokens
    packed = reduce(tokens.pack(), importance, needed, PER_INSTANCE, *destination).tokens
    assert padded.lengths().tolist() == [5, 3] and int(padded.position[1].max()) <= 5
    assert packed.is_packed and not padded.is_packed
    torch.testing.assert_close(packed.hidden, padded.pack().hidden)
    assert torch.equal(packed.position, padded.position)


# --- MADTP's decision


def decide(guidance: Tensor, prune_temperature: float) -> tuple[Tensor, Tensor]:
    """MADTP on one row: importance [1, N] and needed [1]."""
    count = guidance.shape[1]
    received, class_row = torch.rand(1, 1 + count), torch.rand(1, 2, 1 + count)
    signals = Signals(received, class_row, torch.rand(1, 2, 1 + count))
    step = PruneStep(VISION, 0, 1, MAX_KEEP, torch.tensor([prune_temperature]), guidance)
    return build_pruner("madtp").decide(sequence(count), signals, step)


def test_the_token_that_the_threshold_ties_with_is_not_needed() -> None:
    guidance = torch.tensor([[5.0, 1.0, 1.0, 1.0]]).unsqueeze(-1)  # the softmax at a small T picks the first
    importance, needed = decide(guidance, 1e-3)
    assert needed.item() == (importance[0] > importance[0, 0]).sum().item()


def test_prune_temperature_zero_needs_every_token() -> None:
    _, needed = decide(torch.randn(1, 7, 3), 0.0)
    assert needed.tolist() == [7]


# --- Registry


def test_an_unknown_pruner_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="madtp, none, random, rollout"):
        build_pruner("guessing")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("madtp", {"kept": {}}),
        ("madtp", {"terms": []}),
        ("madtp", {"terms": ["self", "words"]}),
        ("madtp", {"terms": "self"}),
        ("static", {}),
        ("static", {"kept": {}}),
        ("static", {"kept": {VISION: [4, 0, 2]}}),
        ("static", {"kept": {VISION: [4]}, "keep_rate": {VISION: 0.5}}),
        ("stp", {"flops_ratio": 0.5}),  # no geometry to resolve it
        ("stp", {"keep_rate": {VISION: 0.0}}),
        ("stp", {"keep_rate": {VISION: [0.5, 1.5]}}),
        ("random", {"keep_rate": {VISION: 0.5}, "seeds": 1}),
        ("rollout", {"keep_rate": {VISION: 0.5}, "group": 0}),
        ("spatial", {"keep_rate": {VISION: 0.5}}),  # no geometry, so no grid
    ],
)
def test_options_a_pruner_does_not_take_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        build_pruner(name, **options)


def test_an_unknown_keep_mode_is_refused() -> None:
    assert check_keep_mode(MAX_KEEP) == MAX_KEEP
    with pytest.raises(UnknownNameError, match="max_keep, per_instance"):
        check_keep_mode("mean_keep")
