"""Tokens: two layouts that are inverse to each other; choosing and appending keep all columns in step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from madtp_core.tokens import MERGED, Merged, Tokens, pack_rows, unpack_rows

LENGTHS = (4, 1, 3)


@pytest.fixture
def mask() -> Tensor:
    return torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS).unsqueeze(1)


@pytest.fixture
def ragged(mask: Tensor) -> Tokens:
    return Tokens.from_hidden(torch.randn(3, 4, 5), mask)


def test_unpacking_what_was_packed_gives_it_back_with_zeros_as_padding(mask: Tensor) -> None:
    padded = torch.randn(3, 4, 2, 5)
    packed = pack_rows(padded, mask)
    rows = [row[:length] for row, length in zip(padded, LENGTHS, strict=True)]
    assert torch.equal(packed, torch.cat(rows))
    assert torch.equal(unpack_rows(packed, mask), padded * mask[..., None, None])


def test_packing_what_was_unpacked_gives_it_back(mask: Tensor) -> None:
    for packed in (torch.randn(8), torch.randn(8, 5), torch.randn(8, 2, 5)):
        assert torch.equal(pack_rows(unpack_rows(packed, mask), mask), packed)


def test_gradients_flow_back_through_unpacking(mask: Tensor) -> None:
    packed = torch.randn(8, 5, requires_grad=True)
    weight = torch.randn(3, 4, 5)
    (gradient,) = torch.autograd.grad((unpack_rows(packed, mask) * weight).sum(), packed)
    assert torch.equal(gradient, pack_rows(weight, mask))


def test_a_mask_that_hides_nothing_is_dropped() -> None:
    assert Tokens.from_hidden(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.int64)).mask is None


def test_a_fresh_sequence_counts_its_positions_and_stands_for_itself(ragged: Tokens, mask: Tensor) -> None:
    assert ragged.position.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(ragged.size, torch.ones(3, 4))
    assert torch.equal(ragged.mask, mask)
    assert (ragged.batch_size, ragged.width) == (3, 4)
    assert ragged.lengths().tolist() == list(LENGTHS)
    assert Tokens.from_hidden(torch.zeros(2, 3, 4)).lengths().tolist() == [3, 3]


def test_packing_tokens_and_back_keeps_the_real_ones(ragged: Tokens, mask: Tensor) -> None:
    packed = ragged.pack()
    assert packed.is_packed and packed.pack() is packed
    assert torch.equal(packed.hidden, pack_rows(ragged.hidden, mask))
    assert torch.equal(packed.unpack().hidden, ragged.hidden * mask.unsqueeze(-1))
    assert not packed.unpack().is_packed
    assert packed.lengths().tolist() == list(LENGTHS)


@pytest.mark.parametrize("is_ragged", [True, False])
def test_values_go_to_the_layout_and_back(ragged: Tokens, is_ragged: bool) -> None:
    tokens = ragged if is_ragged else Tokens.from_hidden(ragged.hidden)
    values = torch.randn(3, 4, 2, 6)
    assert tokens.to_layout(values) is values and tokens.to_padded(values) is values
    flat = tokens.pack().to_layout(values)
    assert flat.shape == (int(tokens.lengths().sum()), 2, 6)
    assert torch.equal(tokens.pack().to_layout(tokens.pack().to_padded(flat)), flat)


@pytest.fixture(params=["padded", "packed"])
def tokens(request: pytest.FixtureRequest, ragged: Tokens) -> Tokens:
    """Rows of 4, 1 and 3 tokens; every token has a size of its own."""
    sized = replace(ragged, size=torch.arange(12.0).view(3, 4))
    return sized.pack() if request.param == "packed" else sized


STAYS = torch.tensor([[1, 0, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]]).bool()


def merged(rows: tuple[bool, ...], position: int | None = None) -> Merged:
    count = len(rows)
    place = None if position is None else torch.full((count,), position)
    return Merged(torch.randn(count, 5), 100.0 + torch.arange(count), rows, place)


def rows_of(tokens: Tokens) -> list[tuple[list[list[float]], list[int], list[float]]]:
    """Features, positions and sizes of the real tokens, row by row."""
    padded = tokens.unpack()
    each = zip(padded.hidden, padded.position, padded.size, padded.lengths().tolist(), strict=True)
    return [(h[:n].tolist(), p[:n].tolist(), s[:n].tolist()) for h, p, s, n in each]


def test_keeping_moves_features_positions_and_sizes_together(ragged: Tokens, tokens: Tokens) -> None:
    kept = tokens.keep(STAYS)
    assert kept.is_packed == tokens.is_packed
    assert rows_of(kept) == [
        (ragged.hidden[0, [0, 2, 3]].tolist(), [0, 2, 3], [0, 2, 3]),
        (ragged.hidden[1, :1].tolist(), [0], [4]),
        (ragged.hidden[2, :2].tolist(), [0, 1], [8, 9]),
    ]


def test_a_merged_token_stands_directly_behind_the_kept_ones(ragged: Tokens, tokens: Tokens) -> None:
    new = merged((True, False, True))
    kept = tokens.keep(STAYS, new)
    assert rows_of(kept) == [
        ([*ragged.hidden[0, [0, 2, 3]].tolist(), new.hidden[0].tolist()], [0, 2, 3, MERGED], [0, 2, 3, 100]),
        (ragged.hidden[1, :1].tolist(), [0], [4]),
        ([*ragged.hidden[2, :2].tolist(), new.hidden[2].tolist()], [0, 1, MERGED], [8, 9, 102]),
    ]


def test_a_merged_token_takes_the_position_that_it_is_given(tokens: Tokens) -> None:
    kept = tokens.keep(STAYS, merged((True,) * 3, position=7))
    assert [positions[-1] for _, positions, _ in rows_of(kept)] == [7, 7, 7]


@pytest.mark.parametrize("is_packed", [True, False], ids=["packed", "padded"])
def test_a_full_batch_that_keeps_equally_many_stays_full(is_packed: bool) -> None:
    full = Tokens.from_hidden(torch.randn(2, 4, 5))
    stays = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]]).bool()
    new = merged((True, True))
    kept = (full.pack() if is_packed else full).keep(stays, new)
    assert kept.mask is None and kept.is_packed == is_packed
    expected = torch.cat([full.hidden[stays].view(2, 2, 5), new.hidden.unsqueeze(1)], 1)
    assert torch.equal(kept.unpack().hidden, expected)
    assert kept.position.tolist() == [[0, 2, MERGED], [0, 1, MERGED]]


def test_rows_that_become_equally_long_need_no_mask(tokens: Tokens) -> None:
    stays = torch.tensor([[1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 1, 0]]).bool()
    kept = tokens.keep(stays, merged((False, True, False)))
    assert kept.mask is None and kept.width == 2


def test_rows_of_other_lengths_may_keep_equally_many(ragged: Tokens, tokens: Tokens) -> None:
    kept = tokens.keep(torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0]]).bool())
    assert kept.mask is None and kept.position.tolist() == [[2], [0], [1]]
    assert torch.equal(kept.unpack().hidden[:, 0], ragged.hidden[range(3), [2, 0, 1]])


def test_not_every_row_of_a_full_batch_need_get_a_merged_token() -> None:
    full = Tokens.from_hidden(torch.randn(2, 4, 5))
    kept = full.keep(torch.tensor([[1, 0, 1, 0], [1, 1, 0, 0]]).bool(), merged((False, True)))
    assert kept.lengths().tolist() == [2, 3]
    assert kept.position[1].tolist() == [0, 1, MERGED]


def test_what_is_kept_leaves_padding_zero(ragged: Tokens) -> None:
    kept = ragged.keep(STAYS, merged((True, False, True)))
    assert kept.mask is not None
    assert (kept.hidden[~kept.mask] == 0).all() and (kept.size[~kept.mask] == 0).all()


def test_keeping_keeps_the_order_of_a_causal_row_causal(tokens: Tokens) -> None:
    for some in (tokens, Tokens.from_hidden(torch.randn(2, 3, 5))):
        stays = STAYS if some is tokens else torch.ones(2, 3).bool()
        assert replace(some, is_causal=True).keep(stays).is_causal
        assert not some.keep(stays).is_causal


def test_gradients_flow_to_kept_and_merged_tokens_alone(tokens: Tokens) -> None:
    hidden = tokens.hidden.clone().requires_grad_()
    new = merged((True, False, True))
    new.hidden.requires_grad_()
    tokens.with_hidden(hidden).keep(STAYS, new).hidden.sum().backward()
    assert hidden.grad is not None and new.hidden.grad is not None
    assert torch.equal(tokens.to_padded(hidden.grad), STAYS.unsqueeze(-1).expand(3, 4, 5).float())
    assert new.hidden.grad[:, 0].tolist() == [1, 0, 1]


def test_a_weighted_sum_runs_over_each_row(ragged: Tokens, tokens: Tokens, mask: Tensor) -> None:
    weights = torch.rand(3, 4) * mask
    expected = torch.stack(
        [sum(weights[row, i] * ragged.hidden[row, i] for i in range(4)) for row in range(3)]  # type: ignore[misc]
    )
    torch.testing.assert_close(tokens.weighted_sum(weights), expected, atol=1e-6, rtol=0)
