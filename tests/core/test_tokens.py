"""Tokens: two layouts that are inverse to each other; choosing and appending keep all columns in step."""

import pytest
import torch
from torch import Tensor

from madtp_core.tokens import MERGED, Tokens, pack_rows, unpack_rows

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


def test_selecting_moves_features_positions_and_sizes_together(ragged: Tokens) -> None:
    tokens = Tokens(ragged.hidden, None, ragged.position, torch.arange(12.0).view(3, 4))
    chosen = tokens.select(torch.tensor([[0, 3], [0, 1], [2, 1]]), None)
    assert chosen.position.tolist() == [[0, 3], [0, 1], [2, 1]]
    assert chosen.size.tolist() == [[0, 3], [4, 5], [10, 9]]
    assert torch.equal(chosen.hidden[2], ragged.hidden[2, [2, 1]])
    assert chosen.mask is None


def test_a_merged_token_closes_every_row_of_a_full_batch() -> None:
    tokens = Tokens.from_hidden(torch.randn(2, 3, 5))
    merged, size = torch.randn(2, 5), torch.tensor([7.0, 8.0])
    longer = tokens.append_merged(merged, size)
    assert torch.equal(longer.hidden, torch.cat([tokens.hidden, merged.unsqueeze(1)], 1))
    assert longer.position.tolist() == [[0, 1, 2, MERGED]] * 2
    assert longer.size.tolist() == [[1, 1, 1, 7], [1, 1, 1, 8]]
    assert longer.mask is None


def test_a_merged_token_stands_directly_behind_the_last_real_one(ragged: Tokens) -> None:
    merged, size = torch.randn(3, 5), torch.tensor([7.0, 8.0, 9.0])
    longer = ragged.append_merged(merged, size)
    assert longer.lengths().tolist() == [5, 2, 4]
    for row, length in enumerate(LENGTHS):
        assert torch.equal(longer.hidden[row, :length], ragged.hidden[row, :length])
        assert torch.equal(longer.hidden[row, length], merged[row])
        assert longer.position[row, : length + 1].tolist() == [*range(length), MERGED]
        assert longer.size[row, length] == size[row]


def test_only_the_named_rows_get_a_merged_token(ragged: Tokens) -> None:
    merged = torch.randn(3, 5)
    longer = ragged.append_merged(merged, torch.ones(3), torch.tensor([False, True, True]))
    assert longer.width == 4
    assert longer.lengths().tolist() == [4, 2, 4]
    assert torch.equal(longer.hidden[0], ragged.hidden[0])
    assert torch.equal(longer.hidden[2, 3], merged[2])
    assert (longer.position == MERGED).sum(1).tolist() == [0, 1, 1]


def test_rows_that_become_equally_long_need_no_mask() -> None:
    tokens = Tokens.from_hidden(torch.randn(2, 3, 5), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert tokens.append_merged(torch.randn(2, 5), torch.ones(2), torch.tensor([False, True])).mask is None


def test_both_ways_of_appending_agree_on_a_full_batch() -> None:
    tokens = Tokens.from_hidden(torch.randn(2, 3, 5))
    merged, size = torch.randn(2, 5), torch.rand(2)
    short, long = (tokens.append_merged(merged, size, rows) for rows in (None, torch.ones(2).bool()))
    assert torch.equal(short.hidden, long.hidden)
    assert torch.equal(short.position, long.position) and torch.equal(short.size, long.size)
    assert short.mask is None and long.mask is None
